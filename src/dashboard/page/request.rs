//! The page of one request.

use maud::{Markup, html};
use parapet_engine::record::{Answered, GuardRecord, Record};
use serde_json::Value;

use super::waterfall::waterfall;
use super::{format, frame, sections};
use crate::metrics::outcome::Outcome;

/// Characters of one text that are shown.
const LONGEST: usize = 4_000;
/// Messages and answers that are shown, the newest.
const MOST: usize = 50;

pub(crate) fn page(record: &Record) -> String {
    let main = html! {
        p.back { a href="/" { "← Overview" } }
        div.headline {
            h1 { "Request " code { (record.id) } }
            p { (sections::outcome(Outcome::of(record), record.status, record.reason.as_deref())) }
        }
        section.card aria-labelledby="waterfall" { h2 id="waterfall" { "Waterfall" } (waterfall(record)) }
        div.columns {
            section.card aria-labelledby="facts" { h2 id="facts" { "Facts" } (facts(record)) }
            div { @for (name, guard) in [("Input guard", &record.input_guard), ("Output guard", &record.output_guard)] {
                @if let Some(guard) = guard { section.card { h2 { (name) } (judged(guard)) } }
            } }
        }
        section.card aria-labelledby="said" { h2 id="said" { "Conversation" } (conversation(record)) }
    };
    frame(&format!("Request {} · Parapet", record.id), false, &html! {}, &main)
}

fn list(rows: &[(&str, String)]) -> Markup {
    html! { dl.facts { @for (name, value) in rows.iter().filter(|(_, value)| !value.is_empty()) { div { dt { (name) } dd { (cut(value)) } } } } }
}

fn facts(record: &Record) -> Markup {
    let api = if record.stream { format!("{}, streamed", record.api) } else { record.api.clone() };
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let tokens = record.usage.map(|usage| {
        let counted = if usage.estimated { ", counted by Parapet" } else { "" };
        let cached =
            if usage.cached > 0 { format!(" ({} from the prefix cache)", usage.cached) } else { String::new() };
        format!("{} + {}{cached}{counted}", format::count(usage.prompt), format::count(usage.completion))
    });
    let quota = record.quota.as_ref().map(|quota| {
        format!("{} reserved, {} used", format::count(quota.reserved_tokens), format::count(quota.settled_tokens))
    });
    let mut marks = Vec::new();
    if record.client_aborted {
        marks.push("the client left before the end");
    }
    if record.truncated {
        marks.push("cut off upstream");
    }
    if record.redacted {
        marks.push("redacted by the policy");
    }
    let asked = !record.attempts.is_empty();
    list(&[
        ("Status", format!("{} {}", record.status, text(&record.reason))),
        ("Started", format!("{} UTC", format::moment(record.start_us))),
        ("Took", format::duration(record.end_us.saturating_sub(record.start_us) as f64 / 1e3)),
        (
            "Tenant / user",
            if record.tenant.is_empty() { String::new() } else { format!("{} / {}", record.tenant, record.user) },
        ),
        ("Policy", record.policy.clone()),
        ("Endpoint", api),
        ("Model", record.model.clone()),
        (
            "Answered by",
            record.attempts.last().map(|last| format!("{} ({})", last.provider, last.model)).unwrap_or_default(),
        ),
        ("Tokens", tokens.unwrap_or_default()),
        ("Cost", if asked { format::nanousd(record.cost_nanousd) } else { String::new() }),
        ("Quota", quota.unwrap_or_default()),
        ("Session", text(&record.session)),
        ("Feature", text(&record.feature)),
        ("End user", text(&record.end_user)),
        ("Request id", text(&record.request_id)),
        ("Marks", marks.join(", ")),
    ])
}

fn judged(guard: &GuardRecord) -> Markup {
    list(&[
        ("Verdict", guard.verdict.clone()),
        ("Action", guard.action.clone()),
        ("Categories", guard.categories.join(", ")),
        ("P(unsafe)", guard.score.map(|score| format!("{score:.4}")).unwrap_or_default()),
        ("Mode", guard.mode.clone()),
        ("Model", guard.model.clone()),
        ("Calls", if guard.calls == 0 { "none: remembered".to_owned() } else { guard.calls.to_string() }),
    ])
}

