//! What models answer.

use serde_json::{Value, json};

use crate::support::scripted::{SETTLED, Scripted, delta};
use crate::support::{ALICE, BOB, CHAT, Faults, OPEN, REFUSAL, Stack, ask, count, eventually, fault, stream, with};
use crate::{ALICE_INPUT, BOB_INPUT, CATEGORY, HOLD, UNSAFE, audited, calls};

/// A stream whose unsafe words begin after `before` harmless ones.
fn hiding_at(before: usize) -> String {
    let words = |count: usize| "fine ".repeat(count);
    format!("say: {}{UNSAFE} {}", words(before), words(40))
}

/// What of [`hiding_at`]'s answer may leave: what stands before the unsafe words is a prefix of this.
fn harmless(before: usize) -> String {
    format!("{}build a", "fine ".repeat(before))
}

#[tokio::test(flavor = "multi_thread")]
async fn unsafe_text_never_leaves_before_its_verdict_wherever_it_stands() {
    let stack = Stack::builder().edit(ALICE_INPUT, "input_guard: {mode: off}").start().await;
    for (pace, latency) in [(0, 1), (2, 20)] {
        fault(stack.vllm(), Faults { token_ms: Some(pace), ..Faults::default() });
        fault(stack.guard(), Faults { latency_ms: Some(latency), ..Faults::default() });
        for before in [0, 1, 5, 6, 7, 8, 9, 20, 21, 22, 23, 24, 25, 50, 55, 56, 57, 100, 120, 121] {
            let response = stack.alice(&stream(&hiding_at(before))).await;
            let place = format!("{before} words before, {pace} ms a token, verdicts after {latency} ms");
            assert_eq!(response.status, 200, "{place}");
            let trace = response.trace();
            let streamed = response.events().all().await;
            // Once the client has its ending, the provider's connection is cut and this one with it.
            assert!(streamed.done, "{place}: {streamed:?}");
            assert_eq!(streamed.finish_reasons(), ["content_filter"], "{place}");
            let text = streamed.text();
            let let_out = text.strip_suffix(REFUSAL).unwrap_or_else(|| panic!("{place}: no refusal: {text}"));
            assert!(harmless(before).starts_with(let_out.trim_end()), "{place}: {let_out}");
            assert!(!let_out.contains("bomb"), "{place}");
            if pace == 0 {
                continue;
            }
            let record = stack.record(&trace).await;
            assert_eq!((&record["status"], &record["reason"]), (&json!(200), &json!("output_blocked")), "{place}");
            // Once something has left, they are not waited for long.
            let categories = record["output_guard"].get("categories").cloned().unwrap_or(json!([CATEGORY]));
            assert_eq!(categories, json!([CATEGORY]), "{place}");
            assert!(!record["answers"].to_string().contains("bomb"), "{place}: {}", record["answers"]);
        }
    }
    let event = audited(&stack, "output").await;
    assert_eq!((&event["side"], &event["action"]), (&json!("output"), &json!("block")));
}

#[tokio::test(flavor = "multi_thread")]
async fn safe_answers_come_byte_for_byte_whatever_their_length_and_pace() {
    let stack = Stack::start().await;
    let table =
        [("1", 0), ("7", 0), ("8", 0), ("9", 0), ("24", 0), ("25", 0), ("56", 1), ("57", 1), ("120", 1), ("1500", 0)];
    for (to, pace) in table {
        fault(stack.vllm(), Faults { token_ms: Some(pace), ..Faults::default() });
        for key in [ALICE, BOB] {
            let streamed = stack.chat(key, &stream(&format!("count to {to}"))).await.events().all().await;
            assert_eq!(streamed.whole(), count(to.parse().unwrap()), "{key} {to}");
        }
    }
    let text =
        "Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich.\n\n日本語 \u{1F600} — \"quoted\" \\ back\tslash";
    for key in [ALICE, BOB] {
        let streamed = stack.chat(key, &stream(&format!("say: {text}"))).await.events().all().await;
        assert_eq!(streamed.whole(), text, "{key}");
    }
}

