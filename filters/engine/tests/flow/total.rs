//! Any event in any state: nothing panics, and the books stay even.

use parapet_engine::flow::{Call, End, Event, Head};
use parapet_engine::guard::Side;
use parapet_engine::quota::Decision;
use proptest::prelude::*;

use crate::host::{Worker, completion};
use crate::world::{Piece, SSE, question, stream, whole};

#[derive(Debug, Clone)]
enum Act {
    Head(usize, bool),
    TooLarge,
    Body(Vec<u8>),
    Reserved(bool),
    Answered(Call, u16, Vec<u8>),
    ResponseHead(u16, bool, bool),
    ResponseBody(Vec<u8>, bool),
    TakeBody,
}

fn act() -> impl Strategy<Value = Act> {
    let calls = vec![
        Call::Verdict(Side::Input),
        Call::Categories(Side::Input),
        Call::Verdict(Side::Output),
        Call::Categories(Side::Output),
        Call::CacheLookup,
    ];
    let verdicts = ["safe", "unsafe", "unsafe\nS1", "what"].map(completion);
    let answer = prop_oneof![
        prop::sample::select(verdicts.to_vec()),
        prop::collection::vec(any::<u8>(), 0..30),
        Just(br#"{"expires_s":9999999999,"answers":[{"content":"hi"}]}"#.to_vec()),
    ];
    let pieces = [
        vec![Piece::Role, Piece::Text("a".into())],
        vec![Piece::Text("b. ".into()), Piece::Comment, Piece::LastText("c".into())],
        vec![Piece::Finish("stop"), Piece::Usage, Piece::Done],
        vec![Piece::Error],
    ];
    let chunk = prop_oneof![
        prop::sample::select(pieces.map(|pieces| stream(&pieces, "x")).to_vec()),
        prop::collection::vec(any::<u8>(), 0..30),
        Just(whole("x", "hi").into_bytes()),
        Just(b"data: {\"choices\":[{\"index\":7000,\"delta\":{\"content\":\"x\",\"tool_calls\":[{\"index\":9999,\"function\":{\"name\":\"f\"}}]}}]}\n\n".to_vec()),
    ];
    let bodies = [question(true), question(false), "{}".to_owned(), r#"{"message":"hello"}"#.to_owned()];
    let body = prop_oneof![
        prop::sample::select(bodies.map(String::into_bytes).to_vec()),
        prop::collection::vec(any::<u8>(), 0..30)
    ];
    prop_oneof![
        2 => (0_usize..6, prop::bool::weighted(0.1)).prop_map(|(path, ends)| Act::Head(path, ends)),
        1 => Just(Act::TooLarge),
        3 => body.prop_map(Act::Body),
        1 => any::<bool>().prop_map(Act::Reserved),
        6 => (prop::sample::select(calls), prop::sample::select(vec![0, 200, 200, 200, 404, 504]), answer)
            .prop_map(|(call, status, body)| Act::Answered(call, status, body)),
        3 => (prop::sample::select(vec![0, 100, 200, 200, 200, 204, 404, 503]), any::<bool>(), prop::bool::weighted(0.1))
            .prop_map(|(status, streams, ends)| Act::ResponseHead(status, streams, ends)),
        6 => (chunk, prop::bool::weighted(0.2)).prop_map(|(chunk, ends)| Act::ResponseBody(chunk, ends)),
        1 => Just(Act::TakeBody),
    ]
}

const PATHS: [&str; 6] = ["/v1/chat/completions", "/v1/chat/completions", "/chat", "/feedback", "/v1/models", "/?"];

fn perform(host: &mut crate::host::Host<'_>, act: &Act) {
    match act {
        Act::Head(path, ends) => {
            let head = [
                (":method", "POST"),
                (":path", PATHS[*path]),
                ("x-api-key", "sk-demo-alice"),
                ("accept", "text/event-stream"),
            ];
            let head = head.map(|(name, value)| (name, value.as_bytes()));
            host.step(Event::RequestHead { head: Head(&head), ends: *ends, entropy: [0; 10] });
        }
        Act::TooLarge => host.step(Event::RequestTooLarge),
        Act::Body(body) => host.step(Event::RequestBody(body)),
        Act::Reserved(granted) => {
            host.step(Event::Reserved(Decision { granted: *granted, retry_after_s: 1, requests: None, tokens: None }));
        }
        Act::Answered(call, status, body) => {
            host.pending.retain(|callout| callout.call != *call);
            host.step(Event::Answered { call: *call, status: *status, body });
        }
        Act::ResponseHead(status, streams, ends) => {
            let content_type = if *streams { SSE } else { "application/json" };
            let status = status.to_string();
            let head = [(":status", status.as_bytes()), ("content-type", content_type.as_bytes())];
            host.step(Event::ResponseHead { head: Head(&head), ends: *ends });
        }
        Act::ResponseBody(bytes, ends) => host.step(Event::ResponseBody { bytes, ends: *ends }),
        Act::TakeBody => drop(host.flow.take_body()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_event_in_any_state_panics_and_the_end_writes_one_record(
        starts in any::<bool>(),
        acts in prop::collection::vec(act(), 0..40),
        policy in prop::sample::select(vec![
            "{}",
            r#"{"input_guard":{"mode":"parallel"},"output_guard":{"mode":"hold","window_tokens":[1]},"limits":{"requests_per_minute":5},"cache":{"ttl_s":60}}"#,
            r#"{"input_guard":{"mode":"blocking","on_failure":"open"},"output_guard":{"mode":"async","on_failure":"open","window_tokens":[2]},"limits":{"tokens_per_minute":500}}"#,
            r#"{"output_guard":{"mode":"full"},"cache":{"ttl_s":60}}"#,
        ]),
    ) {
        let mut worker = Worker::new(policy);
        let mut host = worker.open();
        if starts {
            perform(&mut host, &Act::Head(0, false));
            perform(&mut host, &Act::Body(question(true).into_bytes()));
        }
        for act in &acts {
            // Answers come whether they were asked for or not.
            host.pending.clear();
            perform(&mut host, act);
            let _ = (host.flow.request_waits(), host.flow.response_waits(), host.flow.body_mode());
            let _ = (host.flow.wants_body(), host.flow.end_questions());
        }
        host.end(End { details: Some(b"\xff"), failed_attempts: Some(b"{") });
        prop_assert!(!host.flow.request_waits() && !host.flow.response_waits());
    }
}
