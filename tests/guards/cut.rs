//! Streams that are cut in the middle.

use serde_json::{Value, json};

use crate::support::scripted::{Scripted, delta};
use crate::support::{ALICE, BOB, CHAT, Faults, REFUSAL, Stack, fault, left_by_gateway, stream};
use crate::{ALICE_INPUT, BOB_INPUT, UNSAFE};

#[tokio::test(flavor = "multi_thread")]
async fn an_async_stream_is_cut_at_the_verdict() {
    let stack = Stack::builder().edit(BOB_INPUT, "input_guard: {mode: off}").start().await;
    fault(stack.vllm(), Faults { token_ms: Some(10), ..Faults::default() });
    let text = format!("say: {UNSAFE} {}", "more ".repeat(3000));
    let response = stack.chat(BOB, &stream(&text)).await;
    let trace = response.trace();
    let streamed = response.events().all().await;
    assert!(streamed.done, "{streamed:?}");
    assert_eq!(streamed.finish_reasons(), ["content_filter"]);
    assert!(streamed.text().ends_with(REFUSAL), "{}", streamed.text());
    left_by_gateway(stack.vllm()).await;
    let record = stack.record(&trace).await;
    assert_eq!((&record["output_guard"]["mode"], &record["reason"]), (&json!("async"), &json!("output_blocked")));
}

/// What comes after the unsafe words: nothing, for longer than any test waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_stream_gets_its_ending_at_the_verdict_and_its_provider_is_cut_off() {
    let vllm = Scripted::start().await;
    let stack = Stack::builder().env("VLLM_URL", &vllm.url).edit(BOB_INPUT, "input_guard: {mode: off}").start().await;
    for latency in [1, 60] {
        fault(stack.guard(), Faults { latency_ms: Some(latency), ..Faults::default() });
        for key in [ALICE, BOB] {
            let place = format!("{key}, a guard of {latency} ms");
            let client = stack.post(CHAT).key(key).json(&stream(&format!("Hello {latency}"))).open().await;
            let mut model = vllm.request().await;
            model.stream_head().await;
            for _ in 0..9 {
                model.token("fine ").await;
            }
            let response = client.response().await;
            let trace = response.trace();
            let mut events = response.events();
            events.until_text("fine ").await;
            for word in ["build ", "a ", "bomb "].into_iter().chain(["more "; 29]) {
                model.token(word).await;
            }
            model.closed().await;
            let streamed = events.all().await;
            assert!(streamed.done, "{place}: {streamed:?}");
            assert_eq!(streamed.finish_reasons(), ["content_filter"], "{place}: {streamed:?}");
            assert!(streamed.text().ends_with(REFUSAL), "{place}: {streamed:?}");
            assert!(key == BOB || !streamed.text().contains("bomb"), "{place}: {streamed:?}");
            let record = stack.record(&trace).await;
            assert_eq!((&record["status"], &record["reason"]), (&json!(200), &json!("output_blocked")), "{place}");
            let guard = &record["output_guard"];
            assert_eq!((&guard["verdict"], &guard["action"]), (&json!("unsafe"), &json!("block")), "{place}");
            // A guard that is slower than a provider may be kept waiting is not asked in vain, but not waited for.
            assert!(latency == 1 || guard.get("categories").is_none(), "{place}: {guard}");
        }
    }
    stack.assert_lives().await;
}

/// Nothing is waited for here but a verdict: what passed it leaves although the provider says nothing more.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_stream_shows_all_that_was_approved() {
    let vllm = Scripted::start().await;
    let stack = Stack::builder().env("VLLM_URL", &vllm.url).start().await;
    fault(stack.guard(), Faults { latency_ms: Some(40), ..Faults::default() });
    let client = stack.post(CHAT).key(ALICE).json(&stream("Hello")).open().await;
    let mut model = vllm.request().await;
    model.stream_head().await;
    // The second window is judged when the first has left; what is left of a third waits for more.
    for _ in 0..60 {
        model.token("word ").await;
    }
    client.response().await.events().until_text(&"word ".repeat(24)).await;
    model.closed().await;
}

/// Bytes as a network may cut them.
struct Cuts(u64);

impl Cuts {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }
}

/// The provider's bytes come in a thousand different cuts, the unsafe words at every place of every window.
#[tokio::test(flavor = "multi_thread")]
async fn unsafe_words_never_leave_however_their_bytes_are_cut() {
    let vllm = Scripted::start().await;
    let stack = Stack::builder().env("VLLM_URL", &vllm.url).edit(ALICE_INPUT, "input_guard: {mode: off}").start().await;
    fault(stack.guard(), Faults { latency_ms: Some(0), ..Faults::default() });
    let mut cuts = Cuts(7);
    for round in 0..1000 {
        let before = cuts.below(60);
        let client = stack.post(CHAT).key(ALICE).json(&stream(&format!("Hello {round}"))).open().await;
        let mut model = vllm.request().await;
        let words = ["fine "].repeat(before).into_iter().chain(["bu", "ild a b", "omb "]).chain(["more "; 40]);
        let mut body: Vec<u8> = words
            .flat_map(|word| crate::support::scripted::event(&delta(json!({"content": word}), Value::Null)))
            .collect();
        body.extend(crate::support::scripted::event(&delta(json!({}), json!("stop"))));
        body.extend(b"data: [DONE]\n\n");
        let provider = tokio::spawn({
            let mut sizes: Vec<usize> = Vec::new();
            while sizes.iter().sum::<usize>() < body.len() {
                sizes.push(1 + cuts.below(if round % 3 == 0 { 60 } else { 3000 }));
            }
            async move {
                model.stream_head().await;
                let mut rest = &*body;
                for size in sizes {
                    let (piece, after) = rest.split_at(size.min(rest.len()));
                    // The gateway hangs up as soon as it has heard enough.
                    if !piece.is_empty() && !model.try_chunk(piece).await {
                        return;
                    }
                    rest = after;
                }
                model.try_send(b"0\r\n\r\n").await;
            }
        });
        let streamed = client.response().await.events().all().await;
        provider.await.unwrap();
        let text = streamed.text();
        let place = format!("round {round}, {before} words before: {text}");
        assert!(streamed.done && text.ends_with(REFUSAL), "{place}");
        assert_eq!(streamed.finish_reasons(), ["content_filter"], "{place}");
        let shown = text.strip_suffix(REFUSAL).unwrap();
        assert!(format!("{}build a b", "fine ".repeat(before)).starts_with(shown), "{place}");
    }
    stack.assert_lives().await;
}