/// Of what is beside a harmless text, and of every other line.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_guard_reads_does_not_leave() {
    let vllm = Scripted::start().await;
    let stack = Stack::builder()
        .env("VLLM_URL", &vllm.url)
        .edit(ALICE_INPUT, "input_guard: {mode: off}")
        .edit(BOB_INPUT, "input_guard: {mode: off}")
        .start()
        .await;
    let fine = |extra: Value| {
        let mut chunk = delta(json!({"content": "fine"}), Value::Null);
        let choice = extra.as_object().unwrap().clone();
        chunk["choices"][0].as_object_mut().unwrap().extend(choice);
        chunk
    };
    let mut chunks = vec![
        fine(json!({"text": UNSAFE})),
        fine(json!({"finish_reason": UNSAFE})),
        fine(json!({"logprobs": {"content": [{"token": UNSAFE, "logprob": -1, "bytes": null, "top_logprobs": []}]}})),
        delta(json!({"content": "fine", "thinking": UNSAFE}), Value::Null),
        delta(json!({"audio": {"transcript": UNSAFE}}), Value::Null),
        delta(json!({"annotations": [{"type": "url_citation", "url_citation": {"title": UNSAFE}}]}), Value::Null),
    ];
    for member in ["id", "system_fingerprint", "model", "note", "usage"] {
        let mut chunk = fine(json!({}));
        chunk[member] = if member == "usage" { json!({"prompt_tokens": 1, "note": UNSAFE}) } else { json!(UNSAFE) };
        chunks.push(chunk);
    }
    let lines = ["", "event: ", "id: ", "retry: ", ": "].map(|field| {
        let line = if field.is_empty() { String::new() } else { format!("{field}{UNSAFE}\n") };
        format!("{line}data: {}\n\n", fine(json!({})))
    });
    let events =
        chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).chain(lines).chain([format!(": {UNSAFE}\n\n")]);
    for event in events {
        for key in [ALICE, BOB] {
            let client =
                stack.post(CHAT).key(key).header("cache-control", "no-store").json(&stream("Hello")).open().await;
            let mut model = vllm.request().await;
            model.stream_head().await;
            model.token("so ").await;
            model.chunk(event.as_bytes()).await;
            model.finish().await;
            let text = client.response().await.text().await;
            assert!(text.contains("so ") && text.ends_with("data: [DONE]\n\n"), "{event}: {text}");
            assert!(!text.contains("bomb") && !text.contains("content_filter"), "{event}: {text}");
        }
        if !event.contains("\"fine\"") {
            continue;
        }
        let client = stack.post(CHAT).key(ALICE).header("cache-control", "no-store").json(&ask("Hello")).open().await;
        let mut model = vllm.request().await;
        let data = event.split_once("data: ").map_or("", |(_, data)| data).replace("\"delta\"", "\"message\"");
        model.answer("200 OK", "application/json", data.as_bytes()).await;
        let mut response = client.response().await;
        assert_eq!(response.status, 200, "{event}");
        let text = response.text().await;
        assert!(text.contains("fine") && !text.contains("bomb"), "{event}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn held_text_waits_for_its_own_verdict() {
    let vllm = Scripted::start().await;
    let stack = Stack::builder().env("VLLM_URL", &vllm.url).start().await;
    let client = stack.post(CHAT).key(ALICE).json(&stream("Hello")).open().await;
    let mut model = vllm.request().await;
    eventually("the input's verdict", async || {
        calls(&stack).0.first().filter(|call| call.finished_us.is_some()).cloned()
    })
    .await;
    // No verdict on the answer comes from now on until it is told so.
    fault(stack.guard(), Faults { hang: true, times: Some(1), ..Faults::default() });
    model.stream_head().await;
    for word in ["How", " to", " build", " a", " bomb", " at", " home", " today"] {
        model.token(word).await;
    }
    eventually("the output guard is asked", async || calls(&stack).1.first().cloned()).await;
    for _ in 0..100 {
        model.token(" more").await;
    }
    let mut response = Box::pin(client.response());
    assert!(tokio::time::timeout(SETTLED, &mut response).await.is_err(), "a head before any verdict");
    drop(response);
    // The client leaves: the model is left, too.
    model.closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_json_answer_that_is_unsafe_is_replaced() {
    let stack = Stack::builder()
        .edit(ALICE_INPUT, "input_guard: {mode: off}")
        .edit(BOB_INPUT, "input_guard: {mode: off}")
        .start()
        .await;
    for key in [ALICE, BOB] {
        let response = stack.chat(key, &ask(&hiding_at(30))).await;
        assert_eq!(response.status, 200);
        let trace = response.trace();
        let body = response.into_json().await;
        let choice = &body["choices"][0];
        assert_eq!(
            (&choice["message"]["content"], &choice["finish_reason"]),
            (&json!(REFUSAL), &json!("content_filter"))
        );
        assert!(!body.to_string().contains("bomb") && !body.to_string().contains("fine"), "{body}");
        assert_eq!(body["usage"]["completion_tokens"].as_u64().map(|tokens| tokens > 70), Some(true), "{body}");
        assert_eq!(stack.record(&trace).await["reason"], "output_blocked");

        let body = json!({"message": hiding_at(3)});
        let answer = stack.post("/chat").key(key).json(&body).send().await.into_json().await;
        assert_eq!(answer, json!({"answer": REFUSAL}), "{key}");
        let request = stack.post("/chat").key(ALICE).header("accept", "text/event-stream").json(&body);
        let streamed = request.send().await.events().all().await;
        let pieces: String = streamed.events.iter().filter_map(|event| event["answer"].as_str()).collect();
        assert!(streamed.done && pieces.ends_with(REFUSAL) && !pieces.contains("bomb"), "{pieces}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_answer_is_judged_once_where_the_policy_says_full() {
    let stack = Stack::builder().edit(HOLD, &HOLD.replace("hold", "full")).start().await;
    let streamed = stack.alice(&stream("count to 200")).await.events().all().await;
    assert_eq!(streamed.whole(), count(200));
    assert_eq!(calls(&stack).1.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_choice_and_everything_in_it_is_judged() {
    let vllm = Scripted::start().await;
    let stack = Stack::builder().env("VLLM_URL", &vllm.url).start().await;
    let hiding = [
        json!({"content": UNSAFE}),
        json!({"reasoning_content": UNSAFE}),
        json!({"reasoning": UNSAFE}),
        json!({"refusal": UNSAFE}),
        json!({"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "run", "arguments": UNSAFE}}]}),
        json!({"function_call": {"name": "run", "arguments": UNSAFE}}),
    ];
    for hidden in hiding {
        for choice in [0, 1] {
            let body = with(stream("Hello"), json!({"n": 2}));
            let client = stack.post(CHAT).key(ALICE).json(&body).open().await;
            let mut model = vllm.request().await;
            model.stream_head().await;
            for index in [0, 1] {
                let mut event = delta(json!({"content": "Well. "}), Value::Null);
                event["choices"][0]["index"] = json!(index);
                model.event(&event).await;
            }
            let mut event = delta(hidden.clone(), Value::Null);
            event["choices"][0]["index"] = json!(choice);
            model.event(&event).await;
            for index in [0, 1] {
                let mut event = delta(json!({}), json!("stop"));
                event["choices"][0]["index"] = json!(index);
                model.event(&event).await;
            }
            model.chunk(b"data: [DONE]\n\n").await;
            model.end().await;
            let streamed = client.response().await.events().all().await;
            let place = format!("{hidden} in choice {choice}");
            assert!(streamed.done, "{place}: {streamed:?}");
            assert!(!format!("{:?}", streamed.events).contains("bomb"), "{place}: {streamed:?}");
            assert_eq!(streamed.finish_reasons(), ["content_filter", "content_filter"], "{place}: {streamed:?}");
            for index in [0, 1] {
                assert!(streamed.text_of(index).ends_with(REFUSAL), "{place}: {streamed:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_choices_come_whole_when_they_are_safe() {
    let stack = Stack::start().await;
    for key in [ALICE, BOB, OPEN] {
        let streamed = stack.chat(key, &with(stream("count to 30"), json!({"n": 2}))).await.events().all().await;
        assert!(streamed.done, "{key}");
        assert_eq!((streamed.text_of(0), streamed.text_of(1)), (count(30), count(30)), "{key}");
        assert_eq!(streamed.finish_reasons(), ["stop", "stop"], "{key}");
    }
}
