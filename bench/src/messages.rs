//! What is sent: requests, answers, events.

use std::io::Write as _;

use crate::guard::OFFENCE;
use crate::http;
use crate::load::Plan;

/// The model in requests and answers; the gateway's public name of it, so that nothing has to be renamed.
pub(crate) const MODEL: &str = "meta-llama/Meta-Llama-3-8B-Instruct";

/// What stands before an event's stamp: in its fingerprint where the text has to be a token's (of what is no text, judged
/// answers keep that), else in its text.
const STAMPED: [&[u8]; 2] = [b"\"fp_", b"\" t"];

/// Who sent an event, which of its stream it is, and when (microseconds of the rig's clock).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) token: usize,
    pub(crate) sequence: u32,
    pub(crate) sent_us: u64,
}

impl Stamp {
    /// Of an event.
    pub(crate) fn of(event: &[u8]) -> Option<Self> {
        STAMPED.iter().find_map(|before| {
            let at = http::find(event, before)?.checked_add(before.len())?;
            Self::parse(event.get(at..)?)
        })
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let field = |from: usize, to: usize| core::str::from_utf8(bytes.get(from..to)?).ok();
        Some(Self {
            token: field(0, 6)?.parse().ok()?,
            sequence: field(6, 12)?.parse().ok()?,
            sent_us: field(12, 24)?.parse().ok()?,
        })
    }
}

/// A request whose `seed` can be changed in place: each is a miss in the cache, while its text, and with it the guard's
/// verdict, stays the same, unless it is to be `fresh`.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    bytes: Vec<u8>,
    /// Where its digits stand.
    seeds_at: Vec<usize>,
    seed: u64,
}

const SEED_DIGITS: usize = 9;

