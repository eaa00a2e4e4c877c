use serde_json::{Value, json};

use super::{super::testing::*, *};

#[tokio::test]
async fn a_wrong_key_is_refused_in_openais_shape() {
    let key = super::super::KeyOptions { api_key: Some("sk-right".into()), api_key_env: None };
    let openai = start(Options { key, ..fast() }).await.unwrap();
    let (status, body) = answer(&openai, CHAT, &say(DEFAULT_MODEL, "hi")).await;
    assert_eq!((status, &body["error"]["code"]), (401, &json!("invalid_api_key")));
    let request = client().post(openai.url() + CHAT).bearer_auth("sk-right").json(&say(DEFAULT_MODEL, "hi"));
    assert_eq!(request.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn other_chunks_carry_a_null_usage() {
    let openai = start(fast()).await.unwrap();
    let request = streamed(DEFAULT_MODEL, "count to 3", json!({"stream_options": {"include_usage": true}}));
    let (events, clean) = events(send(&openai, CHAT, &request).await).await;
    assert!(clean);
    let [first, .., last, usage, done] = events.as_slice() else { panic!("too few events") };
    assert_eq!(first["choices"][0]["delta"], json!({"role": "assistant", "content": "", "refusal": null}));
    assert!(events[..events.len() - 2].iter().all(|event| event.get("usage") == Some(&Value::Null)));
    assert_eq!((&last["choices"][0]["delta"], &last["choices"][0]["finish_reason"]), (&json!({}), &json!("stop")));
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(3)));
    assert_eq!((done, contents(&events, 0).as_str()), (&json!("[DONE]"), "1 2 3"));
}

#[tokio::test]
async fn the_answer_tells_its_server_by_model_and_headers() {
    let openai = start(fast()).await.unwrap();
    let response = send(&openai, CHAT, &say(DEFAULT_MODEL, "hi")).await;
    for header in ["x-ratelimit-remaining-tokens", "x-ratelimit-reset-requests", "openai-processing-ms", "x-request-id"]
    {
        assert!(response.headers().contains_key(header), "{header}");
    }
    let body: Value = response.json().await.unwrap();
    assert_eq!(
        (&body["model"], &body["choices"][0]["message"]["content"]),
        (&json!(DEFAULT_MODEL), &json!("You asked: hi"))
    );
}

#[tokio::test]
async fn errors_have_string_codes() {
    let openai = start(fast()).await.unwrap();
    let (status, body) = answer(&openai, CHAT, &say("meta-llama/x", "hi")).await;
    assert_eq!((status, &body["error"]["code"]), (404, &json!("model_not_found")));
    assert_eq!(answer(&openai, CHAT, &json!({"messages": []})).await.0, 400);
    assert_eq!(fetch(&openai, "/v1/models/a/b").await.0, 404);
    assert_eq!(fetch(&openai, "/v1/models/gpt-4o-mini").await.0, 200);
    for (fault, status, code) in [(429, 429, json!("rate_limit_exceeded")), (500, 500, Value::Null)] {
        misbehave(&openai, json!({"status": fault}));
        let (got, body) = answer(&openai, CHAT, &say(DEFAULT_MODEL, "hi")).await;
        assert_eq!((got, &body["error"]["code"]), (status, &code));
    }
}
