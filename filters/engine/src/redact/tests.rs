use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn rules(kinds: &[Kind]) -> Rules {
    Rules { kinds: kinds.to_vec(), patterns: Vec::new() }
}

const ALL: [Kind; 4] = [Kind::Email, Kind::Phone, Kind::Card, Kind::Secret];

fn redacted(kinds: &[Kind], text: &str) -> String {
    rules(kinds).redact(text).unwrap_or_else(|| text.to_owned())
}

#[test]
fn addresses_go_and_what_only_looks_like_one_stays() {
    for (text, expected) in [
        ("write to alice@example.com, please", "write to [email], please"),
        ("Bob.O'Neil+tag@mail.example.co.uk.", "[email]."),
        ("a@b.cd c@d.ef", "[email] [email]"),
        ("jürgen@müller.de", "[email]"),
        ("<mailto:x_1@xn--mller-kva.de>", "<mailto:[email]>"),
        ("@handle and user@localhost and 3@4", "@handle and user@localhost and 3@4"),
        ("git@10.0.0.1", "git@10.0.0.1"),
        ("a@@b.com", "a@@b.com"),
    ] {
        assert_eq!(redacted(&[Kind::Email], text), expected);
    }
}

#[test]
fn telephone_numbers_go_and_other_numbers_stay() {
    for number in [
        "+1 415 555 2671",
        "+14155552671",
        "+49 (0)30 1234567",
        "+44 20 7946 0958",
        "0049 170 1234567",
        "030 12345678",
        "020 7946 0958",
        "0151/23456789",
        "06 12 34 56 78",
        "(415) 555-2671",
        "415-555-2671",
        "415.555.2671",
        "1-415-555-2671",
        "4155552671",
    ] {
        assert_eq!(redacted(&[Kind::Phone], &format!("call {number}, now")), "call [phone], now", "{number}");
    }
    for text in [
        "2026-11-24 10:41:39",
        "01-02-2026 10:30",
        "1767225600",
        "192.168.100.200",
        "3.14159265358979",
        "0.12345678901",
        "order 123456789",
        "1,000,000,000",
        "v1.2.3.4567",
        "0x0123456789",
        "id=0123456789",
        "4111 1111 1111 1111",
        "123456789012345678901234567890",
    ] {
        assert_eq!(redacted(&[Kind::Phone], text), text);
    }
}

#[test]
fn cards_go_where_the_checksum_is_right() {
    for number in [
        "4111111111111111",
        "4111 1111 1111 1111",
        "5500-0000-0000-0004",
        "378282246310005",
        "3782 822463 10005",
        "6011111111111117",
        "2223003122003222",
        "4222222222222",
    ] {
        assert_eq!(redacted(&[Kind::Card], &format!("pay {number}.")), "pay [card].", "{number}");
    }
    assert_eq!(redacted(&[Kind::Card], "4111 1111 1111 1111 12/27 123"), "[card] 12/27 123");
    assert_eq!(redacted(&[Kind::Card], "no 12 4111 1111 1111 1111"), "no 12 [card]");
    for text in ["4111111111111112", "411111111111111", "14111111111111111111111", "1234567890123", "0000000000000000"]
    {
        assert_eq!(redacted(&[Kind::Card], text), text);
    }
}

#[test]
fn keys_and_tokens_go() {
    let jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    let pem = "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----";
    for secret in
        ["sk-proj-abc_DEF123456", "sk-demo-alice", "ghp_0123456789abcdefABCDEF", "AKIAIOSFODNN7EXAMPLE", jwt, pem]
    {
        assert_eq!(redacted(&[Kind::Secret], &format!("use {secret}\n")), "use [secret]\n", "{secret}");
    }
    assert_eq!(
        redacted(&[Kind::Secret], "Authorization: Bearer abcdefghij0123456789=="),
        "Authorization: Bearer [secret]"
    );
    assert_eq!(redacted(&[Kind::Secret], "my key is sk-0123456789."), "my key is [secret].");
    assert_eq!(redacted(&[Kind::Secret], "-----BEGIN PRIVATE KEY-----\nMIIE cut"), "[secret]");
    for text in
        ["task-oriented-dialogue", "sk-short", "bearer of bad news", "-----BEGIN CERTIFICATE-----\nMIIE", "eyJ.x.y z"]
    {
        assert_eq!(redacted(&[Kind::Secret], text), text);
    }
}

fn pattern(pattern: &str) -> Rules {
    Rules { kinds: Vec::new(), patterns: vec![("it".to_owned(), Pattern::parse(pattern).unwrap())] }
}

