//! A chain of three providers: each attempt is right for its own, and the last one answers.

use parapet::sim::{ChatOptions, KeyOptions, SeenRequest, Simulator, openai};
use serde_json::{Value, json};

use crate::support::{
    ALIAS, Builder, Faults, MODEL, OPEN, OPENAI_KEY, OPENAI_MODEL, Stack, VLLM_KEY, ask, count, fault, left_by_gateway,
    with,
};

const OTHER_KEY: &str = "sk-other-own-key";
const OTHER_MODEL: &str = "other-large";

/// As an operator adds a provider: its section, its place in the chain, its cluster, its place among the members.
fn with_a_third(server: &Simulator) -> Builder {
    let price = "                                price: {input: 0.15, cached: 0.075, output: 0.6}\n";
    let provider = "                              - name: other
                                cluster: other
                                authority: other.example
                                base_path: /v1
                                api_key_env: OTHER_API_KEY\n";
    let openai = "                                  - {provider: openai, model: gpt-4o-mini}\n";
    let next = "                              - name: gpt-4o-mini\n";
    let (link, other) =
        (format!("{openai}{next}"), openai.replace("openai", "other").replace(OPENAI_MODEL, OTHER_MODEL));
    let cluster = format!(
        "    - name: other
      type: STATIC
      connect_timeout: 2s
      circuit_breakers: *unbounded
      typed_extension_protocol_options: *http1
      load_assignment:
        cluster_name: other
        endpoints:
          - lb_endpoints:
              - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}
                metadata: {{filter_metadata: {{parapet: {{provider: other}}}}}}\n\n",
        server.address().port()
    );
    let before = "    - name: llamaguard\n      type: STRICT_DNS\n";
    Stack::builder()
        .impatient()
        .edit(price, &format!("{price}{provider}"))
        .edit(&link, &format!("{openai}{other}{next}"))
        .edit("clusters: [vllm, openai]", "clusters: [vllm, openai, other]")
        .edit("            num_retries: 1\n", "            num_retries: 2\n")
        .edit(before, &format!("{cluster}{before}"))
        .edit("host_env_keys: [VLLM_API_KEY", "host_env_keys: [OTHER_API_KEY, VLLM_API_KEY")
        .env("OTHER_API_KEY", OTHER_KEY)
}

async fn third() -> Simulator {
    let key = KeyOptions { api_key: Some(OTHER_KEY.into()), api_key_env: None };
    let options = ChatOptions {
        key,
        model: Some(OTHER_MODEL.to_owned()),
        first_token_ms: 5,
        token_ms: 0,
        ..ChatOptions::default()
    };
    openai::start(options).await.unwrap()
}

