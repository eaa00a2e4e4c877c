use super::*;

fn chunk(content: &str) -> String {
    format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{content}\"}}}}]}}\n\n")
}

const ROLE: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
const ERROR: &str = "data: {\"error\":{\"message\":\"x\",\"code\":500}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

fn gates(stream: &str) -> Vec<Gate> {
    [stream.len().max(1), 1, 7]
        .into_iter()
        .map(|size| {
            let mut gate = FirstToken::default();
            assert_eq!(gate.on_head(200, true, false), Gate::Hold);
            stream
                .as_bytes()
                .chunks(size)
                .map(|bytes| gate.on_body(bytes, false))
                .find(|gate| *gate != Gate::Hold)
                .unwrap_or_else(|| gate.on_body(b"", true))
        })
        .collect()
}

#[test]
fn only_a_token_opens_the_gate_in_any_chunking() {
    let fail = |status, outcome| Gate::Fail { status, outcome };
    for (stream, expected) in [
        (format!("{ROLE}{}", chunk("hi")), Gate::Open),
        (format!(": keep-alive\n\n{ROLE}: keep-alive\n\n"), fail(502, "empty")),
        (format!("{ROLE}{ERROR}{DONE}"), fail(503, "error_event")),
        (format!("{ROLE}{DONE}"), fail(502, "empty")),
        ("<html>\n\ndata: <html>\n\n".to_owned(), fail(502, "error_event")),
        (
            ROLE.to_owned() + "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"length\"}]}\n\n",
            Gate::Open,
        ),
        (String::new(), fail(502, "empty")),
    ] {
        assert!(gates(&stream).iter().all(|gate| *gate == expected), "{stream} {:?}", gates(&stream));
    }
}

#[test]
fn an_ask_comes_back_as_it_was_and_nothing_else_is_one() {
    for hedge_percent in [None, Some(5)] {
        let terms =
            Terms { request: u64::MAX, limit_ms: 5000, hedge_percent, give_up_ms: hedge_percent.map(u64::from) };
        let ask = Ask { model: 3, link: 1, body_bytes: 700, stream: hedge_percent.is_some(), terms };
        assert_eq!(Ask::from_bytes(&ask.to_bytes()), Some(ask));
    }
    assert_eq!(Ask::from_bytes(b"[0,17]"), None);
}

#[test]
fn failures_are_told_line_by_line_and_no_more_than_are_kept() {
    let attempt = |status| Attempt {
        provider: "vllm".to_owned(),
        model: "meta llama/é".to_owned(),
        start_us: 1_795_509_895_000_000,
        end_us: Some(1_795_509_896_000_000),
        status,
        outcome: "status".to_owned(),
        ..Attempt::default()
    };
    let mut noted = Vec::new();
    (500..600).for_each(|status| note_failed(&mut noted, &attempt(status)));
    let told = failed(&noted);
    assert_eq!(told.len(), 16);
    let json = |attempt: &Attempt| serde_json::to_string(attempt).unwrap();
    assert_eq!((json(&told[0]), told[15].status), (json(&attempt(500)), 515));
    for odd in [&b"x"[..], b"a\tb\t1\t2\t3", b"a\tb\t1\t2\tx\ty", b"a\tb\t1\t2\t3\ty\tz", b"\xff\tb\t1\t2\t3\ty"] {
        assert!(failed(odd).is_empty());
    }
}

#[test]
fn only_a_single_provider_is_not_asked_again_about_its_limit() {
    let config = Config::parse(
        br#"{"providers": [{"name": "a", "cluster": "a", "authority": "a"}, {"name": "b", "cluster": "b", "authority": "b"}],
        "models": [{"name": "m", "cluster": "c", "chain": [{"provider": "a", "model": "x"}, {"provider": "b", "model": "y"}]}],
        "keys": [], "policies": {}}"#,
    )
    .unwrap();
    let terms = Terms { request: 1, limit_ms: 1, hedge_percent: None, give_up_ms: None };
    for (link, provider, is_only) in [(0, "a", false), (0, "b", false), (1, "b", true)] {
        let ask = Ask { model: 0, link, body_bytes: 1, stream: true, terms };
        assert_eq!(target(&config, ask, provider).unwrap().is_only, is_only, "{link} {provider}");
    }
    assert!(retry_is_vain(429) && !retry_is_vain(503));
}

#[test]
fn the_head_decides_where_there_is_no_200() {
    for (status, expected) in [
        (500, Gate::Open),
        (429, Gate::Open),
        (400, Gate::Open),
        (401, Gate::Fail { status: 502, outcome: "status" }),
        (408, Gate::Fail { status: 504, outcome: "status" }),
        (302, Gate::Fail { status: 502, outcome: "status" }),
    ] {
        assert_eq!(FirstToken::default().on_head(status, false, false), expected, "{status}");
    }
}

#[test]
fn an_answer_of_the_other_kind_is_none() {
    for (streams, is_event_stream) in [(true, true), (true, false), (false, true), (false, false)] {
        let gate = FirstToken::new(streams).on_head(200, is_event_stream, false);
        assert_eq!(gate == Gate::Hold, streams == is_event_stream, "{streams} {is_event_stream}");
    }
}

#[test]
fn a_json_answer_counts_when_it_says_something() {
    for (body, open) in [
        (r#"{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}"#, true),
        (r#"{"choices":[{"message":{"content":""},"finish_reason":"stop"}]}"#, false),
        (r#"{"choices":[{"message":{"content":""},"finish_reason":"length"}]}"#, true),
        (r#"{"choices":[]}"#, false),
        (r#"{"choices":[{"mess"#, false),
        (r#"{"error":{"message":"x"}}"#, false),
    ] {
        let mut gate = FirstToken::default();
        assert_eq!(gate.on_head(200, false, false), Gate::Hold);
        assert_eq!(gate.on_body(b"", false), Gate::Hold);
        assert_eq!(gate.on_body(body.as_bytes(), true) == Gate::Open, open, "{body}");
    }
}
