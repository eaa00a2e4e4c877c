use serde_json::{Value, json};

use super::{super::testing::*, *};

async fn vllm() -> Simulator {
    start(fast()).await.unwrap()
}

fn ask(text: &str, more: Value) -> Value {
    streamed(DEFAULT_MODEL, text, more)
}

#[tokio::test]
async fn a_stream_is_role_tokens_finish_usage_done() {
    let vllm = vllm().await;
    let request = ask("say: Hello wonderful world", json!({"stream_options": {"include_usage": true}}));
    let (events, clean) = events(send(&vllm, CHAT, &request).await).await;
    assert!(clean);
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(contents(&events, 0), "Hello wonderful world");
    let reasons: Vec<&Value> = events.iter().filter_map(|event| event.pointer("/choices/0/finish_reason")).collect();
    let (last, before) = reasons.split_last().unwrap();
    assert_eq!(**last, "stop");
    assert!(before.iter().all(|reason| reason.is_null()));
    let [.., usage, done] = events.as_slice() else { panic!("too few events") };
    assert_eq!((done, &usage["choices"]), (&json!("[DONE]"), &json!([])));
    assert_eq!(usage["usage"]["completion_tokens"], 4);
    assert_eq!(usage["usage"]["prompt_tokens_details"], Value::Null);
    assert!(events[..events.len() - 2].iter().all(|event| event.get("usage").is_none()));
    assert!(events[0]["id"].as_str().unwrap().starts_with("chatcmpl-"));
}

#[tokio::test]
async fn headers_come_before_the_first_token_and_leaving_is_noticed() {
    let vllm = vllm().await;
    misbehave(&vllm, json!({"first_token_ms": 3_600_000}));
    let response = send(&vllm, CHAT, &ask("say: x", json!({}))).await;
    assert_eq!(response.status(), 200);
    let running = async || {
        fetch(&vllm, "/metrics")
            .await
            .1
            .contains("num_requests_running{engine=\"0\",model_name=\"meta-llama/Meta-Llama-3-8B-Instruct\"} 1.0")
    };
    assert!(running().await);
    assert!(!vllm.requests()[0].disconnected());
    drop(response);
    until("the disconnect is seen", async || vllm.requests()[0].disconnected()).await;
    until("the answer is aborted", async || !running().await).await;
}

#[tokio::test]
async fn leaving_while_json_is_awaited_is_noticed() {
    let vllm = vllm().await;
    misbehave(&vllm, json!({"hang": true}));
    let request = tokio::spawn(client().post(vllm.url() + CHAT).json(&say(DEFAULT_MODEL, "x")).send());
    until("the request arrives", async || vllm.requests().len() == 1).await;
    request.abort();
    until("the disconnect is seen", async || vllm.requests()[0].disconnected()).await;
}

#[tokio::test]
async fn json_and_stream_say_the_same() {
    let vllm = vllm().await;
    for text in ["count to 30", "say: grüße\n\n  an alle", "What is Envoy?", "say:"] {
        let (_, body) = answer(&vllm, CHAT, &say(DEFAULT_MODEL, text)).await;
        let (events, _) = events(send(&vllm, CHAT, &ask(text, json!({}))).await).await;
        assert_eq!(body["choices"][0]["message"]["content"], contents(&events, 0), "{text}");
        assert_eq!(body["usage"]["prompt_tokens_details"], Value::Null);
        let usage = &body["usage"];
        assert_eq!(
            usage["total_tokens"].as_u64(),
            Some(usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap())
        );
    }
    assert!(vllm.requests().iter().all(|seen| seen.finished_us.is_some() && !seen.disconnected()));
}

