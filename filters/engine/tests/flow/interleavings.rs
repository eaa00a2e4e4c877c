//! Every interleaving of verdicts, the sidecar's answer and the provider's chunks, however they are cut.

use parapet_engine::flow::{Call, End};
use parapet_engine::guard::Side;
use proptest::prelude::*;

use crate::host::{Host, Worker, completion};
use crate::world::{Piece, SSE, question, stream};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Well,
    /// No finish reason, no `[DONE]`.
    Cut,
    Error,
}

/// One exchange, and the order in which the outside acts.
#[derive(Debug, Clone)]
struct Play {
    input: &'static str,
    input_is_safe: bool,
    output: &'static str,
    windows: Vec<u32>,
    /// `POST /chat` instead of OpenAI's.
    chat: bool,
    usage: bool,
    /// The provider calls the model as the client does, so that its bytes pass as they are.
    same_name: bool,
    crlf: bool,
    pieces: Vec<Piece>,
    ending: Ending,
    cuts: Vec<usize>,
    ends_with_last: bool,
    /// Which of the possible acts comes next, step by step.
    order: Vec<usize>,
}

fn body() -> impl Strategy<Value = Vec<Piece>> {
    let piece = prop_oneof![
        8 => Just(Piece::Text("w".into())),
        1 => Just(Piece::Text("BAD".into())),
        1 => Just(Piece::Reasoning("r".into())),
        1 => Just(Piece::Tool("t".into())),
        1 => Just(Piece::Comment),
        1 => Just(Piece::Role),
    ];
    // Each text is told from every other, and has characters of two and four bytes.
    let number = |(i, piece): (usize, Piece)| match piece {
        Piece::Text(word) => Piece::Text(format!("{word}{i:02}é😀 ")),
        Piece::Reasoning(word) => Piece::Reasoning(format!("{word}{i:02}é ")),
        Piece::Tool(word) => Piece::Tool(format!("{word}{i:02}é ")),
        other => other,
    };
    prop::collection::vec(piece, 0..14).prop_map(move |pieces| pieces.into_iter().enumerate().map(number).collect())
}

fn play() -> impl Strategy<Value = Play> {
    let policy = (
        prop::sample::select(vec!["off", "parallel", "blocking"]),
        prop::bool::weighted(0.85),
        prop::sample::select(vec!["off", "hold", "full", "async"]),
        prop::collection::vec(1_u32..5, 1..3),
    );
    let wire = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let ending = prop::sample::select(vec![Ending::Well, Ending::Well, Ending::Well, Ending::Cut, Ending::Error]);
    let cuts = prop::collection::vec(0_usize..10_000, 0..20);
    let order = prop::collection::vec(0_usize..12, 1..40);
    (policy, wire, body(), ending, any::<bool>(), cuts, any::<bool>(), order).prop_map(
        |(
            (input, input_is_safe, output, windows),
            wire,
            mut pieces,
            ending,
            last_text,
            cuts,
            ends_with_last,
            order,
        )| {
            let (chat, usage, same_name, crlf) = wire;
            pieces.insert(0, Piece::Role);
            match ending {
                Ending::Well if last_text => pieces.extend([Piece::LastText("zz ".into()), Piece::Usage, Piece::Done]),
                Ending::Well => pieces.extend([Piece::Finish("stop"), Piece::Usage, Piece::Done]),
                Ending::Cut => {}
                Ending::Error => pieces.extend([Piece::Error, Piece::Done]),
            }
            Play {
                input,
                input_is_safe,
                output,
                windows,
                chat,
                usage,
                same_name,
                crlf,
                pieces,
                ending,
                cuts,
                ends_with_last,
                order,
            }
        },
    )
}

