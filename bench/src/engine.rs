//! The engine alone, natively, for `valgrind --tool=callgrind`: what a request costs in instructions, without Envoy.
//! `parapet-bench-engine SECTION KEY STREAM REQUESTS CHUNKS`: SECTION is a file with Parapet's section as JSON.

use std::io;

use parapet_engine::config::Config;
use parapet_engine::flow::{Context, Effect, End, Event, Flow, Head};
use parapet_engine::memory::Memory;
use parapet_engine::quota::{Buckets, Decision};

const MODEL: &str = "meta-llama/Meta-Llama-3-8B-Instruct";

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [section, key, stream, requests, chunks] = arguments.as_slice() else {
        return Err(io::Error::other("usage: parapet-bench-engine SECTION KEY json|sse REQUESTS CHUNKS"));
    };
    let config = Config::parse(&std::fs::read(section)?).map_err(|error| io::Error::other(error.to_string()))?;
    let (requests, chunks) = (number(requests)?, number(chunks)?);
    let mut memory = Memory::default();
    let mut written = 0;
    for request in 0..requests {
        written += one(&config, &mut memory, key, (stream == "sse").then_some(chunks), request);
    }
    let _ = std::fmt::Write::write_fmt(&mut String::new(), format_args!("{}", std::hint::black_box(written)));
    Ok(())
}

fn number(text: &str) -> io::Result<u64> {
    text.parse().map_err(io::Error::other)
}

fn head<'a>(pairs: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a [u8])> {
    pairs.iter().map(|(name, value)| (*name, value.as_bytes())).collect()
}

/// One request through all its steps; bytes of its record.
fn one(config: &Config, memory: &mut Memory, key: &str, chunks: Option<u64>, seed: u64) -> usize {
    let mut flow = Flow::default();
    let mut effects = Vec::with_capacity(8);
    let mut record = 0;
    let mut step = |flow: &mut Flow, event: Event<'_>| {
        effects.clear();
        flow.step(event, &mut Context { config, memory, now_us: 1_767_225_600_000_000 + seed, effects: &mut effects });
        // The quota says yes, as the shell would.
        let asked = effects.iter().find_map(|effect| match effect {
            Effect::Reserve { limits, tokens, .. } => Some((*limits, *tokens)),
            _ => None,
        });
        if let Some((limits, tokens)) = asked {
            let now_us = 1_767_225_600_000_000 + seed;
            let (_, decision): (_, Decision) = Buckets::full(&limits, now_us).reserve(&limits, tokens, now_us);
            flow.step(Event::Reserved(decision), &mut Context { config, memory, now_us, effects: &mut effects });
        }
        for effect in &effects {
            if let Effect::Record(bytes) = effect {
                record = bytes.len();
            }
        }
    };
    let bearer = format!("Bearer {key}");
    let asked = head(&[
        (":method", "POST"),
        (":path", "/v1/chat/completions"),
        (":authority", "127.0.0.1"),
        ("authorization", &bearer),
        ("content-type", "application/json"),
        ("x-request-id", "11111111-2222-4333-8444-555555555555"),
    ]);
    step(&mut flow, Event::RequestHead { head: Head(&asked), ends: false, entropy: [7; 10] });
    let text = "The quick brown fox jumps over the lazy dog and explains why it did so. ".repeat(14);
    // Written by hand: the rig's own share of the count has to be small.
    let stream = chunks.is_some();
    let body = [
        &*format!(
            r#"{{"model":"{MODEL}","stream":{stream},"temperature":0,"max_tokens":256,"seed":{seed},"messages":["#
        ),
        r#"{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":""#,
        &text,
        r#""}]}"#,
    ]
    .concat();
    step(&mut flow, Event::RequestBody(body.as_bytes()));
    // A guard that is asked says that all is well.
    let verdict = br#"{"choices":[{"index":0,"text":"safe","finish_reason":"length"}]}"#;
    step(
        &mut flow,
        Event::Answered {
            call: parapet_engine::flow::Call::Verdict(parapet_engine::guard::Side::Input),
            status: 200,
            body: verdict,
        },
    );
    let kind = if chunks.is_some() { "text/event-stream" } else { "application/json" };
    let answered = head(&[
        (":status", "200"),
        ("content-type", kind),
        ("x-parapet-provider", "vllm"),
        ("x-envoy-attempt-count", "1"),
    ]);
    step(&mut flow, Event::ResponseHead { head: Head(&answered), ends: false });
    match chunks {
        None => {
            let text = "It jumps because it can, and because nothing in its way is worth going around. ".repeat(5);
            let body = [
                &*format!(r#"{{"id":"c","object":"chat.completion","created":1,"model":"{MODEL}","choices":[{{"index":0,"#),
                r#""message":{"role":"assistant","content":""#,
                &text,
                r#""},"finish_reason":"stop"}],"usage":{"prompt_tokens":270,"completion_tokens":90,"total_tokens":360}}"#,
            ]
            .concat();
            step(&mut flow, Event::ResponseBody { bytes: body.as_bytes(), ends: true });
        }
        Some(chunks) => {
            let event = |delta: &str, finish: &str| {
                format!(
                    "data: {{\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"{MODEL}\",\"choices\":[{{\"index\":0,\"delta\":{{{delta}}},\"logprobs\":null,\"finish_reason\":{finish}}}]}}\n\n"
                )
            };
            let token = event("\"content\":\" token\"", "null");
            for _ in 0..chunks {
                step(&mut flow, Event::ResponseBody { bytes: token.as_bytes(), ends: false });
                let _ = flow.take_body();
            }
            let end = event("", "\"stop\"") + "data: [DONE]\n\n";
            step(&mut flow, Event::ResponseBody { bytes: end.as_bytes(), ends: true });
        }
    }
    let _ = flow.take_body();
    step(&mut flow, Event::Ended(End::default()));
    record
}