#[tokio::test]
async fn a_length_limit_ends_on_a_chunk_with_the_last_token() {
    let vllm = vllm().await;
    for limit in [json!({"max_tokens": 3}), json!({"max_completion_tokens": 3, "max_tokens": 9})] {
        let (events, _) = events(send(&vllm, CHAT, &ask("count to 9", limit.clone())).await).await;
        assert_eq!(contents(&events, 0), "1 2 3");
        let last = &events[events.len() - 2]["choices"][0];
        assert_eq!((&last["finish_reason"], &last["delta"]["content"]), (&json!("length"), &json!(" 3")));
        let (_, body) = answer(&vllm, CHAT, &with(say(DEFAULT_MODEL, "count to 9"), limit)).await;
        assert_eq!(body["choices"][0]["finish_reason"], "length");
        assert_eq!(body["usage"]["completion_tokens"], 3);
    }
}

#[tokio::test]
async fn several_choices_interleave_after_their_roles() {
    let vllm = vllm().await;
    let (events, _) = events(send(&vllm, CHAT, &ask("count to 2", json!({"n": 2}))).await).await;
    let order: Vec<u64> = events.iter().filter_map(|event| event.pointer("/choices/0/index")?.as_u64()).collect();
    assert_eq!(order, [0, 1, 0, 1, 0, 1, 0, 1]);
    assert!(events[..2].iter().all(|event| event["choices"][0]["delta"]["role"] == "assistant"));
    assert_eq!((contents(&events, 0), contents(&events, 1)), ("1 2".into(), "1 2".into()));
}

#[tokio::test]
async fn stop_strings_cut_and_are_named() {
    let vllm = vllm().await;
    for stop in [json!("4"), json!(["9", "4"])] {
        let (_, body) = answer(&vllm, CHAT, &with(say(DEFAULT_MODEL, "count to 9"), json!({"stop": stop}))).await;
        assert_eq!(body["choices"][0]["message"]["content"], "1 2 3 ");
        assert_eq!(
            (&body["choices"][0]["stop_reason"], &body["choices"][0]["finish_reason"]),
            (&json!("4"), &json!("stop"))
        );
    }
}

#[tokio::test]
async fn an_offered_tool_is_called_in_fragments() {
    let vllm = vllm().await;
    let tools = json!({"tools": [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]});
    let (events, _) = events(send(&vllm, CHAT, &ask("call the tool get_weather", tools.clone())).await).await;
    let calls: Vec<&Value> = events.iter().filter_map(|event| event.pointer("/choices/0/delta/tool_calls/0")).collect();
    assert_eq!((&calls[0]["function"]["name"], &calls[0]["type"]), (&json!("get_weather"), &json!("function")));
    assert!(calls.len() > 3 && calls[1..].iter().all(|call| call.get("id").is_none()));
    let arguments: String = calls.iter().filter_map(|call| call["function"]["arguments"].as_str()).collect();
    assert_eq!(serde_json::from_str::<Value>(&arguments).unwrap()["input"], "call the tool get_weather");
    assert_eq!(events[events.len() - 2]["choices"][0]["finish_reason"], "tool_calls");
    let (_, body) = answer(&vllm, CHAT, &with(say(DEFAULT_MODEL, "call the tool other"), tools)).await;
    assert_eq!(body["choices"][0]["message"]["content"], "You asked: call the tool other");
}

