//! What happened when in one request: its steps on one time line, and the same as a table.

use maud::{Markup, html};
use parapet_engine::record::{Attempt, GuardRecord, Record};

use super::{format, scrolling};
use crate::metrics::slo::first_token_us;

/// Steps that are drawn; the record of a request has no more attempts than its chain has providers.
const MOST: usize = 40;
/// Of the bars' coordinates.
const WIDTH: f64 = 1000.0;

struct Step {
    name: String,
    class: &'static str,
    start_us: u64,
    /// None: a moment.
    end_us: Option<u64>,
    /// Of an attempt: its first token.
    first_us: Option<u64>,
    result: String,
}

pub(super) fn waterfall(record: &Record) -> Markup {
    let steps = steps(record);
    let end_us = steps.iter().filter_map(|step| step.end_us).max().unwrap_or(record.end_us).max(record.start_us + 1);
    let span = (end_us - record.start_us) as f64;
    let x = |us: u64| tenths(us.saturating_sub(record.start_us) as f64 / span * WIDTH);
    let ms = |us: u64| us.saturating_sub(record.start_us) as f64 / 1e3;
    html! {
        figure.waterfall aria-label="Waterfall of the request" {
            @for step in &steps {
                div.row {
                    div.name { (step.name) " " span.note { (step.result) } }
                    div.lane {
                        svg viewBox={ "0 0 " (WIDTH) " 16" } preserveAspectRatio="none" role="img"
                            aria-label={ (step.name) ": from " (format::duration(ms(step.start_us))) " to " (format::duration(ms(step.end_us.unwrap_or(step.start_us)))) } {
                            @for quarter in 0..5 { line.grid x1=(f64::from(quarter) * WIDTH / 4.0) x2=(f64::from(quarter) * WIDTH / 4.0) y1="0" y2="16" {} }
                            @let (from, to) = (x(step.start_us), x(step.end_us.unwrap_or(step.start_us)));
                            @match step.first_us {
                                Some(first) => {
                                    rect class={ "bar wait " (step.class) } x=(from) width=(width(from, x(first))) y="3" height="10" {}
                                    rect class={ "bar " (step.class) } x=(x(first).min(WIDTH - 3.0)) width=(width(x(first), to)) y="3" height="10" {}
                                }
                                None => rect class={ "bar " (step.class) } x=(from.min(WIDTH - 3.0)) width=(width(from, to)) y="3" height="10" {},
                            }
                        }
                    }
                    div.took { @match step.end_us { Some(end) => (format::duration(end.saturating_sub(step.start_us) as f64 / 1e3)), None => { "at " (format::duration(ms(step.start_us))) } } }
                }
            }
            div.row.scale aria-hidden="true" {
                div.name {}
                div.ticks { @for quarter in 0..5_u32 { span { (format::duration(span / 1e3 * f64::from(quarter) / 4.0)) } } }
                div.took {}
            }
        }
        details {
            summary { "As a table" }
            (scrolling("Steps of the request", &html! {
                table {
                    thead { tr { th scope="col" { "Step" } th.number scope="col" { "Start" } th.number scope="col" { "First token" } th.number scope="col" { "End" } th.number scope="col" { "Took" } th scope="col" { "Result" } } }
                    tbody { @for step in &steps { tr {
                        td { (step.name) }
                        td.number { "+" (format::duration(ms(step.start_us))) }
                        td.number { (step.first_us.map_or("–".to_owned(), |first| format!("+{}", format::duration(ms(first))))) }
                        td.number { (step.end_us.map_or("–".to_owned(), |end| format!("+{}", format::duration(ms(end))))) }
                        td.number { (step.end_us.map_or("–".to_owned(), |end| format::duration(end.saturating_sub(step.start_us) as f64 / 1e3))) }
                        td { (step.result) }
                    } } }
                }
            }))
        }
    }
}

fn steps(record: &Record) -> Vec<Step> {
    let moment = |name: &str, class, at, result: String| Step {
        name: name.to_owned(),
        class,
        start_us: at,
        end_us: None,
        first_us: None,
        result,
    };
    let mut steps = vec![Step {
        end_us: Some(record.end_us),
        ..moment("request", "request", record.start_us, format!("status {}", record.status))
    }];
    if let Some(cache) = &record.cache {
        let age = cache.age_s.map(|age| format!(", {} old", format::stretch(age))).unwrap_or_default();
        steps.push(moment("cache", "cache", record.start_us, format!("{}{age}", cache.outcome)));
    }
    steps.extend(record.input_guard.as_ref().map(|guard| judged("input guard", guard, record.start_us)));
    let attempts = record.attempts.iter().enumerate().take(MOST);
    steps.extend(attempts.map(|(index, attempt)| attempted(index, attempt, record)));
    steps.extend(record.output_guard.as_ref().map(|guard| judged("output guard", guard, record.end_us)));
    if let Some(first) = first_token_us(record) {
        let name = if record.stream { "first token" } else { "answer" };
        steps.push(moment(name, "token", first, "ready for the client".to_owned()));
    }
    let end = if record.client_aborted { "the client left" } else { "over" };
    steps.push(moment("end", "end", record.end_us, end.to_owned()));
    steps
}

