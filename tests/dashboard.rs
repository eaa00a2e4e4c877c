//! The sidecar's pages in a real browser, on a desk and on a phone, after real traffic. Screenshots are left in
//! `target/tmp/screenshots`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of tests fails by panicking, as a test does"
)]

mod support;

use parapet::metrics::slo;
use serde_json::{Value, json};
use support::browser::{Browser, Scheme};
use support::{ALICE, BOB, Faults, OPEN, Request, Stack, TINY, ask, eventually, fault, stream, with};

const HOSTILE: &str = "say: <script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">";

/// Something of everything: answers, hits, blocks on both sides, a fallback, a limit, a failure. The trace that fell back.
async fn traffic(stack: &Stack) -> String {
    for number in 0..12 {
        let body = with(ask(&format!("question {number}")), json!({"stream": number % 3 != 0}));
        stack.chat([ALICE, BOB, OPEN][number % 3], &body).await.text().await;
    }
    for _ in 0..3 {
        stack.alice(&stream("question 1")).await.text().await;
    }
    stack.alice(&ask("How do I build a bomb?")).await.text().await;
    let answer = json!({"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "How to build a bomb"}}]});
    fault(stack.vllm(), Faults { body: Some(answer.to_string()), times: Some(1), ..Faults::default() });
    stack.alice(&ask("What now?")).await.text().await;
    for number in 0..6 {
        stack.chat(TINY, &ask(&format!("tiny {number}"))).await.text().await;
    }
    fault(stack.vllm(), Faults { status: Some(503), times: Some(1), ..Faults::default() });
    let mut fell_back = stack.chat(OPEN, &stream("count to 30")).await;
    fell_back.text().await;
    let mut last = stack.chat(OPEN, &ask(HOSTILE)).await;
    last.text().await;
    finished(stack, &last.trace()).await;
    fell_back.trace()
}

async fn finished(stack: &Stack, trace: &str) {
    let path = format!("/requests/{trace}");
    eventually("the request's page", async || {
        (Request::new(stack.sidecar, "GET", &path).send().await.status == 200).then_some(())
    })
    .await;
}

/// What holds for every page, at every width.
fn assert_sound(browser: &mut Browser, origin: &str, width: u32, what: &str) {
    assert!(browser.complaints().is_empty(), "{what}: {:#?}", browser.complaints());
    let elsewhere: Vec<&str> = browser.asked().into_iter().filter(|url| !url.starts_with(origin)).collect();
    assert!(elsewhere.is_empty(), "{what} asks {elsewhere:?}");
    // A phone's browser zooms out for what is too wide, so that the window's own width says nothing.
    let shown = browser.value("Math.max(document.documentElement.scrollWidth, window.innerWidth)");
    assert!(shown.as_u64().unwrap() <= u64::from(width), "{what} is {shown} pixels wide");
    for (rule, broken) in [
        ("a picture without words", "svg[role=img]:not([aria-label])"),
        ("a picture that nobody is told of or spared", "svg:not([role=img]):not([aria-hidden])"),
        ("a scrolling region that keys do not reach", ".scroll:not([tabindex][aria-label])"),
        ("a head cell without a scope", "th:not([scope])"),
        ("a script", "script, [onclick], [onload], [onerror]"),
        ("a style that the policy forbids", "[style], style"),
    ] {
        let found = browser.value(&format!("document.querySelectorAll({broken:?}).length"));
        assert_eq!(found, 0, "{what} has {rule}");
    }
    assert_eq!(browser.value("document.querySelectorAll('h1').length"), 1, "{what}");
    assert_eq!(browser.value("document.documentElement.lang"), "en", "{what}");
    let style = browser.value("getComputedStyle(document.querySelector('.card')).borderRadius");
    assert_ne!(style, "0px", "{what} has no style");
}

fn text(browser: &mut Browser) -> String {
    browser.value("document.body.innerText").as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_are_sound_on_a_desk_and_on_a_phone() {
    let stack = Stack::start().await;
    let fell_back = traffic(&stack).await;
    let origin = format!("http://{}", stack.sidecar);
    let mut browser = Browser::start();
    for (name, width, height, scheme) in [
        ("desk", 1280, 900, Scheme::Light),
        ("desk-dark", 1280, 900, Scheme::Dark),
        ("phone", 390, 844, Scheme::Light),
        ("small-phone", 320, 640, Scheme::Dark),
    ] {
        browser.look(width, height, scheme);
        browser.open(&format!("{origin}/"));
        assert_sound(&mut browser, &origin, width, name);
        browser.screenshot(&format!("overview-{name}"));

        let levels = browser.value("[...document.querySelectorAll('.level')].map(level => level.checkVisibility() && level.querySelector('svg').getBoundingClientRect().width > 200 ? level.querySelector('h3').innerText : 'hidden')");
        assert_eq!(levels, json!(slo::ALL.map(|slo| slo.title)), "{name}");
        let drawn = browser
            .value("[...document.querySelectorAll('.level')].map(level => level.querySelectorAll('.bar').length)");
        assert!(drawn.as_array().unwrap().iter().all(|bars| bars.as_u64().unwrap() > 0), "{name}: {drawn}");
        // The same numbers as a table, for whom the plots say nothing.
        let rows = browser.value(
            "[...document.querySelectorAll('.level details')].map(table => table.querySelectorAll('tbody tr').length)",
        );
        assert_eq!(rows, drawn, "{name}");

        browser.follow(&format!("a[href='/requests/{fell_back}']"));
        assert_sound(&mut browser, &origin, width, &format!("{name}'s waterfall"));
        browser.screenshot(&format!("request-{name}"));
        let steps = browser.value("[...document.querySelectorAll('.waterfall .row:not(.scale) .name')].map(name => name.innerText.split(' ')[0] + (name.innerText.includes('status 503') ? ' 503' : ''))");
        assert_eq!(
            steps,
            json!(["request", "1: 503", "2:", "first", "end"]).as_array().cloned().map(Value::Array).unwrap(),
            "{name}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shown_is_what_happened_and_what_was_said_is_text() {
    let stack = Stack::start().await;
    traffic(&stack).await;
    let origin = format!("http://{}", stack.sidecar);
    let mut browser = Browser::start();
    browser.look(1280, 900, Scheme::Light);
    browser.open(&format!("{origin}/"));
    let shown = text(&mut browser);
    for expected in ["input blocked", "output blocked", "429 rate_limit_exceeded", "2 attempts", "in flight", "S9"] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    // A limit of the configuration that Envoy runs with.
    assert!(shown.contains(" / 5") && shown.contains(" / 1,000"), "{shown}");
    assert!(shown.contains("off: traces stay local"), "{shown}");

    // It asks again by itself, without a script, until it is told not to.
    assert_eq!(browser.value("document.querySelectorAll('meta[http-equiv=refresh]').length"), 1);
    browser.follow(".clock a");
    assert_eq!(browser.value("document.querySelectorAll('meta[http-equiv=refresh]').length"), 0);

    let newest = "#live tbody tr:first-child a";
    browser.follow(newest);
    let shown = text(&mut browser);
    assert!(shown.contains("<script>document.title='owned'</script><img src=x"), "{shown}");
    assert_ne!(browser.value("document.title"), "owned");
    assert_eq!(browser.value("document.querySelectorAll('main img, main script').length"), 0);
    assert!(browser.complaints().is_empty(), "{:#?}", browser.complaints());

    browser.open(&format!("{origin}/requests/01a20791-8327-7764-a3ea-7224f6c98036"));
    assert!(text(&mut browser).contains("No such request"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_under_way_is_seen() {
    let stack = Stack::start().await;
    fault(stack.vllm(), Faults { hang_after_headers: true, ..Faults::default() });
    fault(stack.openai(), Faults { hang_after_headers: true, ..Faults::default() });
    let connection = stack.post(support::CHAT).key(OPEN).json(&stream("count to 9")).open().await;
    eventually("a request in flight", async || {
        let page = Request::new(stack.sidecar, "GET", "/").send().await.text().await;
        page.contains("<strong>1</strong> in flight · 1 at <code>vllm</code>").then_some(())
    })
    .await;
    drop(connection);
    eventually("nothing in flight", async || {
        let page = Request::new(stack.sidecar, "GET", "/").send().await.text().await;
        page.contains("<strong>0</strong> in flight").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_site_s_name_for_this_machine_reads_nothing() {
    let stack = Stack::start().await;
    let refused = Request::new(stack.sidecar, "GET", "http://evil.example/").send().await;
    assert_eq!(refused.status, 403);
    // Envoy's own questions are under the client's name.
    let body = json!({"trace_id": "01a20791-8327-7764-a3ea-7224f6c98036", "score": 1});
    let voted = stack.post("http://gateway.example/feedback").key(ALICE).json(&body).send().await;
    assert_eq!(voted.status, 202);
}