#[test]
fn patterns_of_the_operator() {
    for (written, text, expected) in [
        (r"EMP-\d{6}", "EMP-123456 and EMP-12345", "[it] and EMP-12345"),
        (r"\b[A-Z]{2}\d{2,4}\b", "AB12 XAB12 AB12345 CD1234", "[it] XAB12 AB12345 [it]"),
        (r"a.c", "abc a€c a\nc", "[it] [it] a\nc"),
        (r"x[^,]*,", "1 x2,3 x", "1 [it]3 x"),
        (r"\w+-\w+x", "foo-barx", "[it]"),
        (r"colou?r", "color colour colouur", "[it] [it] colouur"),
        (r"\[\d+\]", "[12] 12", "[it] 12"),
        (r"[a\-z]+", "a-z b", "[it] b"),
        (r"ß+", "Straße", "Stra[it]e"),
    ] {
        assert_eq!(pattern(written).redact(text).unwrap_or_else(|| text.to_owned()), expected, "{written}");
    }
}

#[test]
fn a_pattern_that_cannot_be_read_says_why() {
    for (written, why) in [
        ("", "the empty text"),
        (r"\d*", "the empty text"),
        (r"(a)", "`(` is not supported"),
        (r"a|b", "not supported"),
        (r"^a", "not supported"),
        (r"\q", "`\\q` is not known"),
        (r"[a", "never closed"),
        (r"[]", "matches nothing"),
        (r"[z-a]", "no range"),
        (r"*a", "nothing that `*` could repeat"),
        (r"a**", "nothing that `*` could repeat"),
        (r"a{3,1}", "expected `{4}`"),
        (r"a{999}", "expected `{4}`"),
        ("a\\", "nothing follows"),
    ] {
        let error = Pattern::parse(written).unwrap_err();
        assert!(error.contains(why), "{written}: {error}");
    }
    assert!(Pattern::parse(&"a".repeat(65)).unwrap_err().contains("longer"));
}

#[test]
fn a_pattern_that_would_take_for_ever_takes_everything() {
    let slow = pattern(r"\w*\w*\w*\w*\w*\w*\w*\w*!");
    let text = "a".repeat(400);
    assert_eq!(slow.redact(&format!("b c {text}")).as_deref().map(|out| out.ends_with("[it]")), Some(true));
}

#[test]
fn rules_work_together_and_the_longest_wins() {
    let mut every = rules(&ALL);
    every.patterns.push(("ticket".to_owned(), Pattern::parse(r"T-\d+").unwrap()));
    let text = "T-1: alice@example.com paid 4111 1111 1111 1111 by sk-0123456789, call +1 415 555 2671";
    let expected = "[ticket]: [email] paid [card] by [secret], call [phone]";
    assert_eq!(every.redact(text).as_deref(), Some(expected));
    assert_eq!(every.redact(expected), None, "what is redacted stays as it is");
    assert_eq!(every.redact("nothing to see"), None);
}

#[test]
fn json_stays_json_with_its_escapes_seen_through_and_its_keys_left() {
    let json = r#"[{"role":"user","content":"I am a\u006cice\u0040example.com\n\"ok\""},{"x@y.zz":4111111111111111,"n":[1,-2.5e3,true]}]"#;
    let redacted = redact_json(&rules(&ALL), json).unwrap();
    let expected = r#"[{"role":"user","content":"I am [email]\n\"ok\""},{"x@y.zz":"[card]","n":[1,-2.5e3,true]}]"#;
    assert_eq!(redacted, expected);
    assert_eq!(redact_json(&rules(&ALL), r#"{"a":"b \" c","d":null}"#), None);
}

proptest! {
    #[test]
    fn any_text_is_redacted_to_text_without_matches(text in "[ -~é€0-9@.+()-]{0,80}") {
        let every = rules(&[Kind::Email, Kind::Card]);
        if let Some(out) = every.redact(&text) {
            prop_assert_eq!(every.redact(&out), None, "{}", out);
        }
        let _ = rules(&ALL).redact(&text);
    }

    #[test]
    fn any_json_stays_json_of_the_same_shape(text in ".{0,40}", number in any::<i64>()) {
        let value = serde_json::json!({"a": [text, number], "alice@example.com": {"b": "bob@example.com"}});
        let redacted = redact_json(&rules(&ALL), &value.to_string()).unwrap();
        let redacted: Value = serde_json::from_str(&redacted).unwrap();
        prop_assert_eq!(&redacted["alice@example.com"]["b"], "[email]");
        prop_assert_eq!(redacted["a"].as_array().map(Vec::len), Some(2));
    }
}