/// `otherwise`: where a verdict stands that needed no call.
fn judged(name: &str, guard: &GuardRecord, otherwise: u64) -> Step {
    let mut result = guard.verdict.clone();
    if !guard.categories.is_empty() {
        result = format!("{result} {}", guard.categories.join(", "));
    }
    if guard.action != "pass" {
        result = format!("{result}, {}", guard.action);
    }
    let calls = match guard.calls {
        0 => ", remembered".to_owned(),
        1 => String::new(),
        calls => format!(", {calls} calls"),
    };
    Step {
        name: name.to_owned(),
        class: if guard.action == "block" { "stopped" } else { "guard" },
        start_us: guard.start_us.unwrap_or(otherwise),
        end_us: guard.start_us.and(guard.end_us),
        first_us: None,
        result: result + &calls,
    }
}

fn attempted(index: usize, attempt: &Attempt, record: &Record) -> Step {
    let result = match (attempt.outcome.as_str(), attempt.status) {
        ("status", status) => format!("status {status}"),
        (outcome, 0) => outcome.replace('_', " "),
        (outcome, status) => format!("{}, status {status}", outcome.replace('_', " ")),
    };
    let next = record.attempts.get(index + 1).map(|next| next.start_us);
    Step {
        name: format!("{}: {}", index + 1, attempt.provider),
        class: if attempt.outcome == "ok" { "attempt" } else { "stopped" },
        start_us: attempt.start_us,
        end_us: Some(attempt.end_us.or(next).unwrap_or(record.end_us)),
        first_us: attempt.first_token_us,
        result,
    }
}

/// A moment is a line of its own width.
fn width(from: f64, to: f64) -> f64 {
    tenths((to - from).max(3.0))
}

fn tenths(value: f64) -> f64 {
    (value.clamp(0.0, WIDTH) * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use parapet_engine::record::CacheRecord;

    use super::*;

    #[test]
    fn each_step_has_its_place() {
        let attempt = |provider: &str, start, first, end, outcome: &str| Attempt {
            provider: provider.to_owned(),
            start_us: start,
            first_token_us: first,
            end_us: end,
            outcome: outcome.to_owned(),
            ..Attempt::default()
        };
        let record = Record {
            start_us: 1_000_000,
            end_us: 2_000_000,
            status: 200,
            stream: true,
            first_token_us: Some(1_500_000),
            cache: Some(CacheRecord { outcome: "miss".to_owned(), ..CacheRecord::default() }),
            input_guard: Some(GuardRecord {
                verdict: "safe".to_owned(),
                action: "pass".to_owned(),
                calls: 1,
                start_us: Some(1_000_000),
                end_us: Some(1_100_000),
                ..GuardRecord::default()
            }),
            attempts: vec![
                attempt("vllm", 1_000_000, None, Some(1_250_000), "status"),
                attempt("openai", 1_250_000, Some(1_500_000), Some(2_000_000), "ok"),
            ],
            ..Record::default()
        };
        let names: Vec<String> = steps(&record).into_iter().map(|step| step.name).collect();
        assert_eq!(names, ["request", "cache", "input guard", "1: vllm", "2: openai", "first token", "end"]);
        let drawn = waterfall(&record).into_string();
        assert!(drawn.contains(r#"class="bar stopped" x="0" width="250""#), "{drawn}");
        assert!(drawn.contains(r#"class="bar wait attempt" x="250" width="250""#), "{drawn}");
        assert!(drawn.contains(r#"class="bar attempt" x="500" width="500""#), "{drawn}");
    }

    #[test]
    fn times_that_make_no_sense_do_no_harm() {
        let attempt = Attempt { start_us: 9, first_token_us: Some(3), end_us: Some(1), ..Attempt::default() };
        waterfall(&Record { start_us: 5, end_us: 0, attempts: vec![attempt; 100], ..Record::default() });
        waterfall(&Record { start_us: u64::MAX - 1, end_us: u64::MAX, ..Record::default() });
    }
}
