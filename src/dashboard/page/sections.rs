//! The overview's tables.

use maud::{Markup, html};
use parapet_engine::config::Limits;

use super::overview::{Overview, Store};
use super::{format, scrolling};
use crate::dashboard::recent::{Finished, Judged};
use crate::dashboard::usage::{OTHERS, Row, Used};
use crate::metrics::outcome::Outcome;

/// Rows of tenants that the page shows.
const MOST_USERS: usize = 50;

pub(super) fn live(view: &Overview) -> Markup {
    html! {
        section id="live" aria-labelledby="live-title" {
            h2 id="live-title" { "Live requests" }
            div.card {
                @match &view.in_flight {
                    Ok(now) => {
                        p {
                            strong { (format::count(now.clients)) } " in flight"
                            @for (cluster, active) in now.clusters.iter().filter(|(_, active)| *active > 0) {
                                " · " (format::count(*active)) " at " code { (cluster) }
                            }
                            span.note { " (Envoy's gauges; a request is named here when it is over)" }
                        }
                    }
                    Err(why) => p.note { "What is in flight is not known: " (why) "." }
                }
                @if view.finished.is_empty() { p.note { "No request has ended yet." } }
                @else { (scrolling("Newest requests", &finished(&view.finished, view.now_s))) }
            }
        }
    }
}

fn finished(requests: &[Finished], now_s: u64) -> Markup {
    html! {
        table {
            caption { "The newest requests; each opens its waterfall" }
            thead { tr {
                th scope="col" { "Ended" } th scope="col" { "Who" } th.wide scope="col" { "Model" }
                th scope="col" { "Outcome" } th.wide scope="col" { "Answered by" }
                th.number.wide scope="col" { "First token" } th.number scope="col" { "Whole" }
                th.number.wide scope="col" { "Tokens" } th.number.wide scope="col" { "Cost" }
            } }
            tbody { @for request in requests {
                tr {
                    td { a href={ "/requests/" (request.id) } title={ (format::moment(request.end_us)) " UTC" } { (when(request.end_us, now_s)) } }
                    td { (who(&request.tenant, &request.user)) }
                    td.wide { (named(&request.model)) @if request.stream { " " span.tag { "stream" } } }
                    td { (outcome(request.outcome, request.status, request.reason.as_deref())) }
                    td.wide {
                        @if request.cached { span.tag { "cache" } }
                        @else if let Some(provider) = &request.provider {
                            (provider)
                            @if request.attempts > 1 { " " span.tag.warn { (request.attempts) " attempts" } }
                        } @else { "–" }
                    }
                    td.number.wide { (request.first_token_ms.map_or("–".to_owned(), format::duration)) }
                    td.number { (format::duration(request.duration_ms)) }
                    td.number.wide { @match request.tokens { Some((prompt, answer)) => { (format::count(prompt)) " + " (format::count(answer)) } None => "–" } }
                    td.number.wide { (format::nanousd(request.cost_nanousd)) }
                }
            } }
        }
    }
}

/// A badge with words: colour alone tells nobody anything.
pub(super) fn outcome(outcome: Outcome, status: u16, reason: Option<&str>) -> Markup {
    let (class, word) = match outcome {
        Outcome::Answered => ("ok", "answered"),
        Outcome::InputBlocked => ("warn", "input blocked"),
        Outcome::OutputBlocked => ("warn", "output blocked"),
        Outcome::Refused => ("none", "refused"),
        Outcome::Failed => ("bad", "failed"),
        Outcome::Aborted => ("none", "client left"),
    };
    let shown = matches!(outcome, Outcome::Refused | Outcome::Failed);
    html! {
        span class={ "badge " (class) } { (word) }
        @if shown { " " span.note.wide { (status) @if let Some(reason) = reason { " " (reason) } } }
    }
}