impl Play {
    fn worker(&self) -> Worker {
        Worker::new(&format!(
            r#"{{"input_guard": {{"mode": "{}"}}, "output_guard": {{"mode": "{}", "window_tokens": {:?}}},
                "cache": {{"ttl_s": 60}}, "limits": {{"requests_per_minute": 100, "tokens_per_minute": 100000}}}}"#,
            self.input, self.output, self.windows
        ))
    }

    fn ask<'a>(&self, worker: &'a mut Worker) -> Host<'a> {
        let mut host = worker.open();
        if self.chat {
            host.request("/chat", &[("accept", "text/event-stream")], br#"{"message": "hello"}"#);
        } else {
            let options = format!(r#""stream_options":{{"include_usage":{}}},"messages""#, self.usage);
            host.request("/v1/chat/completions", &[], question(true).replace(r#""messages""#, &options).as_bytes());
        }
        host
    }

    fn raw(&self, piece: &Piece) -> Vec<u8> {
        let event = piece.event(if self.same_name { "m" } else { "x" });
        if self.crlf { event.replace('\n', "\r\n") } else { event }.into_bytes()
    }

    /// Pieces of the provider's stream, the last of which may end it.
    fn chunks(&self) -> Vec<(Vec<u8>, bool)> {
        let bytes: Vec<u8> = self.pieces.iter().flat_map(|piece| self.raw(piece)).collect();
        let mut cuts: Vec<usize> = self.cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut chunks: Vec<_> = cuts.windows(2).map(|cut| (bytes[cut[0]..cut[1]].to_vec(), false)).collect();
        chunks.retain(|(chunk, _)| !chunk.is_empty());
        match chunks.last_mut() {
            Some(last) if self.ends_with_last => last.1 = true,
            _ => chunks.push((Vec::new(), true)),
        }
        chunks
    }

    /// What the client gets of a safe answer: the provider's bytes after the documented edits.
    fn expected(&self) -> Vec<u8> {
        let edited = |piece: &Piece| -> Vec<u8> {
            match piece {
                Piece::Text(text) | Piece::LastText(text) if self.chat => {
                    format!("data: {}\n\n", serde_json::json!({"answer": text})).into_bytes()
                }
                Piece::Done if self.output == "off" => self.raw(piece),
                Piece::Done => piece.event("m").into_bytes(),
                _ if self.chat => Vec::new(),
                Piece::Usage if !self.usage => Vec::new(),
                // Judged, it is written anew.
                Piece::Comment if self.output != "off" => b": keep-alive\n\n".to_vec(),
                _ if self.output != "off" => piece.event("m").into_bytes(),
                Piece::Comment => self.raw(piece),
                _ if self.same_name => self.raw(piece),
                _ => stream(core::slice::from_ref(piece), "m"),
            }
        };
        self.pieces.iter().flat_map(edited).collect()
    }

    const fn holds(&self) -> bool {
        matches!(self.output.as_bytes(), b"hold" | b"full")
    }

    fn is_bad(&self) -> bool {
        self.output != "off" && self.words().any(|word| word.starts_with("BAD"))
    }

    fn words(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(Piece::word)
    }
}

/// A judged chunk bears the request's own id.
fn with_id_of_provider(text: &str) -> String {
    let mut ids = text.split(r#""id":"chatcmpl-"#);
    let first = ids.next().unwrap_or_default().to_owned();
    ids.fold(first, |text, rest| text + r#""id":"c"# + rest.get(36..).unwrap())
}

/// What the guard has said so far.
#[derive(Default)]
struct Said {
    input_passed: bool,
    /// The prompts of all output calls that passed.
    passed: String,
    blocked: bool,
}

fn act(play: &Play, host: &mut Host<'_>, call: Call, said: &mut Said) {
    let prompt = host.pending.iter().find(|callout| callout.call == call).map(|callout| callout.body.clone()).unwrap();
    let prompt = serde_json::from_slice::<serde_json::Value>(&prompt).ok();
    let prompt = prompt.map(|request| request["prompt"].as_str().unwrap().to_owned()).unwrap_or_default();
    match call {
        Call::CacheLookup => host.answer(call, 404, b""),
        Call::Verdict(Side::Input) => {
            said.input_passed = play.input_is_safe;
            host.verdict(call, if play.input_is_safe { "safe" } else { "unsafe" });
        }
        Call::Verdict(Side::Output) => {
            let unsafe_ = prompt.contains("BAD");
            if !unsafe_ {
                said.passed.push_str(&prompt);
            }
            host.answer(call, 200, &completion(if unsafe_ { "unsafe" } else { "safe" }));
        }
        Call::Categories(Side::Input) => host.verdict(call, "unsafe\nS1"),
        Call::Categories(Side::Output) => {
            said.blocked = true;
            host.verdict(call, "unsafe\nS1");
        }
    }
}

/// Runs until nothing can happen any more, or for so many steps, and checks after each.
fn run(play: &Play, host: &mut Host<'_>, steps: usize) -> Result<Said, TestCaseError> {
    let mut said = Said { input_passed: play.input == "off", ..Said::default() };
    let mut chunks = play.chunks().into_iter();
    let (mut head_came, mut ended) = (false, false);
    for step in 0..steps {
        let may_come = host.sent.is_some() && host.reply.is_none() && !host.aborted && !ended;
        let acts = host.pending.len() + usize::from(may_come);
        if acts == 0 {
            break;
        }
        let choice = play.order[step % play.order.len()] % acts;
        match host.pending.get(choice).map(|callout| callout.call) {
            Some(call) => act(play, host, call, &mut said),
            None if !head_came => {
                head_came = true;
                host.answers_with(SSE);
            }
            None => {
                let (chunk, ends) = chunks.next().unwrap();
                ended = ends;
                host.response_body(&chunk, ends);
            }
        }
        let text = host.text();
        prop_assert!(said.input_passed || !host.response.head_out, "the head left before the input verdict");
        if play.holds() {
            let shows = host.response.head_out && play.ending == Ending::Well && play.words().next().is_some();
            prop_assert!(
                !shows || said.blocked || !said.passed.is_empty(),
                "the head left before the first text passed"
            );
            for word in play.words().filter(|word| text.contains(word.trim_end())) {
                prop_assert!(said.passed.contains(word.trim_end()), "{word} was not judged: {text}");
            }
        }
        prop_assert!(
            !host.aborted
                || (host.response.head_out && text.ends_with("data: [DONE]\n\n"))
                || play.ending != Ending::Well
        );
        prop_assert!(host.sent.is_none() || play.input != "blocking" || said.input_passed);
    }
    Ok(said)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_order_and_the_cuts_nothing_unjudged_leaves_and_nothing_is_stuck(play in play()) {
        let mut worker = play.worker();
        let mut host = play.ask(&mut worker);
        run(&play, &mut host, usize::MAX)?;
        prop_assert!(!host.flow.request_waits() && !host.flow.response_waits());
        prop_assert!(host.reply.is_some() || host.response.complete, "the client still waits: {}", host.text());
        let text = host.text();
        let input_blocks = play.input != "off" && !play.input_is_safe;
        if input_blocks {
            prop_assert!(host.reply.is_some() && !play.words().any(|word| text.contains(word)));
        } else if play.ending == Ending::Well && !play.is_bad() {
            prop_assert_eq!(with_id_of_provider(&text), String::from_utf8(play.expected()).unwrap());
        } else if play.ending == Ending::Well {
            prop_assert!(text.ends_with("data: [DONE]\n\n"), "{}", text);
            let refuses = if play.chat { "I'm unable" } else { r#""finish_reason":"content_filter""# };
            prop_assert!(text.contains(refuses), "{}", text);
            prop_assert!(play.output == "async" || !text.contains(r#""finish_reason":"stop""#));
        } else {
            prop_assert!(play.is_bad() || !text.contains("[DONE]"), "{}", text);
        }
        let record = host.end(End::default());
        prop_assert!(!record.client_aborted);
        prop_assert!(!record.truncated || play.ending != Ending::Well);
        prop_assert!(record.truncated || record.reason.as_deref() != Some("upstream_error"));
        let keeps = play.ending == Ending::Well && !play.is_bad() && !input_blocks;
        prop_assert!(keeps || record.cache.is_none_or(|cache| cache.store_s.is_none()));
    }

    #[test]
    fn a_client_may_leave_at_any_point_and_nothing_unjudged_is_remembered(play in play(), steps in 0_usize..40) {
        let mut worker = play.worker();
        let mut host = play.ask(&mut worker);
        let said = run(&play, &mut host, steps)?;
        let answered = host.reply.is_some() || host.response.complete;
        let record = host.end(End::default());
        prop_assert!(answered || record.client_aborted || record.reason.is_some() || record.status == 200);
        let hit = play.ask(&mut worker).reply.is_some_and(|reply| reply.status == 200);
        let judged = play.output == "off" || play.words().all(|word| said.passed.contains(word.trim_end()));
        prop_assert!(!hit || (said.input_passed && judged && !said.blocked && play.ending == Ending::Well));
        prop_assert_eq!(hit, record.cache.is_some_and(|cache| cache.store_s.is_some()));
    }
}