#[tokio::test]
async fn refusals_have_vllms_shape() {
    let vllm = start(Options { max_model_len: 50, ..fast() }).await.unwrap();
    let model = |more| with(say(DEFAULT_MODEL, "hi"), more);
    let table = [
        (say("gpt-4o", "hi"), 404, "NotFoundError", json!("model")),
        (json!({"model": DEFAULT_MODEL}), 400, "Bad Request", Value::Null),
        (json!({"messages": []}), 400, "BadRequestError", json!("messages")),
        (model(json!({"max_tokens": 0})), 400, "BadRequestError", json!("max_tokens")),
        (model(json!({"top_logprobs": 21})), 400, "BadRequestError", json!("top_logprobs")),
        (model(json!({"stream_options": {}})), 400, "BadRequestError", json!("stream_options")),
        (say(DEFAULT_MODEL, &"word ".repeat(60)), 400, "BadRequestError", json!("input_tokens")),
    ];
    for (body, status, kind, param) in table {
        let (got, error) = answer(&vllm, CHAT, &body).await;
        let error = &error["error"];
        assert_eq!((got, &error["type"], &error["param"]), (status, &json!(kind), &param), "{body}");
        assert_eq!(error["code"], status);
    }
    let plain = client().post(vllm.url() + CHAT).body("{}").send().await.unwrap();
    assert_eq!(plain.status(), 400);
    assert_eq!(answer(&vllm, "/v1/nothing", &json!({})).await, (404, json!({"detail": "Not Found"})));
    assert_eq!(fetch(&vllm, CHAT).await, (405, r#"{"detail":"Method Not Allowed"}"#.into()));
}

#[tokio::test]
async fn what_vllm_ignores_is_ignored() {
    let vllm = vllm().await;
    let odd = json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "say: ok"}]}], "guided_choice": ["no"]});
    let response = client().post(vllm.url() + CHAT).header("x-request-id", "r1").json(&odd).send().await.unwrap();
    assert_eq!(response.headers()["server"], "uvicorn");
    let body: Value = response.json().await.unwrap();
    assert_eq!((&body["choices"][0]["message"]["content"], &body["id"]), (&json!("ok"), &json!("chatcmpl-r1")));
}

#[tokio::test]
async fn a_key_guards_only_the_api() {
    let key = super::super::KeyOptions { api_key: Some("secret".into()), api_key_env: None };
    let vllm = start(Options { key, ..fast() }).await.unwrap();
    assert_eq!(answer(&vllm, CHAT, &say(DEFAULT_MODEL, "hi")).await, (401, json!({"error": "Unauthorized"})));
    assert_eq!(fetch(&vllm, "/v1/models").await.0, 401);
    for open in ["/health", "/version", "/metrics"] {
        assert_eq!(fetch(&vllm, open).await.0, 200, "{open}");
    }
    assert_eq!(answer(&vllm, "/tokenize", &json!({"prompt": "one two"})).await.1["count"], 2);
    let allowed = client().get(vllm.url() + "/v1/models").bearer_auth("secret").send().await.unwrap();
    assert_eq!(allowed.json::<Value>().await.unwrap()["data"][0]["id"], DEFAULT_MODEL);
    assert_eq!(vllm.requests().last().unwrap().header("authorization"), Some("Bearer secret"));
}

