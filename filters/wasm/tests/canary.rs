//! The guard's self-check at start.

#![allow(clippy::expect_used, reason = "a helper of tests fails by panicking, as a test does")]

mod support;

use core::time::Duration;

use parapet_testhost::{Host, Vm};
use support::{PARALLEL, start};

fn logged(host: &Host, text: &str) -> bool {
    host.logs().iter().any(|(_, line)| line.contains(text))
}

fn answers(host: &Host, vm: &Vm, verdict: &str) {
    host.advance(Duration::from_secs(5));
    vm.tick("gateway");
    let callout = host.pending_callout("guard");
    assert!(String::from_utf8_lossy(&callout.body).contains("pipe bomb"));
    host.answer(&callout, 200, [], format!(r#"{{"choices":[{{"text":"{verdict}"}}]}}"#).as_bytes());
}

#[test]
fn a_guard_that_calls_the_canary_safe_is_told_of_loudly_and_once() {
    let (host, vm) = start(PARALLEL);
    answers(&host, &vm, "safe");
    assert!(logged(&host, "GUARD SELF-CHECK FAILED"));
    vm.tick("gateway");
    assert!(host.pending_callouts().is_empty());
}

#[test]
fn a_guard_that_is_loading_is_asked_until_it_judges() {
    let (host, vm) = start(PARALLEL);
    for _ in 0..3 {
        host.advance(Duration::from_secs(5));
        vm.tick("gateway");
        let callout = host.pending_callout("guard");
        vm.tick("gateway");
        assert_eq!(host.pending_callouts().len(), 1, "one at a time");
        host.answer_reset(&callout);
        assert!(vm.tick_period("gateway").is_some_and(|period| period.as_secs() == 5));
    }
    answers(&host, &vm, "unsafe");
    assert!(logged(&host, "self-check passed") && !logged(&host, "FAILED"));
    let told = host.logs().iter().filter(|(_, line)| line.contains("trying again")).count();
    assert_eq!(told, 1, "said once, not at every try");
    vm.tick("gateway");
    assert_eq!(vm.tick_period("gateway"), None);
}

#[test]
fn one_of_all_workers_asks() {
    let (host, first) = start(PARALLEL);
    let second = host.start_vm().expect("the same configuration");
    for _ in 0..3 {
        first.tick("gateway");
        second.tick("gateway");
    }
    assert_eq!(host.pending_callouts().len(), 1);
    assert_eq!(second.tick_period("gateway"), None);
}