impl Request {
    /// A chat request with a body of 1.3 KB.
    pub(crate) fn chat(plan: &Plan, seed: u64) -> Self {
        let Plan { key, stream, headers, fresh, .. } = plan;
        let text = "The quick brown fox jumps over the lazy dog and explains why it did so. ".repeat(14);
        let system = "You are a helpful assistant. Answer briefly, in plain words, and say when you do not know.";
        let mut body = format!(r#"{{"model":"{MODEL}","stream":{stream},"temperature":0,"max_tokens":256,"seed":"#);
        let digits = "1".repeat(SEED_DIGITS);
        let mut seeds_in_body = vec![body.len()];
        body.push_str(&digits);
        body.push_str(&format!(r#","messages":[{{"role":"system","content":"{system}"}},{{"role":"user","content":""#));
        if *fresh {
            seeds_in_body.push(body.len());
            body.push_str(&digits);
        }
        body.push_str(&format!(r#"{text}"}}]}}"#));
        let accept = if *stream { "text/event-stream" } else { "application/json" };
        let mut head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n\
             accept: {accept}\r\naccept-encoding: identity\r\nuser-agent: parapet-bench\r\ncontent-length: {}\r\n",
            body.len()
        );
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let seeds_at = seeds_in_body.into_iter().map(|at| head.len().saturating_add(at)).collect();
        Self { bytes: [head, body].concat().into_bytes(), seeds_at, seed }
    }

    /// The last request's.
    pub(crate) const fn seed(&self) -> u64 {
        self.seed
    }

    /// The next request.
    pub(crate) fn next(&mut self) -> &[u8] {
        self.seed = self.seed.wrapping_add(1);
        for &at in &self.seeds_at {
            let mut rest = self.seed;
            let end = at.saturating_add(SEED_DIGITS);
            // The first digit stays: a number does not begin with 0.
            for digit in self.bytes.get_mut(at.saturating_add(1)..end).unwrap_or_default().iter_mut().rev() {
                *digit = b'0'.wrapping_add(u8::try_from(rest % 10).unwrap_or(0));
                rest /= 10;
            }
        }
        &self.bytes
    }
}

fn response(content_type: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// A whole answer with a body of 0.7 KB.
pub(crate) fn answer() -> Vec<u8> {
    let text = "It jumps because it can, and because nothing in its way is worth going around. ".repeat(5);
    let body = format!(
        r#"{{"id":"chatcmpl-bench","object":"chat.completion","created":1767225600,"model":"{MODEL}","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"logprobs":null,"finish_reason":"stop"}}],"usage":{{"prompt_tokens":270,"completion_tokens":90,"total_tokens":360}}}}"#
    );
    response("application/json", &body)
}

/// Llama Guard's one token, as vLLM's `/v1/completions` gives it.
pub(crate) fn verdict(word: &str, other: &str) -> Vec<u8> {
    let body = format!(
        r#"{{"id":"cmpl-bench","object":"text_completion","created":1767225600,"model":"guard","choices":[{{"index":0,"text":"{word}","logprobs":{{"tokens":["{word}"],"token_logprobs":[-0.0001],"top_logprobs":[{{"{word}":-0.0001,"{other}":-9.2}}],"text_offset":[0]}},"finish_reason":"length"}}],"usage":{{"prompt_tokens":400,"completion_tokens":1,"total_tokens":401}}}}"#
    );
    response("application/json", &body)
}

fn push_chunk(out: &mut Vec<u8>, data: &[u8]) {
    let _ = write!(out, "{:x}\r\n", data.len());
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// The second call's answer: unsafe, and why.
pub(crate) fn categories() -> Vec<u8> {
    response(
        "application/json",
        r#"{"id":"cmpl-bench","object":"text_completion","created":1767225600,"model":"guard","choices":[{"index":0,"text":"unsafe\nS1","logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":400,"completion_tokens":4,"total_tokens":404}}"#,
    )
}

fn event(delta: &str, finish: &str) -> String {
    event_of("", delta, finish)
}

fn event_of(fingerprint: &str, delta: &str, finish: &str) -> String {
    format!(
        "data: {{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1767225600,\"model\":\"{MODEL}\",{fingerprint}\"choices\":[{{\"index\":0,\"delta\":{{{delta}}},\"logprobs\":null,\"finish_reason\":{finish}}}]}}\n\n"
    )
}

/// A stream's head, with the event that opens the message.
pub(crate) fn stream_start() -> Vec<u8> {
    let mut out = b"HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    push_chunk(&mut out, event("\"role\":\"assistant\",\"content\":\"\"", "null").as_bytes());
    out
}

/// One token.
pub(crate) fn stream_token(stamp: Stamp) -> Vec<u8> {
    let text = format!("\"content\":\" t{:06}{:06}{:012}\"", stamp.token, stamp.sequence, stamp.sent_us);
    let mut out = Vec::with_capacity(320);
    push_chunk(&mut out, event(&text, "null").as_bytes());
    out
}

/// One token of five bytes, as tokens of a language are; with `offends` the text that the guard finds unsafe.
pub(crate) fn stream_word(stamp: Stamp, sentence: u32, offends: bool) -> Vec<u8> {
    const WORDS: [&str; 7] = [" they", " want", " some", " good", " food", " from", " here"];
    let number = stamp.sequence.saturating_add(1);
    let ends = number.checked_rem(sentence) == Some(0);
    let word = if ends { " too." } else { WORDS.get(number as usize % WORDS.len()).copied().unwrap_or_default() };
    let text = if offends {
        format!("\"content\":\"{OFFENCE}{:06}\"", stamp.token)
    } else {
        format!("\"content\":\"{word}\"")
    };
    let fingerprint =
        format!("\"system_fingerprint\":\"fp_{:06}{:06}{:012}\",", stamp.token, stamp.sequence, stamp.sent_us);
    let mut out = Vec::with_capacity(320);
    push_chunk(&mut out, event_of(&fingerprint, &text, "null").as_bytes());
    out
}

pub(crate) fn stream_end() -> Vec<u8> {
    let mut out = Vec::new();
    push_chunk(&mut out, event("", "\"stop\"").as_bytes());
    push_chunk(&mut out, b"data: [DONE]\n\n");
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_come_back_from_their_event() {
        let stamp = Stamp { token: 17, sequence: 4711, sent_us: 123_456_789_012 };
        for event in [stream_token(stamp), stream_word(stamp, 20, false), stream_word(stamp, 20, true)] {
            assert_eq!(Stamp::of(&event), Some(stamp));
        }
    }

    #[test]
    fn requests_differ_in_their_seed_only_and_are_sound() {
        let mut request = Request::chat(&Plan { key: "k".to_owned(), ..Plan::default() }, 0);
        let (first, second) = (request.next().to_vec(), request.next().to_vec());
        assert_eq!(first.iter().zip(&second).filter(|(a, b)| a != b).count(), 1);
        let head = http::head(&first).unwrap();
        let body = &first[head.bytes..];
        assert_eq!(head.body, http::Framing::Length(body.len()));
        let body: serde_json::Value = serde_json::from_slice(body).unwrap();
        assert_eq!(body["seed"], 100_000_001);
    }

    #[test]
    fn fresh_requests_differ_in_their_text_too() {
        let mut request = Request::chat(&Plan { fresh: true, ..Plan::default() }, 0);
        let (first, second) = (request.next().to_vec(), request.next().to_vec());
        assert_eq!(first.iter().zip(&second).filter(|(a, b)| a != b).count(), 2);
        let body: serde_json::Value = serde_json::from_slice(&first[http::head(&first).unwrap().bytes..]).unwrap();
        assert!(body["messages"][1]["content"].as_str().unwrap().starts_with("100000001The quick"));
    }
}
