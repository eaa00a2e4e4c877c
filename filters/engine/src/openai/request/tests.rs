use super::*;

fn refused(body: &str) -> (Reason, Option<String>) {
    let refusal = read(body.as_bytes()).unwrap_err();
    (refusal.reason, refusal.param)
}

#[test]
fn every_text_that_the_model_sees_is_read() {
    let body = r#"{"model":"m","messages":[
        {"role":"developer","content":"be \"kind\""},
        {"role":"user","name":"ann","content":[{"type":"text","text":"look"},{"type":"image_url","image_url":{"url":"data:"}}]},
        {"role":"assistant","content":null,"reasoning_content":"hm","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]},
        {"role":"assistant","tool_calls":[{"id":"2","type":"custom","custom":{"name":"g","input":"\u0078"}}]},
        {"role":"tool","tool_call_id":"1","content":"42"}],
        "temperature":0.5,"max_tokens":7,"stream":true,"stream_options":{"include_usage":true},"seed":1}"#;
    let conversation = read(body.as_bytes()).unwrap();
    let texts: Vec<(Role, String)> =
        conversation.turns.iter().map(|turn| (turn.role, turn.text().into_owned())).collect();
    assert_eq!(
        texts,
        [
            (Role::System, "be \"kind\"".to_owned()),
            (Role::User, "ann\nlook".to_owned()),
            (Role::Assistant, "hm\nf({})".to_owned()),
            (Role::Assistant, "g(x)".to_owned()),
            (Role::Tool, "42".to_owned()),
        ]
    );
    assert!(conversation.turns.iter().all(|turn| !turn.is_plain), "each has more about it than a text");
    assert!(conversation.stream && conversation.include_usage && !conversation.acts);
    assert_eq!((conversation.max_tokens, conversation.choices), (Some(7), 1));
    let params: Vec<&str> = conversation.params.iter().map(|(key, _)| &**key).collect();
    assert_eq!(params, ["temperature", "max_tokens", "seed"]);
}

#[test]
fn a_part_that_is_no_text_is_told_with_its_place() {
    let unseen = |parts: &str| {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"x"}},{{"role":"user","content":[{parts}]}}]}}"#);
        read(body.as_bytes()).unwrap().unseen
    };
    assert_eq!(unseen(r#"{"type":"text","text":"a"},{"type":"refusal","refusal":"b"}"#), None);
    for part in [
        r#"{"type":"image_url","image_url":{"url":"data:"}}"#,
        r#"{"type":"input_audio","input_audio":{}}"#,
        r#"{"type":"file","file":{},"text":"a file"}"#,
        r#"{"type":"whatever"}"#,
    ] {
        let (at, kind) = unseen(&format!(r#"{{"type":"text","text":"a"}},{part},{part}"#)).unwrap();
        assert!(at == "messages[1].content[1]" && part.contains(&kind), "{at} {kind}");
    }
}

#[test]
fn a_bad_request_is_told_the_place() {
    let cases = [
        ("", Reason::InvalidJson, None),
        ("{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"conte", Reason::InvalidJson, None),
        ("[]", Reason::InvalidRequest, None),
        ("{}", Reason::InvalidRequest, Some("messages")),
        (r#"{"messages":[]}"#, Reason::InvalidRequest, Some("messages")),
        (r#"{"messages":"hi"}"#, Reason::InvalidRequest, Some("messages")),
        (r#"{"messages":[{"role":"user","content":1}]}"#, Reason::InvalidRequest, Some("messages[0].content")),
        (r#"{"messages":[{"content":"x"}]}"#, Reason::InvalidRequest, Some("messages[0]")),
        (r#"{"messages":[{"role":"root","content":"x"}]}"#, Reason::InvalidRequest, Some("messages[0].role")),
        (
            r#"{"messages":[{"role":"user","content":[{"type":"text"}]}]}"#,
            Reason::InvalidRequest,
            Some("messages[0].content[0].text"),
        ),
        (r#"{"messages":[{"role":"user","content":"x"}],"stream":"yes"}"#, Reason::InvalidRequest, Some("stream")),
        (r#"{"messages":[{"role":"user","content":"x"}],"n":1000}"#, Reason::InvalidRequest, Some("n")),
        (r#"{"messages":[{"role":"user","content":"x"}],"max_tokens":-1}"#, Reason::InvalidRequest, Some("max_tokens")),
        (r#"{"model":7,"messages":[{"role":"user","content":"x"}]}"#, Reason::InvalidRequest, Some("model")),
    ];
    for (body, reason, param) in cases {
        assert_eq!(refused(body), (reason, param.map(str::to_owned)), "{body}");
    }
    assert!(read(b"{\"a\":1,\n \"b\":}").unwrap_err().message.contains("line 2 column 6"));
    assert_eq!(read(b"{\"messages\":\"\xff\"}").unwrap_err().reason, Reason::InvalidJson);
}

#[test]
fn a_key_that_stands_twice_is_refused_at_every_depth_the_guard_reads() {
    for body in [
        r#"{"model":"a","model":"b","messages":[{"role":"user","content":"x"}]}"#,
        r#"{"messages":[{"role":"user","content":"x"}],"mess\u0061ges":[{"role":"user","content":"y"}]}"#,
        r#"{"messages":[{"role":"user","content":"kind","content":"unkind"}]}"#,
        r#"{"messages":[{"role":"user","content":[{"type":"text","text":"kind","text":"unkind"}]}]}"#,
    ] {
        assert_eq!(read(body.as_bytes()).unwrap_err().reason, Reason::InvalidRequest, "{body}");
    }
}

#[test]
fn what_acts_outside_before_the_verdict_is_seen() {
    let messages = r#""messages":[{"role":"user","content":"x"}]"#;
    for (extra, acts) in [
        ("\"store\":true", true),
        ("\"store\":false", false),
        (r#""tools":[{"type":"function","function":{"name":"f"}}]"#, false),
        (r#""tools":[{"type":"web_search"}]"#, true),
        (r#""web_search_options":{}"#, true),
    ] {
        assert_eq!(read(format!("{{{messages},{extra}}}").as_bytes()).unwrap().acts, acts, "{extra}");
    }
}

#[test]
fn the_provider_gets_its_own_model_name_and_every_parameter() {
    let body = r#"{"messages":[{"role":"user","content":"x"}],"stream":true,"model":"public","seed":1,"stream_options":{"include_usage":false}}"#;
    let conversation = read(body.as_bytes()).unwrap();
    let written = write_for_provider(&conversation, Edits { model: "its \"own\"" });
    assert_eq!(
        String::from_utf8(written.clone()).unwrap(),
        r#"{"model":"its \"own\"","messages":[{"role":"user","content":"x"}],"seed":1,"stream":true,"stream_options":{"include_usage":true}}"#
    );
    let span = model_span(&written).unwrap();
    assert_eq!(&written[span], br#""its \"own\"""#);
}
