use serde_json::{Value, json};

use super::{
    super::testing::{answer, client, fetch, misbehave, with},
    *,
};

const A: &str = "01a20791-8327-7764-a3ea-7224f6c98036";
const B: &str = "01a20791-8327-7764-a3ea-7224f6c98037";
const STAMP: &str = "20261123T084146535477Z";

async fn langsmith() -> LangSmith {
    start(Options::default()).await.unwrap()
}

fn run(id: &str) -> Value {
    json!({
        "id": id, "trace_id": id, "dotted_order": format!("{STAMP}{id}"), "name": "chat", "run_type": "llm",
        "start_time": "2026-11-23T08:41:46.535477+00:00", "session_name": "parapet",
    })
}

fn form(parts: &[(String, Value)]) -> String {
    let mut body = String::new();
    for (name, content) in parts {
        let content = content.to_string();
        let length = content.len();
        body += &format!(
            "--B\r\nContent-Disposition: form-data; name=\"{name}\"\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{content}\r\n"
        );
    }
    body + "--B--\r\n"
}

async fn upload(langsmith: &LangSmith, body: String) -> (u16, Value) {
    let request =
        client().post(langsmith.url() + "/runs/multipart").header("content-type", "multipart/form-data; boundary=B");
    let response = request.body(body).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

fn detail(body: &Value) -> &str {
    body["detail"].as_str().unwrap()
}

#[tokio::test]
async fn a_multipart_run_is_put_together_from_its_parts() {
    let langsmith = langsmith().await;
    let body = form(&[
        (format!("post.{A}"), run(A)),
        (format!("post.{A}.inputs"), json!({"messages": []})),
        (format!("post.{A}.error"), json!("boom")),
        (format!("feedback.{B}"), json!({"trace_id": A, "key": "thumbs", "score": 1})),
        (format!("attachment.{A}.picture"), json!(1)),
        (format!("patch.{A}"), json!({"trace_id": A, "dotted_order": format!("{STAMP}{A}"), "tags": ["late"]})),
        (format!("patch.{A}.outputs"), json!({"choices": []})),
    ]);
    assert_eq!(upload(&langsmith, body).await.0, 202);
    let runs: Value = serde_json::from_str(&fetch(&langsmith, &format!("/sim/runs?trace_id={A}")).await.1).unwrap();
    let run = &runs[0];
    assert_eq!((&run["inputs"], &run["outputs"]), (&json!({"messages": []}), &json!({"choices": []})));
    assert_eq!((&run["error"], &run["tags"], &run["name"]), (&json!("boom"), &json!(["late"]), &json!("chat")));
    assert_eq!(langsmith.feedback()[0]["id"], B);
    assert_eq!(fetch(&langsmith, &format!("/sim/runs?trace_id={B}")).await.1, "[]");
    assert_eq!(fetch(&langsmith, &format!("/sim/feedback?trace_id={A}")).await.1.matches("thumbs").count(), 1);
}

#[tokio::test]
async fn a_run_posted_before_is_409_and_the_others_are_kept() {
    let langsmith = langsmith().await;
    assert_eq!(upload(&langsmith, form(&[(format!("post.{A}"), run(A))])).await.0, 202);
    let (status, body) =
        upload(&langsmith, form(&[(format!("post.{A}"), run(A)), (format!("post.{B}"), run(B))])).await;
    assert!(status == 409 && detail(&body).contains(A) && !detail(&body).contains(B));
    assert_eq!(langsmith.runs().len(), 2);
}

#[tokio::test]
async fn each_refusal_says_what_is_wrong_and_stores_nothing() {
    let langsmith = langsmith().await;
    let post = |more: Value| form(&[(format!("post.{B}"), run(B)), (format!("post.{A}"), with(run(A), more))]);
    let part = |name: String, content: Value| form(&[(format!("post.{A}"), run(A)), (name, content)]);
    let table = [
        (post(json!({"dotted_order": format!("{STAMP}{B}")})), 400, "does not match first part"),
        (post(json!({"trace_id": B})), 400, "does not match first part"),
        (post(json!({"parent_run_id": B})), 400, "at least two parts"),
        (post(json!({"run_type": "gpt"})), 422, "run_type"),
        (post(json!({"name": null})), 422, "name is missing"),
        (part(format!("post.{B}.inputs"), json!({})), 422, "no such run in this request"),
        (part(format!("post.{A}.inputs"), json!([])), 422, "inputs is not an object"),
        (part(format!("post.{A}.thoughts"), json!({})), 422, "no such field"),
        (part("post.7".into(), json!({})), 422, "no UUID"),
        (part(format!("get.{A}"), json!({})), 422, "neither post"),
        (part(format!("feedback.{B}"), json!({"key": "k"})), 422, "trace_id is missing"),
        (part(format!("attachment.{A}.a.png"), json!(1)), 422, "filename"),
        (part("nothing".into(), json!(1)), 422, "no dot"),
        (form(&[(format!("post.{A}"), run(A))]).replace("--B--\r\n", ""), 422, "NextPart: EOF"),
        (form(&[(format!("post.{A}"), run(A))]).replace("Content-Length", "X-Length"), 422, "no Content-Length"),
        (form(&[(format!("post.{A}"), run(A))]).replace("application/json", "text/plain"), 422, "not application/json"),
        (form(&[(format!("post.{A}"), run(A))]).replace("{\"", "[\""), 422, "not JSON"),
    ];
    for (body, expected, complaint) in table {
        let (status, answer) = upload(&langsmith, body).await;
        assert!(
            status == expected && detail(&answer).contains(complaint),
            "{status} {answer}, not {expected} {complaint}"
        );
    }
    assert!(langsmith.runs().is_empty() && langsmith.feedback().is_empty());
}

async fn compressed(
    langsmith: &LangSmith,
    encoding: &str,
    sizes: Option<(usize, usize)>,
    body: Vec<u8>,
) -> (u16, Value) {
    let request = client()
        .post(langsmith.url() + "/runs/multipart")
        .header("content-type", "multipart/form-data; boundary=B")
        .header("content-encoding", encoding);
    let request = match sizes {
        Some((before, after)) => {
            request.header("x-pre-compressed-size", before).header("x-post-compressed-size", after)
        }
        None => request,
    };
    let response = request.body(body).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

#[tokio::test]
async fn compressed_bodies_are_taken_where_info_says_so_and_with_true_sizes() {
    use std::io::Write as _;
    let langsmith = start(Options { size_limit_bytes: 5000, ..Options::default() }).await.unwrap();
    let plain = |id: &str, name: usize| {
        form(&[(format!("post.{id}"), with(run(id), json!({"name": "x".repeat(name)})))]).into_bytes()
    };
    let zstd = |plain: &[u8]| zstd::bulk::compress(plain, 1).unwrap();
    let body = zstd(&plain(A, 10));
    let sizes = Some((plain(A, 10).len(), body.len()));
    assert_eq!(compressed(&langsmith, "zstd", sizes, body.clone()).await.0, 415);
    langsmith.set_compression(true, false);
    let info = fetch(&langsmith, "/info").await.1;
    assert!(info.contains(r#""zstd_compression_enabled":true"#) && info.contains(r#""gzip_body_enabled":false"#));
    for (sizes, complaint) in [
        (None, "x-pre-compressed-size is missing"),
        (sizes.map(|(before, after)| (before + 1, after)), "x-pre-compressed-size is"),
        (sizes.map(|(before, after)| (before, after - 1)), "x-post-compressed-size is"),
    ] {
        let (status, answer) = compressed(&langsmith, "zstd", sizes, body.clone()).await;
        assert!(status == 400 && detail(&answer).contains(complaint), "{status} {answer}");
    }
    let (status, answer) = compressed(&langsmith, "zstd", sizes, body[..20].to_vec()).await;
    assert!(status == 400 && detail(&answer).contains("cannot be decoded"), "{answer}");
    // A few bytes may be very many.
    let bomb = zstd(&plain(A, 5000));
    let sizes_of_bomb = Some((plain(A, 5000).len(), bomb.len()));
    assert_eq!(compressed(&langsmith, "zstd", sizes_of_bomb, bomb).await.0, 413);
    assert!(langsmith.runs().is_empty());
    assert_eq!(compressed(&langsmith, "zstd", sizes, body).await.0, 202);

    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain(B, 10)).unwrap();
    let gzip = gzip.finish().unwrap();
    assert_eq!(compressed(&langsmith, "gzip", None, gzip.clone()).await.0, 415);
    langsmith.set_compression(false, true);
    assert_eq!(compressed(&langsmith, "gzip", None, gzip).await.0, 202);
    assert_eq!(langsmith.runs().len(), 2);
    let long = String::from_utf8(plain(A, 5000)).unwrap();
    assert_eq!(upload(&langsmith, long).await.0, 413);
}

#[tokio::test]
async fn a_project_has_its_uuid_from_its_first_run_on() {
    let langsmith = langsmith().await;
    let named = async |name: &str| {
        let text = fetch(&langsmith, &format!("/sessions?name={name}&limit=1")).await.1;
        serde_json::from_str::<Value>(&text).unwrap()
    };
    assert_eq!(named("parapet").await, json!([]));
    upload(&langsmith, form(&[(format!("post.{A}"), run(A))])).await;
    let found = named("parapet").await;
    assert!(run::is_uuid(found[0]["id"].as_str().unwrap()) && found[0]["name"] == "parapet", "{found}");
    assert_eq!((named("other").await, named("parapet").await), (json!([]), found));
}

#[tokio::test]
async fn batches_and_single_runs_are_taken() {
    let langsmith = langsmith().await;
    let patch = json!({"id": A, "trace_id": A, "dotted_order": format!("{STAMP}{A}"), "outputs": {"x": 1}});
    assert_eq!(answer(&langsmith, "/runs/batch", &json!({"post": [run(A)], "patch": [patch]})).await.0, 202);
    assert_eq!(langsmith.runs()[0]["outputs"]["x"], 1);
    let (status, body) =
        answer(&langsmith, "/runs/batch", &json!({"post": [{"id": B, "name": "n", "run_type": "llm"}]})).await;
    assert!(status == 422 && detail(&body).contains("start_time"));
    assert_eq!(answer(&langsmith, "/runs", &json!({"id": B, "name": "n", "run_type": "llm"})).await.0, 202);
    assert_eq!(answer(&langsmith, "/runs", &json!({"id": B, "name": "n", "run_type": "llm"})).await.0, 409);
    let request = client().patch(langsmith.url() + "/runs/" + B).json(&json!({"error": "late"}));
    assert_eq!(request.send().await.unwrap().status(), 202);
    assert_eq!(langsmith.runs()[1]["error"], "late");
}

#[tokio::test]
async fn feedback_needs_a_run_it_is_about() {
    let langsmith = langsmith().await;
    let feedback = json!({"run_id": A, "trace_id": A, "key": "thumbs", "score": 0.5});
    assert_eq!(answer(&langsmith, "/feedback", &feedback).await.0, 404);
    answer(&langsmith, "/runs/batch", &json!({"post": [run(A)]})).await;
    assert_eq!(answer(&langsmith, "/feedback", &feedback).await.0, 200);
    assert_eq!(langsmith.feedback()[0]["score"], 0.5);
    let again = langsmith.feedback()[0].clone();
    assert_eq!(answer(&langsmith, "/feedback", &again).await.0, 409);
    assert_eq!(answer(&langsmith, "/feedback", &json!({"run_id": A})).await.0, 422);
    assert_eq!(answer(&langsmith, "/feedback", &with(feedback, json!({"score": "high"}))).await.0, 422);
}

#[tokio::test]
async fn a_key_is_asked_for_except_by_info() {
    let key = KeyOptions { api_key: Some("ls".into()), api_key_env: None };
    let langsmith = start(Options { key, no_multipart: true, size_limit: 7, ..Options::default() }).await.unwrap();
    assert_eq!(answer(&langsmith, "/runs/batch", &json!({})).await, (403, json!({"error": "Forbidden"})));
    let info: Value = serde_json::from_str(&fetch(&langsmith, "/info").await.1).unwrap();
    assert_eq!(info["batch_ingest_config"]["size_limit"], 7);
    assert_eq!(info["batch_ingest_config"]["use_multipart_endpoint"], false);
    let post =
        |path: &str| client().post(langsmith.url() + path).header("x-api-key", "ls").json(&json!({"post": [run(A)]}));
    assert_eq!(post("/runs/multipart").send().await.unwrap().status(), 404);
    assert_eq!(post("/runs/batch").send().await.unwrap().status(), 202);
}

#[tokio::test]
async fn an_acknowledgement_can_get_lost_after_the_work() {
    let langsmith = langsmith().await;
    misbehave(&langsmith, json!({"status": 503, "after_processing": true, "times": 1, "retry_after_s": 1}));
    let body = form(&[(format!("post.{A}"), run(A))]);
    assert_eq!(upload(&langsmith, body.clone()).await.0, 503);
    assert_eq!(langsmith.runs().len(), 1);
    assert_eq!(upload(&langsmith, body).await.0, 409);
    misbehave(&langsmith, json!({"status": 500, "path": "/info"}));
    assert_eq!(fetch(&langsmith, "/info").await, (500, r#"{"detail":"Internal Server Error"}"#.into()));
}
