//! Random faults under load: every request gets exactly one well-formed answer.

use futures_util::future::join_all;
use futures_util::stream::{self as streams, StreamExt as _};
use parapet::sim::{ChatOptions, Faults, KeyOptions, openai};
use serde_json::json;

use crate::support::tls::{Authority, Front};
use crate::support::{OPEN, OPENAI_KEY, Stack, ask, count, fault, with};

#[tokio::test(flavor = "multi_thread")]
async fn every_request_gets_exactly_one_well_formed_answer_whatever_fails() {
    let stack = Stack::builder().impatient().start().await;
    let faults = [
        json!({"status": 500, "random": 0.5, "seed": 1}),
        json!({"cut_after": 0, "random": 0.5, "seed": 2}),
        json!({"error_event_first": true, "random": 0.5, "seed": 3}),
        json!({"empty": true, "random": 0.5, "seed": 4}),
    ];
    for faults in faults {
        fault(stack.vllm(), serde_json::from_value(faults.clone()).unwrap());
        let requests = (0..40).map(|index| {
            let stack = &stack;
            async move {
                let response = stack.chat(OPEN, &with(ask("count to 5"), json!({"stream": index % 2 == 0}))).await;
                let attempts = response.header("x-parapet-attempts").unwrap().to_owned();
                if index % 2 == 0 {
                    assert_eq!(response.events().all().await.whole(), count(5));
                } else {
                    assert_eq!(response.into_json().await["choices"][0]["message"]["content"], count(5));
                }
                attempts
            }
        });
        let attempts = join_all(requests).await;
        let retried = attempts.iter().filter(|attempts| *attempts == "2").count();
        assert!((5..=35).contains(&retried), "{faults}: {retried} of 40");
    }
    stack.assert_well().await;
}

/// Two replicas whose health flaps, which are ejected and come back, and OpenAI behind TLS.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_replicas_come_and_go() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path(), "trusted");
    let key = KeyOptions { api_key: Some(OPENAI_KEY.into()), api_key_env: None };
    let far =
        openai::start(ChatOptions { key, first_token_ms: 5, token_ms: 0, ..ChatOptions::default() }).await.unwrap();
    let front = Front::start(far.address(), authority.certificate(&["localhost"], false), &["http/1.1"]).await;
    let stack = Stack::builder()
        .impatient()
        .ejecting()
        .replicas(2)
        .edit("interval: 5s", "interval: 0.1s")
        .edit("base_ejection_time: 10s", "base_ejection_time: 0.3s")
        .env("PARAPET_CA_FILE", authority.file.to_str().unwrap())
        .env("OPENAI_BASE_URL", &format!("https://localhost:{}/v1", front.address.port()))
        .start()
        .await;
    let weather = [
        json!({"status": 503, "path": "/health"}),
        json!({"status": 500, "random": 0.6}),
        json!({"hang": true, "random": 0.3}),
        json!({"hang_after_headers": true, "random": 0.3}),
        json!({"cut_after": 0, "random": 0.6}),
        json!({"hang": true, "path": "/health"}),
        json!({"error_event_first": true}),
        json!({"status": 429, "random": 0.8}),
        json!({}),
    ];
    let faults = |index: usize| serde_json::from_value::<Faults>(weather[index % weather.len()].clone()).unwrap();
    let requests = streams::iter(0..600_usize).map(|index| {
        let (stack, faults) = (&stack, &faults);
        async move {
            if index % 20 == 0 {
                fault(stack.replica(0), faults(index / 20));
                fault(stack.replica(1), faults(index / 13));
            }
            let streams = index % 2 == 0;
            let response = stack.chat(OPEN, &with(ask("count to 5"), json!({"stream": streams}))).await;
            assert_eq!(response.status, 200, "{index}: {:?}", response.headers);
            let provider = response.header("x-parapet-provider").unwrap().to_owned();
            let trace = response.trace();
            if streams {
                assert_eq!(response.events().all().await.whole(), count(5), "{index}");
            } else {
                assert_eq!(response.into_json().await["choices"][0]["message"]["content"], count(5), "{index}");
            }
            (provider, trace)
        }
    });
    let answers: Vec<(String, String)> = requests.buffer_unordered(16).collect().await;
    let by = |name: &str| answers.iter().filter(|(provider, _)| provider == name).count();
    // Both had their part; how large it is depends on how long each spell of weather lasts.
    assert!(by("vllm") > 10 && by("openai") > 10, "vLLM {}, OpenAI {}", by("vllm"), by("openai"));
    // One record for each, whose last attempt is the answer's.
    for (provider, trace) in &answers {
        let record = stack.record(trace).await;
        let good: Vec<_> =
            record["attempts"].as_array().unwrap().iter().filter(|attempt| attempt["outcome"] == "ok").collect();
        assert_eq!(good.len(), 1, "{record}");
        assert_eq!(&good[0]["provider"], provider, "{record}");
    }
    let log = std::fs::read_to_string(stack.data().join("log/access.jsonl")).unwrap();
    assert_eq!(log.lines().filter(|line| line.contains("chat_completions")).count(), answers.len());
    for replica in stack.running() {
        fault(replica, Faults::default());
    }
    stack.assert_well().await;
}

/// When the last provider fails as well, an error is the answer, and it is whole too.
#[tokio::test(flavor = "multi_thread")]
async fn where_all_fail_at_random_an_answer_is_whole_or_an_error() {
    let stack = Stack::builder().impatient().start().await;
    for (seed, faults) in
        [json!({"status": 500}), json!({"cut_after": 0}), json!({"error_event_first": true})].iter().enumerate()
    {
        for (provider, seed) in [(stack.vllm(), seed), (stack.openai(), seed + 100)] {
            let faults = with(faults.clone(), json!({"random": 0.5, "seed": seed}));
            fault(provider, serde_json::from_value(faults).unwrap());
        }
        let requests = (0..60).map(|index| {
            let stack = &stack;
            async move {
                let streams = index % 2 == 0;
                let response = stack.chat(OPEN, &with(ask("count to 5"), json!({"stream": streams}))).await;
                let good = response.status == 200;
                if !good {
                    response.into_error_at(502, "upstream_error", format!("{faults} {index}")).await;
                } else if streams {
                    assert_eq!(response.events().all().await.whole(), count(5));
                } else {
                    assert_eq!(response.into_json().await["choices"][0]["message"]["content"], count(5));
                }
                good
            }
        });
        let good = join_all(requests).await.into_iter().filter(|good| *good).count();
        assert!((20..=58).contains(&good), "{faults}: {good} of 60");
    }
    stack.assert_lives().await;
}
