use super::*;

const TRACE: &str = "01a20791-8327-7764-a3ea-7224f6c98036";

fn feedback(dir: &std::path::Path, owner: Option<&str>) -> Feedback {
    let mut index = Index::new(10);
    if let Some(owner) = owner {
        let id = TRACE.parse().unwrap();
        index.insert(id, owner, id, 0, true);
    }
    let queue = Queue::open(&dir.join("feedback.jsonl"), &[]).unwrap();
    Feedback::new(queue, Arc::new(Mutex::new(index)), Arc::new(Metrics::new()), false)
}

fn headers(tenant: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("x-parapet-tenant", tenant.parse().unwrap());
    headers.insert("x-parapet-user", "alice".parse().unwrap());
    headers
}

fn body(change: Value) -> Vec<u8> {
    let mut body = json!({ "trace_id": TRACE, "score": 1 });
    for (key, value) in change.as_object().unwrap() {
        body[key] = value.clone();
    }
    body.to_string().into_bytes()
}

#[test]
fn a_vote_is_durable_before_it_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let id = feedback(dir.path(), None).accept(&headers("acme"), &body(json!({}))).unwrap();
    let mut queue = Queue::open(&dir.path().join("feedback.jsonl"), &[]).unwrap();
    let item = &queue.pending()[&id].item.clone();
    assert_eq!((item.tenant.as_str(), item.user.as_str(), item.key.as_str()), ("acme", "alice", "user_score"));
    assert_eq!(item.score, Some(json!(1)));
    queue.end(id, None, "sent").unwrap();
    assert!(Queue::open(&dir.path().join("feedback.jsonl"), &[]).unwrap().pending().is_empty());
}

#[test]
fn what_is_no_feedback_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let feedback = feedback(dir.path(), None);
    for (change, param) in [
        (json!({"trace_id": "x"}), Some("trace_id")),
        (json!({"key": ""}), Some("key")),
        (json!({"key": "k".repeat(65)}), Some("key")),
        (json!({"key": "a\nb"}), Some("key")),
        (json!({"score": "good"}), Some("score")),
        (json!({"value": ["a"]}), Some("value")),
        (json!({"value": "v".repeat(5000)}), Some("value")),
        (json!({"comment": "c".repeat(9000)}), Some("comment")),
        (json!({"score": null}), None),
        (json!({"correction": {}}), None),
        (json!({"trace_id": 7}), None),
    ] {
        let refusal = feedback.accept(&headers("acme"), &body(change.clone())).unwrap_err();
        assert_eq!((refusal.status, refusal.param), (StatusCode::BAD_REQUEST, param), "{change}");
    }
    for good in [json!({"score": true}), json!({"score": -0.5, "key": "helpful"}), json!({"value": {"a": 1}})] {
        assert!(feedback.accept(&headers("acme"), &body(good)).is_ok());
    }
    assert_eq!(feedback.accept(&headers("acme"), b"{").unwrap_err().status, StatusCode::BAD_REQUEST);
    let nobody = feedback.accept(&HeaderMap::new(), &body(json!({}))).unwrap_err();
    assert_eq!(nobody.status, StatusCode::UNAUTHORIZED);
}

#[test]
fn anothers_trace_does_not_exist_for_the_caller() {
    let dir = tempfile::tempdir().unwrap();
    let feedback = feedback(dir.path(), Some("globex"));
    let refusal = feedback.accept(&headers("acme"), &body(json!({}))).unwrap_err();
    assert_eq!((refusal.status, refusal.code), (StatusCode::NOT_FOUND, "not_found"));
    assert!(feedback.accept(&headers("globex"), &body(json!({}))).is_ok());
    assert_eq!(feedback.pending(), 1);
}

#[test]
fn too_much_waiting_feedback_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("feedback.jsonl");
    let item = serde_json::to_value(read(&body(json!({}))).unwrap()).unwrap();
    let mut content = String::new();
    for n in 0..MAX_PENDING {
        let mut item = item.clone();
        item["tenant"] = format!("tenant-{}", n % 10).into();
        item["id"] = format!("01a20791-8327-7764-a3ea-{n:012}").into();
        content += &json!({ "accepted": item }).to_string();
        content.push('\n');
    }
    std::fs::write(path, content).unwrap();
    let feedback = feedback(dir.path(), None);
    let refusal = feedback.accept(&headers("acme"), &body(json!({}))).unwrap_err();
    assert_eq!(refusal.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[test]
fn one_tenants_flood_leaves_room_for_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("feedback.jsonl");
    let mut item = serde_json::to_value(read(&body(json!({}))).unwrap()).unwrap();
    item["tenant"] = "acme".into();
    let mut content = String::new();
    for n in 0..MAX_TENANT {
        item["id"] = format!("01a20791-8327-7764-a3ea-{n:012}").into();
        content += &json!({ "accepted": item }).to_string();
        content.push('\n');
    }
    std::fs::write(path, content).unwrap();
    let feedback = feedback(dir.path(), None);
    let refusal = feedback.accept(&headers("acme"), &body(json!({}))).unwrap_err();
    assert_eq!(refusal.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(feedback.accept(&headers("globex"), &body(json!({}))).is_ok());
}

/// What the disk has of the one feedback that was accepted.
fn on_disk(change: Value, hide: bool) -> (Value, String) {
    let dir = tempfile::tempdir().unwrap();
    let feedback = Feedback { hide, ..feedback(dir.path(), None) };
    feedback.accept(&headers("acme"), &body(change)).unwrap();
    let text = std::fs::read_to_string(dir.path().join("feedback.jsonl")).unwrap();
    (serde_json::from_str::<Value>(&text).unwrap()["accepted"].clone(), text)
}

#[test]
fn personal_data_and_secrets_in_free_text_never_reach_the_disk() {
    let card = "4111 1111 1111 1111";
    let (item, text) = on_disk(
        json!({
            "comment": format!("ask alice@example.com or +49 30 1234567, {card}, sk-proj-abcdefghijklmnopqrstuvwx"),
            "value": {"mail": "bob@example.com", "carol@example.com": ["dan@example.com", 4_111_111_111_111_111_u64]},
            "key": "4111-1111-1111-1111",
        }),
        false,
    );
    assert_eq!(item["comment"], "ask [email] or [phone], [card], [secret]");
    assert_eq!(item["value"], json!({"mail": "[email]", "[email]": ["[email]", "[card]"]}));
    for secret in ["example.com", "1111", "abcdefghij"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[test]
fn what_runs_hide_is_not_said_again_in_a_comment() {
    let (item, _) = on_disk(
        json!({"comment": "you answered: the launch code is 7", "value": {"verdict": "good", "why": "it told me so"}}),
        true,
    );
    assert_eq!((&item["comment"], &item["score"]), (&json!("[hidden]"), &json!(1)));
    assert_eq!(item["value"], json!({"verdict": "good", "why": "[hidden]"}));
}
