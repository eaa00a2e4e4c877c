//! Starting, attempts at upstreams, shared data, metrics, properties.

// The sample filter and the helpers are part of the tests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod sample;

use std::time::Duration;

use parapet_testhost::{Host, Message, Refused, Vm};

fn started() -> (Host, Vm) {
    let host = Host::new().configuration("gateway", "{}").configuration("provider", "{}");
    let vm = host.start_vm().expect("accepted");
    (host, vm)
}

fn head(mode: &str) -> [(&str, &str); 3] {
    [(":method", "POST"), (":path", "/chat"), ("x-mode", mode)]
}

#[test]
fn a_refused_configuration_is_told_and_the_host_can_start_another() {
    let host = Host::new().configuration("gateway", "\"refuse me\"");
    assert_eq!(host.start_vm().unwrap_err(), Refused { root_id: "gateway".into(), by: "on_configure" });
    assert_eq!(host.logs().last().unwrap().1, "gateway configured with \"refuse me\"");
    host.configure("gateway", "{}");
    assert!(host.start_vm().is_ok());
}

#[test]
fn hosts_follow_one_another_on_a_thread_and_forget() {
    for _ in 0..3 {
        let (host, vm) = started();
        vm.stream("gateway").request(head("pass"), b"");
        assert_eq!(host.metric("streams"), 1);
        assert_eq!(host.shared_data("ticked"), None);
        assert_eq!(vm.tick_period("gateway"), Some(Duration::from_millis(250)));
        vm.tick("gateway");
        assert_eq!(host.shared_data("ticked").as_deref(), Some(&b"yes"[..]));
    }
}

#[test]
fn attempts_share_the_request_head_and_the_filter_state() {
    let (host, vm) = started();
    let mut stream = vm.stream("gateway");
    stream.request(head("pass"), b"body");

    let mut first = stream.attempt(&vm, "provider");
    first.property(&["xds", "upstream_host_metadata"], "vllm");
    let sent = first.replay();
    assert_eq!((sent.header(":path"), sent.text().as_str(), sent.ended), (Some("/vllm"), "body", true));
    first.response_head([(":status", "200")], false);
    assert_eq!(first.answer(), Message::default(), "the head is withheld until the first bytes");
    first.response_data(b"error", false);
    assert_eq!(first.answer().status(), Some(503));
    first.client_leaves();

    let mut second = stream.attempt(&vm, "provider");
    second.unserializable_property(&["xds", "upstream_host_metadata"]);
    assert_eq!(second.replay().header(":path"), Some("/SerializationFailure"));
    second.response([(":status", "200")], b"abc", false);
    stream.deliver(&second);
    second.response_body(b"def", true);
    let answer = stream.deliver(&second);
    assert_eq!((answer.status(), answer.text().as_str(), answer.ended), (Some(200), "abcdef", true));

    assert_eq!(stream.forwarded().header(":path"), Some("/chat"), "what the gateway filter let go");
    stream.finish();
    let record = String::from_utf8(stream.filter_state("record").unwrap()).unwrap();
    assert!(record.starts_with("/SerializationFailure 200"), "the log sees the attempts' edits: {record}");
    assert_eq!(stream.filter_state("provider"), second.filter_state("provider"));
    let done = host.logs().iter().filter(|(_, message)| message == "attempt done").count();
    assert_eq!(done, 2);
}

#[test]
fn an_upstream_filters_local_reply_goes_to_the_client_through_the_downstream_filter() {
    let (_host, vm) = started();
    let mut stream = vm.stream("gateway");
    stream.request(head("pass"), b"");
    let mut attempt = stream.attempt(&vm, "provider");
    attempt.replay();
    assert_eq!(stream.answer().status(), Some(500));
    stream.finish();
    let record = String::from_utf8(stream.filter_state("record").unwrap()).unwrap();
    assert_eq!(record, "/chat 500 request-head! response-head 500 response-body:7!");
}

#[test]
fn an_upstream_filter_can_be_driven_alone() {
    let (_host, vm) = started();
    let mut attempt = vm.upstream("provider");
    attempt.property(&["xds", "upstream_host_metadata"], "openai");
    assert_eq!(attempt.request(head("-"), b"x").header(":path"), Some("/openai"));
    attempt.response([(":status", "200")], b"abc", true);
    attempt.finish();
}

#[test]
fn a_write_with_a_stale_cas_fails_and_is_told() {
    let (host, vm) = started();
    for (contender, seen) in [(None, "Ok(())"), (Some(b"theirs"), "Err(CasMismatch)")] {
        if let Some(value) = contender {
            host.contend_shared_data("leases", value);
        }
        let mut stream = vm.stream("gateway");
        stream.request(head("contend"), b"");
        stream.client_leaves();
        let record = String::from_utf8(stream.filter_state("record").unwrap()).unwrap();
        assert!(record.contains(seen), "{record}");
    }
    assert_eq!(host.shared_data("leases").as_deref(), Some(&b"theirs"[..]));
}

#[test]
fn unknown_foreign_functions_are_not_found() {
    let (_host, vm) = started();
    vm.stream("gateway").request(head("foreign"), b"");
}

#[test]
fn an_unmodelled_call_ends_the_process_with_its_name() {
    const CHILD: &str = "PARAPET_TESTHOST_UNMODELLED";
    if std::env::var_os(CHILD).is_some() {
        let (_host, vm) = started();
        vm.stream("gateway").request(head("unmodelled"), b"");
        return;
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "an_unmodelled_call_ends_the_process_with_its_name"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert!(!child.status.success());
    let said = [child.stdout, child.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("the emulator does not model proxy_register_shared_queue"), "{said}");
}