/// What an attempt brought is its own provider's and nobody else's.
fn is_right(seen: &SeenRequest, authority: &str, key: &str, model: &str, place: &str) {
    assert_eq!(seen.path, "/v1/chat/completions", "{place}");
    assert_eq!(seen.header("host"), Some(authority), "{place}");
    assert_eq!(seen.header("authorization"), Some(&*format!("Bearer {key}")), "{place}");
    assert_eq!(seen.header("content-length"), Some(&*seen.body.len().to_string()), "{place}");
    assert_eq!(seen.json()["model"], model, "{place}");
    for (name, value) in [("a key", VLLM_KEY), ("a key", OPENAI_KEY), ("a key", OTHER_KEY), ("the client's key", OPEN)]
    {
        assert!(value == key || !format!("{seen:?}").contains(value), "{place}: {name} of another: {seen:?}");
    }
    for internal in ["x-parapet-", "x-envoy-", "x-forwarded-"] {
        assert!(seen.headers.iter().all(|(name, _)| !name.starts_with(internal)), "{place}: {:?}", seen.headers);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_third_provider_answers_when_two_have_failed() {
    let other = third().await;
    let stack = with_a_third(&other).start().await;
    let faults = [
        (json!({"status": 500}), json!({"status": 429})),
        (json!({"hang": true}), json!({"hang": true})),
        (json!({"error_event_first": true}), json!({"empty": true})),
        (json!({"cut_after": 0}), json!({"malformed": true})),
        (json!({"status": 429}), json!({"hang_after_headers": true})),
    ];
    for (first, second) in faults {
        for streams in [false, true] {
            let place = format!("{first} {second} (stream: {streams})");
            fault(stack.vllm(), serde_json::from_value(first.clone()).unwrap());
            fault(stack.openai(), serde_json::from_value(second.clone()).unwrap());
            for simulator in [stack.vllm(), stack.openai(), &other] {
                simulator.clear_requests();
            }
            let body = with(ask("count to 5"), json!({"model": ALIAS, "stream": streams, "temperature": 0.5}));
            let response = stack.chat(OPEN, &body).await;
            assert_eq!(response.status, 200, "{place}");
            assert_eq!(response.header("x-parapet-provider"), Some("other"), "{place}");
            assert_eq!(response.header("x-parapet-attempts"), Some("3"), "{place}");
            let trace = response.trace();
            if streams {
                let streamed = response.events().all().await;
                assert_eq!(streamed.whole(), count(5), "{place}");
                assert!(streamed.events.iter().all(|event| event["model"] == ALIAS), "{place}");
            } else {
                let body = response.into_json().await;
                assert_eq!(
                    (&body["model"], &body["choices"][0]["message"]["content"]),
                    (&json!(ALIAS), &json!(count(5)))
                );
            }
            let told = [
                (stack.vllm(), stack.vllm().address().to_string(), VLLM_KEY, MODEL),
                (stack.openai(), stack.openai().address().to_string(), OPENAI_KEY, OPENAI_MODEL),
                (&other, "other.example".to_owned(), OTHER_KEY, OTHER_MODEL),
            ];
            let mut last_us = 0;
            for (simulator, authority, key, model) in told {
                let seen = simulator.requests();
                assert_eq!(seen.len(), 1, "{place}: {model}");
                is_right(&seen[0], &authority, key, model, &place);
                assert_eq!(seen[0].json()["temperature"], 0.5, "{place}");
                assert!(seen[0].received_us >= last_us, "{place}: {model} was asked before its turn");
                last_us = seen[0].received_us;
            }
            for (simulator, faults) in [(stack.vllm(), &first), (stack.openai(), &second)] {
                if faults.get("hang").is_some() || faults.get("hang_after_headers").is_some() {
                    left_by_gateway(simulator).await;
                }
            }
            let record = stack.record(&trace).await;
            let tried: Vec<(&str, bool)> = record["attempts"]
                .as_array()
                .unwrap()
                .iter()
                .map(|it| (it["provider"].as_str().unwrap(), it["outcome"] == "ok"))
                .collect();
            assert_eq!(tried, [("vllm", false), ("openai", false), ("other", true)], "{place}: {record}");
        }
    }
    stack.assert_lives().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_is_asked_no_further_than_it_takes() {
    let other = third().await;
    let stack = with_a_third(&other).start().await;
    fault(stack.vllm(), Faults { status: Some(500), ..Faults::default() });
    for streams in [false, true] {
        let response = stack.chat(OPEN, &with(ask("count to 5"), json!({"stream": streams}))).await;
        assert_eq!(response.header("x-parapet-provider"), Some("openai"));
    }
    assert!(other.requests().is_empty());
    for simulator in [stack.vllm(), stack.openai(), &other] {
        fault(simulator, Faults { status: Some(503), ..Faults::default() });
    }
    let response = stack.chat(OPEN, &ask("count to 5")).await;
    let trace = response.trace();
    response.into_error(502, "upstream_error").await;
    let record: Value = stack.record(&trace).await;
    assert_eq!(record["attempts"].as_array().unwrap().len(), 3, "{record}");
    assert_eq!(other.requests().len(), 1);
}