fn conversation(record: &Record) -> Markup {
    let messages: Vec<Value> =
        record.messages.as_ref().and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
    let hidden = messages.len().saturating_sub(MOST);
    html! {
        @if messages.is_empty() && record.answers.is_empty() { p.note { "The record holds no texts of this request: there were none, or the policy does not write them down." } }
        @if hidden > 0 { p.note { (hidden) " earlier messages are not shown." } }
        @for message in messages.iter().skip(hidden) {
            (said(message.get("role").and_then(Value::as_str).unwrap_or("?"), "asked", &content(message)))
        }
        @for answer in record.answers.iter().take(MOST) { (answered(answer)) }
    }
}

fn said(role: &str, class: &str, text: &str) -> Markup {
    html! { div class={ "said " (class) } { h3 { (cut(role)) } pre { (cut(text)) } } }
}

/// The text of a message; of other parts their kind alone.
fn content(message: &Value) -> String {
    let mut text = match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let part = |part: &Value| match part.get("text").and_then(Value::as_str) {
                Some(text) => text.to_owned(),
                None => format!("[{}]", part.get("type").and_then(Value::as_str).unwrap_or("?")),
            };
            parts.iter().map(part).collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    };
    for call in message.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
        let function = |key: &str| call.get("function").and_then(|function| function.get(key)?.as_str()).unwrap_or("?");
        text.push_str(&format!("\n→ {}({})", function("name"), function("arguments")));
    }
    text
}

fn answered(answer: &Answered) -> Markup {
    let mut text = answer.content.clone();
    text.push_str(&answer.refusal);
    for call in &answer.tool_calls {
        text.push_str(&format!("\n→ {}({})", call.name, call.arguments));
    }
    let end = answer.finish_reason.as_deref().map(|reason| format!("answer ({reason})"));
    html! {
        @if !answer.reasoning.is_empty() { (said("reasoning", "reasoned", &answer.reasoning)) }
        (said(end.as_deref().unwrap_or("answer"), "answered", &text))
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => {
            format!("{} … ({} more characters)", text.get(..end).unwrap_or_default(), text.chars().count() - LONGEST)
        }
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use parapet_engine::record::ToolCall;
    use serde_json::json;

    use super::*;

    const HOSTILE: &str = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&";

    /// Every text that a client, a model or a guard can choose.
    fn hostile() -> Record {
        let text = || HOSTILE.to_owned();
        let messages = json!([
            {"role": HOSTILE, "content": HOSTILE},
            {"role": "user", "content": [{"type": HOSTILE}, {"type": "text", "text": HOSTILE}]},
            {"role": "assistant", "tool_calls": [{"function": {"name": HOSTILE, "arguments": HOSTILE}}]},
        ]);
        let guard = GuardRecord {
            verdict: text(),
            action: text(),
            categories: vec![text()],
            model: text(),
            mode: text(),
            ..GuardRecord::default()
        };
        let attempt =
            parapet_engine::record::Attempt { provider: text(), model: text(), outcome: text(), ..Default::default() };
        Record {
            id: text(),
            api: text(),
            reason: Some(text()),
            tenant: text(),
            user: text(),
            policy: text(),
            session: Some(text()),
            feature: Some(text()),
            end_user: Some(text()),
            request_id: Some(text()),
            model: text(),
            messages: Some(serde_json::value::to_raw_value(&messages).unwrap()),
            answers: vec![Answered {
                content: text(),
                reasoning: text(),
                refusal: text(),
                tool_calls: vec![ToolCall { id: text(), name: text(), arguments: text() }],
                finish_reason: Some(text()),
            }],
            input_guard: Some(guard.clone()),
            output_guard: Some(guard),
            attempts: vec![attempt],
            cache: Some(parapet_engine::record::CacheRecord { outcome: text(), ..Default::default() }),
            ..Record::default()
        }
    }

    #[test]
    fn whatever_was_said_is_text() {
        let page = page(&hostile());
        assert!(!page.contains("<script") && !page.contains("<img"), "{page}");
        let escaped = "&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;&quot;'&amp;";
        assert!(page.matches(escaped).count() > 25, "{page}");
        // An attribute cannot be left: its quotes are double ones.
        assert!(!page.contains(r#"alert(1)>""#), "{page}");
    }

    #[test]
    fn texts_are_cut_and_a_record_without_them_says_so() {
        let messages: Vec<Value> = (0..60)
            .map(|number| json!({"role": "user", "content": format!("{number}: {}", "é".repeat(9000))}))
            .collect();
        let record =
            Record { messages: Some(serde_json::value::to_raw_value(&messages).unwrap()), ..Record::default() };
        let shown = page(&record);
        assert!(shown.contains("10 earlier messages") && shown.contains("more characters)") && shown.len() < 1 << 20);
        assert!(page(&Record::default()).contains("The record holds no texts"));
    }
}
