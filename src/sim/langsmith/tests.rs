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

#[tokio::test]
async fn compressed_and_oversized_bodies_are_refused() {
    let langsmith = start(Options { size_limit_bytes: 1000, ..Options::default() }).await.unwrap();
    let request = client().post(langsmith.url() + "/runs/multipart").header("content-encoding", "zstd").body("x");
    assert_eq!(request.send().await.unwrap().status(), 415);
    let long = form(&[(format!("post.{A}"), with(run(A), json!({"name": "x".repeat(1000)})))]);
    assert_eq!(upload(&langsmith, long).await.0, 413);
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