pub(super) fn blocked(view: &Overview) -> Markup {
    html! {
        section id="blocked" aria-labelledby="blocked-title" {
            h2 id="blocked-title" { "Blocked and flagged" small { "newest " (view.judged.len()) } }
            div.card {
                @if view.judged.is_empty() { p.note { "The guards stopped and flagged nothing." } }
                @else { (scrolling("Blocked and flagged texts", &judged(&view.judged, view.now_s))) }
            }
        }
    }
}

fn judged(items: &[Judged], now_s: u64) -> Markup {
    html! {
        table {
            caption { "What the guards stopped, flagged or could not judge" }
            thead { tr {
                th scope="col" { "When" } th scope="col" { "Who" } th.wide scope="col" { "Policy" } th scope="col" { "Side" }
                th scope="col" { "Action" } th scope="col" { "Categories" } th.number.wide scope="col" { "P(unsafe)" }
            } }
            tbody { @for item in items {
                @let failed = item.verdict != "unsafe";
                tr {
                    td { a href={ "/requests/" (item.id) } { (when(item.end_us, now_s)) } }
                    td { (who(&item.tenant, &item.user)) }
                    td.wide { (named(&item.policy)) }
                    td { (item.side) }
                    td { span class={ "badge " (if item.action == "block" { "warn" } else { "none" }) } { (item.action) } @if failed { " " span.note { "guard " (item.verdict) } } }
                    td { @if item.categories.is_empty() { "–" } @else { (item.categories.join(", ")) } }
                    td.number.wide { (item.score.map_or("–".to_owned(), |score| format!("{score:.3}"))) }
                }
            } }
        }
    }
}

pub(super) fn tenants(view: &Overview) -> Markup {
    let limits = |policy: &str| view.limits.as_ref().ok().and_then(|known| known.of_policy(policy)).unwrap_or_default();
    let mut rows: Vec<Row> = view.usage.clone();
    // Who has a limit and did nothing is shown as well.
    if let Ok(known) = &view.limits {
        for (tenant, user, policy) in known.callers() {
            let limited = limits(policy) != Limits::default();
            if limited && !rows.iter().any(|row| row.tenant == tenant && row.user == user) {
                rows.push(Row {
                    tenant: tenant.to_owned(),
                    user: user.to_owned(),
                    policy: policy.to_owned(),
                    hour: Used::default(),
                    requests_last_minute: 0.0,
                    tokens_last_minute: 0.0,
                });
            }
        }
    }
    rows.sort_by(|a, b| {
        b.hour.requests.cmp(&a.hour.requests).then_with(|| (&a.tenant, &a.user).cmp(&(&b.tenant, &b.user)))
    });
    html! {
        section id="tenants" aria-labelledby="tenants-title" {
            h2 id="tenants-title" { "Tenants" small { "use against limits" } }
            div.card {
                @if rows.is_empty() { p.note { "Nobody was served in the last hour." } }
                @else { (scrolling("Use by tenant and user", &html! {
                    table {
                        caption { "Requests and tokens of the last minute against the policy's limits, and of the last hour" }
                        thead { tr {
                            th scope="col" { "Who" } th.wide scope="col" { "Policy" } th scope="col" { "Requests / min" }
                            th scope="col" { "Tokens / min" } th.number.wide scope="col" { "Requests / h" }
                            th.number.wide scope="col" { "Tokens / h" } th.number.wide scope="col" { "Refused / h" } th.number.wide scope="col" { "Cost / h" }
                        } }
                        tbody { @for row in rows.iter().take(MOST_USERS) {
                            @let limits = limits(&row.policy);
                            tr {
                                td { (if (row.tenant.as_str(), row.user.as_str()) == OTHERS { html! { "all others" } } else { who(&row.tenant, &row.user) }) }
                                td.wide { (named(&row.policy)) }
                                td { (meter(row.requests_last_minute, limits.requests_per_minute, "requests in the last minute")) }
                                td { (meter(row.tokens_last_minute, limits.tokens_per_minute, "tokens in the last minute")) }
                                td.number.wide { (format::count(row.hour.requests)) }
                                td.number.wide { (format::count(row.hour.tokens)) }
                                td.number.wide { (format::count(row.hour.refused)) }
                                td.number.wide { (format::nanousd(row.hour.cost_nanousd)) }
                            }
                        } }
                    }
                })) }
                @if rows.len() > MOST_USERS { p.note { "and " (rows.len() - MOST_USERS) " more" } }
                @match &view.limits {
                    Ok(_) => p.note { "Limits as in the configuration that Envoy was given. Use is the sidecar's count of requests that are over; Envoy's buckets, which also hold what is reserved, decide." }
                    Err(why) => p.note { "Limits are not known here: " (why) ". PARAPET_ENVOY_CONFIG names the configuration that Envoy runs with." }
                }
            }
        }
    }
}