#[tokio::test]
async fn stopping_breaks_connections_and_closes_the_port() {
    let vllm = vllm().await;
    misbehave(&vllm, json!({"hang_after_headers": true}));
    let response = send(&vllm, CHAT, &ask("x", json!({}))).await;
    let address = vllm.address();
    vllm.stop().await;
    assert!(!events(response).await.1);
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

mod faults {
    use super::*;

    #[tokio::test]
    async fn statuses_hit_so_many_requests_in_the_servers_shape() {
        let vllm = vllm().await;
        misbehave(&vllm, json!({"status": 503, "times": 1, "retry_after_s": 7}));
        let response = send(&vllm, CHAT, &say(DEFAULT_MODEL, "hi")).await;
        assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (503, &"7".parse().unwrap()));
        assert_eq!(response.json::<Value>().await.unwrap()["error"]["code"], 503);
        assert_eq!(answer(&vllm, CHAT, &say(DEFAULT_MODEL, "hi")).await.0, 200);
        misbehave(&vllm, json!({"insufficient_quota": true}));
        let (status, body) = answer(&vllm, CHAT, &say(DEFAULT_MODEL, "hi")).await;
        assert_eq!((status, &body["error"]["code"]), (429, &json!("insufficient_quota")));
    }

    #[tokio::test]
    async fn streams_break_where_they_are_told_to() {
        let vllm = vllm().await;
        let broken = async |fault: Value| {
            misbehave(&vllm, fault);
            events(send(&vllm, CHAT, &ask("count to 9", json!({}))).await).await
        };
        let (first, clean) = broken(json!({"error_event_first": true})).await;
        assert!(clean && first.len() == 2 && first[0]["error"]["code"] == 500 && first[1] == "[DONE]");

        let (after, clean) = broken(json!({"error_event_after": 2})).await;
        assert!(
            clean
                && after[after.len() - 2]["error"]["type"] == "InternalServerError"
                && after[after.len() - 1] == "[DONE]"
        );
        assert_eq!(contents(&after, 0), "1 2");

        let (cut, clean) = broken(json!({"cut_after": 3})).await;
        assert_eq!((clean, contents(&cut, 0).as_str()), (false, "1 2 3"));

        let (open, clean) = broken(json!({"no_finish_after": 4})).await;
        assert_eq!((clean, contents(&open, 0).as_str(), open.len()), (true, "1 2 3 4", 5));
        assert!(open.iter().all(|event| event["choices"][0]["finish_reason"].is_null()));

        let (empty, clean) = broken(json!({"empty": true})).await;
        assert_eq!((clean, contents(&empty, 0).as_str(), empty.len()), (true, "", 3));

        let (malformed, clean) = broken(json!({"malformed": true})).await;
        assert!(clean && malformed[0].as_str().unwrap().starts_with('{') && malformed[1] == "[DONE]");
    }

    #[tokio::test]
    async fn keep_alives_are_all_that_comes() {
        let vllm = vllm().await;
        misbehave(&vllm, json!({"keepalive_only": true}));
        let mut response = send(&vllm, CHAT, &ask("hi", json!({}))).await;
        let mut text = String::new();
        while text.len() < 40 {
            text += std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap();
        }
        assert!(text.split_terminator("\n\n").all(|comment| comment == ": keep-alive"));
    }

    #[tokio::test]
    async fn json_answers_break_too() {
        let vllm = vllm().await;
        let broken = async |fault: Value| {
            misbehave(&vllm, fault);
            let response = send(&vllm, CHAT, &say(DEFAULT_MODEL, "hi")).await;
            let status = response.status().as_u16();
            response.text().await.map(|text| (status, serde_json::from_str::<Value>(&text).ok(), text))
        };
        assert!(broken(json!({"cut_after": 1})).await.is_err());
        for fault in [json!({"malformed": true}), json!({"no_finish_after": 1})] {
            let (status, body, text) = broken(fault).await.unwrap();
            assert!(status == 200 && body.is_none() && text.starts_with('{'), "{text}");
        }
        assert_eq!(broken(json!({"error_event_first": true})).await.unwrap().0, 500);
        let (status, body, _) = broken(json!({"empty": true})).await.unwrap();
        assert_eq!((status, &body.unwrap()["choices"][0]["message"]["content"]), (200, &json!("")));
        assert_eq!(broken(json!({"body": "<html>", "status": 502})).await.unwrap(), (502, None, "<html>".into()));
    }

    #[tokio::test]
    async fn they_are_set_and_shown_over_http_and_bad_ones_change_nothing() {
        let vllm = vllm().await;
        assert_eq!(answer(&vllm, "/sim/faults", &json!({"status": 500, "times": 3})).await.0, 200);
        for bad in [json!({"stauts": 500}), json!({"hang": true, "empty": true})] {
            let (status, body) = answer(&vllm, "/sim/faults", &bad).await;
            assert!(status == 400 && body["error"].as_str().unwrap().starts_with("faults unchanged: "));
        }
        assert_eq!(answer(&vllm, CHAT, &say(DEFAULT_MODEL, "hi")).await.0, 500);
        let shown: Value = serde_json::from_str(&fetch(&vllm, "/sim/faults").await.1).unwrap();
        assert_eq!((&shown["status"], &shown["times"]), (&json!(500), &json!(2)));
        let seen: Value = serde_json::from_str(&fetch(&vllm, "/sim/requests").await.1).unwrap();
        assert_eq!((seen.as_array().unwrap().len(), &seen[0]["path"]), (1, &json!(CHAT)));
        client().delete(vllm.url() + "/sim/requests").send().await.unwrap();
        assert!(vllm.requests().is_empty());
    }
}
