//! The page at `/`.

use maud::{Markup, html};

use super::plot::{Standing, plot};
use super::{format, frame, scrolling, sections};
use crate::dashboard::history::{Counts, Level, together};
use crate::dashboard::limits::Known;
use crate::dashboard::live::InFlight;
use crate::dashboard::recent::{Finished, Judged};
use crate::dashboard::usage::Row;
use crate::metrics::slo::{self, Measure, Slo};

/// Everything that the page shows.
pub(crate) struct Overview {
    pub now_s: u64,
    pub started_s: u64,
    /// The last hour, the oldest minute first.
    pub minutes: Vec<(u64, Counts)>,
    pub in_flight: Result<InFlight, String>,
    pub finished: Vec<Finished>,
    pub judged: Vec<Judged>,
    pub usage: Vec<Row>,
    pub limits: Result<std::sync::Arc<Known>, String>,
    pub store: Store,
    /// The browser asks again by itself.
    pub refresh: bool,
}

/// What is kept, and what waits.
pub(crate) struct Store {
    /// Where to; none: runs stay local.
    pub upload: Option<String>,
    pub waiting: u64,
    pub oldest_s: f64,
    pub lines: u64,
    pub bytes: u64,
    pub segments: u64,
    pub backlog: u64,
    pub feedback: usize,
    pub dead_letters: u64,
    pub cache_entries: u64,
    pub cache_bytes: u64,
}

pub(crate) fn page(view: &Overview) -> String {
    let hour = together(&view.minutes);
    let standings: Vec<(Slo, Option<Standing>)> = slo::ALL.iter().map(|slo| (*slo, standing(slo, &hour))).collect();
    let header = html! {
        nav aria-label="Sections" {
            a href="#levels" { "Levels" } a href="#live" { "Live" } a href="#blocked" { "Blocked" }
            a href="#tenants" { "Tenants" } a href="#spool" { "Spool" } a href="/metrics" { "Metrics" }
        }
        p.clock {
            time { (format::time_of_day(view.now_s * 1_000_000)) } " UTC · "
            @if view.refresh { a href="/?refresh=off" { "pause" } } @else { a href="/" { "resume" } }
        }
    };
    let main = html! {
        div.headline { h1 { (headline(&standings, hour.requests)) } p.note { (covered(view)) } }
        (tiles(view, &hour))
        section id="levels" aria-labelledby="levels-title" {
            h2 id="levels-title" { "Service levels" small { "last hour, by the minute" } }
            div.levels { @for (slo, standing) in &standings { (card(slo, *standing, &hour, &view.minutes)) } }
        }
        (sections::live(view))
        (sections::blocked(view))
        (sections::tenants(view))
        (sections::store(view))
    };
    frame("Parapet", view.refresh, &header, &main)
}

fn headline(standings: &[(Slo, Option<Standing>)], requests: u32) -> String {
    let named = |wanted: Standing| -> Vec<&str> {
        standings.iter().filter(|(_, standing)| *standing == Some(wanted)).map(|(slo, _)| slo.title).collect()
    };
    let (alert, missed, within) = (named(Standing::Alert), named(Standing::Missed), named(Standing::Within));
    match (alert.len(), missed.len(), within.len()) {
        _ if requests == 0 => "No requests in the last hour".to_owned(),
        (0, 0, 0) => "Too few requests to judge yet".to_owned(),
        (0, 0, 6) => "All six service levels are within their targets".to_owned(),
        (0, 0, _) => "Every service level that can be judged is within its target".to_owned(),
        (0, ..) => format!("Above target: {}", missed.join(", ")),
        _ => format!("Above the alert: {}", alert.join(", ")),
    }
}

fn covered(view: &Overview) -> String {
    let up = view.now_s.saturating_sub(view.started_s);
    format!("This sidecar started {} ago. The hour before its start is read from the spool.", format::stretch(up))
}

/// Nothing where too few requests were seen.
fn standing(slo: &Slo, hour: &Counts) -> Option<Standing> {
    let level = hour.level(slo);
    level.value.filter(|_| level.count >= slo.at_least).map(|value| Standing::of(slo, value))
}

fn tiles(view: &Overview, hour: &Counts) -> Markup {
    let cache = hour.cache_hits();
    let cached = cache.value.map_or("–".to_owned(), format::share);
    let in_flight = view.in_flight.as_ref().map_or("–".to_owned(), |now| format::count(now.clients));
    let tiles = [
        ("In flight", in_flight, "now".to_owned()),
        ("Requests", format::count(hour.requests.into()), "last hour".to_owned()),
        ("Refused", format::count(hour.refused.into()), "key, limit, form".to_owned()),
        ("Failed", format::count(hour.failed.into()), "no whole answer".to_owned()),
        ("Cache hits", cached, format!("of {} lookups", format::count(cache.count))),
        ("Tokens", format::count(hour.tokens), "at providers".to_owned()),
        ("Spent", format::nanousd(hour.cost_nanousd), "last hour".to_owned()),
    ];
    html! {
        dl.tiles aria-label="The last hour in numbers" {
            @for (name, value, note) in &tiles { div { dt { (name) } dd { (value) } dd.note { (note) } } }
        }
    }
}

fn card(slo: &Slo, standing: Option<Standing>, hour: &Counts, minutes: &[(u64, Counts)]) -> Markup {
    let level = hour.level(slo);
    let levels: Vec<(u64, Level)> = minutes.iter().map(|(minute, counts)| (*minute, counts.level(slo))).collect();
    let ten = together(minutes.iter().rev().take(10)).level(slo);
    let shown = |level: Level| level.value.map_or("–".to_owned(), |value| format::value(slo.measure, value));
    let (class, badge) = match standing {
        None if level.count == 0 => ("none", "no requests".to_owned()),
        None => ("none", format!("too few: < {}", slo.at_least)),
        Some(standing @ Standing::Within) => (standing.class(), "within target".to_owned()),
        Some(standing @ Standing::Missed) => (standing.class(), "above target".to_owned()),
        Some(standing @ Standing::Alert) => (standing.class(), "above alert".to_owned()),
    };
    let statistic = match slo.measure {
        Measure::Seconds(quantile) | Measure::Usd(quantile) => format!("p{quantile}"),
        Measure::Share => "share".to_owned(),
    };
    let summary = format!(
        "{} {statistic}, minute by minute over the last hour: {}; target {}, alert {}",
        slo.title,
        shown(level),
        format::value(slo.measure, slo.target),
        format::value(slo.measure, slo.alert)
    );
    html! {
        article.card.level {
            div.title { h3 { (slo.title) } span class={ "badge " (class) } { (badge) } }
            p.value { span { (shown(level)) " " small { (statistic) } } small { "last 10 min: " (shown(ten)) } }
            (plot(slo, &levels, &summary))
            p.note {
                "target < " (format::value(slo.measure, slo.target)) " · alert > "
                (format::value(slo.measure, slo.alert)) " · " (format::count(level.count)) " " (slo.counted)
            }
            details {
                summary { "As a table" }
                @if level.count == 0 { p.note { "Nothing in the last hour." } }
                @else {
                    (scrolling(&format!("{} by the minute", slo.title), &html! {
                        table {
                            thead { tr { th scope="col" { "Minute (UTC)" } th scope="col" { (statistic) } th scope="col" { "Requests" } } }
                            tbody {
                                @for (minute, level) in levels.iter().rev().filter(|(_, level)| level.count > 0) {
                                    tr { td { (format::minute_of_day(*minute)) } td { (shown(*level)) } td { (format::count(level.count)) } }
                                }
                            }
                        }
                    }))
                }
            }
        }
    }
}