fn meter(used: f64, limit: Option<u64>, what: &str) -> Markup {
    let shown = format::count(whole(used));
    html! {
        @match limit {
            None => { (shown) " " span.note { "no limit" } }
            Some(limit) => {
                @let share = used / (limit.max(1) as f64);
                div.meter {
                    span { (shown) " / " (format::count(limit)) }
                    svg viewBox="0 0 100 6" preserveAspectRatio="none" role="img"
                        aria-label={ (shown) " of " (format::count(limit)) " " (what) } {
                        rect.track width="100" height="6" rx="3" {}
                        rect class={ "fill " (if share > 0.9 { "bad" } else if share > 0.7 { "warn" } else { "ok" }) }
                            width=((share.clamp(0.0, 1.0) * 1000.0).round() / 10.0) height="6" rx="3" {}
                    }
                }
            }
        }
    }
}

fn whole(value: f64) -> u64 {
    value.round() as u64
}

pub(super) fn store(view: &Overview) -> Markup {
    let Store { upload, waiting, oldest_s, lines, bytes, segments, backlog, feedback, dead_letters, .. } = &view.store;
    let age = if *waiting == 0 {
        "nothing waits".to_owned()
    } else {
        format!("the oldest for {}", format::stretch(whole(*oldest_s)))
    };
    let upload = upload.as_deref().map_or("off: traces stay local".to_owned(), |to| format!("to {to}"));
    let rows = [
        ("Upload", upload, String::new()),
        ("Waiting for upload", format::count(*waiting), age),
        (
            "Kept",
            format!("{} requests", format::count(*lines)),
            format!("{} in {segments} files", format::bytes(*bytes)),
        ),
        ("Access log unread", format::bytes(*backlog), String::new()),
        ("Dead letters", format::count(*dead_letters), "runs that LangSmith refused since the start".to_owned()),
        ("Feedback waiting", format::count(*feedback as u64), String::new()),
        (
            "Answer cache",
            format!("{} answers", format::count(view.store.cache_entries)),
            format::bytes(view.store.cache_bytes),
        ),
    ];
    html! {
        section id="spool" aria-labelledby="spool-title" {
            h2 id="spool-title" { "Spool and cache" }
            dl.card.facts { @for (name, value, note) in &rows { div { dt { (name) } dd { (value) @if !note.is_empty() { " " span.note { (note) } } } } } }
        }
    }
}

pub(super) fn who(tenant: &str, user: &str) -> Markup {
    html! { @if tenant.is_empty() { span.note { "unknown" } } @else { (tenant) span.note { " / " (user) } } }
}

fn named(name: &str) -> &str {
    if name.is_empty() { "–" } else { name }
}

/// The time of day, or how long ago where that is more than a day.
fn when(us: u64, now_s: u64) -> String {
    let ago = now_s.saturating_sub(us / 1_000_000);
    if ago < 86_400 { format::time_of_day(us) } else { format!("{} ago", format::stretch(ago)) }
}
