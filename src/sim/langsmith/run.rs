//! What makes a run or a feedback acceptable.

use axum::http::StatusCode;
use serde_json::{Map, Value};
use uuid::Uuid;

pub(super) type Object = Map<String, Value>;

/// An answer that stores nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub(super) fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, message)
    }
}

const RUN_TYPES: [&str; 7] = ["tool", "chain", "llm", "retriever", "embedding", "prompt", "parser"];
/// Length of `20261123T084146535477Z`.
const STAMP: usize = 22;
const UUID: usize = 36;

pub(super) fn text<'a>(object: &'a Object, field: &str) -> Option<&'a str> {
    object.get(field).and_then(Value::as_str)
}

fn required<'a>(object: &'a Object, field: &str, of: &str) -> Result<&'a str, Refusal> {
    text(object, field).ok_or_else(|| Refusal::unprocessable(format!("{of}: {field} is missing or not a string")))
}

pub(super) fn is_uuid(text: &str) -> bool {
    text.len() == UUID && Uuid::try_parse(text).is_ok() && !text.contains(|c: char| c.is_ascii_uppercase())
}

fn required_uuid<'a>(object: &'a Object, field: &str, of: &str) -> Result<&'a str, Refusal> {
    let id = required(object, field, of)?;
    if is_uuid(id) { Ok(id) } else { Err(Refusal::unprocessable(format!("{of}: {field} {id:?} is not a UUID"))) }
}

/// A run to create. `ordered`: batch and multipart ask for trace_id and dotted_order, a single run does not.
pub(super) fn check_post(run: &Object, ordered: bool) -> Result<(), Refusal> {
    let id = required_uuid(run, "id", "run")?;
    let of = format!("run {id}");
    required(run, "name", &of)?;
    let run_type = required(run, "run_type", &of)?;
    if !RUN_TYPES.contains(&run_type) {
        return Err(Refusal::unprocessable(format!("{of}: run_type {run_type:?} is none of {}", RUN_TYPES.join(", "))));
    }
    if ordered {
        required(run, "start_time", &of)?;
    }
    check_fields(run, &of)?;
    if ordered || run.contains_key("dotted_order") { check_order(run, &of) } else { Ok(()) }
}

/// A run to change.
pub(super) fn check_patch(run: &Object, ordered: bool) -> Result<(), Refusal> {
    let of = format!("run {}", required_uuid(run, "id", "run")?);
    check_fields(run, &of)?;
    if ordered || run.contains_key("dotted_order") { check_order(run, &of) } else { Ok(()) }
}

fn check_fields(run: &Object, of: &str) -> Result<(), Refusal> {
    let wrong = |field: &str, kind: &str| Refusal::unprocessable(format!("{of}: {field} is not {kind}"));
    for (field, value) in run.iter().filter(|(_, value)| !value.is_null()) {
        match field.as_str() {
            "inputs" | "outputs" | "extra" | "serialized" if !value.is_object() => {
                return Err(wrong(field, "an object"));
            }
            "events" | "tags" if !value.is_array() => return Err(wrong(field, "an array")),
            "error" | "name" | "session_name" if !value.is_string() => return Err(wrong(field, "a string")),
            "start_time" | "end_time" if !value.as_str().is_some_and(is_time) => {
                return Err(wrong(field, "an ISO 8601 time"));
            }
            "parent_run_id" | "trace_id" | "session_id" if !value.as_str().is_some_and(is_uuid) => {
                return Err(wrong(field, "a UUID"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// `2026-11-23T08:41:46` with an optional fraction and zone.
fn is_time(text: &str) -> bool {
    let Some((moment, rest)) = text.split_at_checked(19) else { return false };
    let shape = moment.bytes().zip("0000-00-00T00:00:00".bytes());
    let moment_fits =
        shape.into_iter().all(|(c, pattern)| if pattern == b'0' { c.is_ascii_digit() } else { c == pattern });
    let zone = match rest.strip_prefix('.') {
        Some(fraction) => fraction.trim_start_matches(|c: char| c.is_ascii_digit()),
        None => rest,
    };
    let offset = || zone.len() == 6 && zone.starts_with(['+', '-']) && zone.as_bytes().get(3) == Some(&b':');
    moment_fits && (zone.is_empty() || zone == "Z" || offset())
}

/// The invariants of dotted_order; LangSmith answers 400 where one is broken.
fn check_order(run: &Object, of: &str) -> Result<(), Refusal> {
    let bad = |message: String| Err(Refusal::new(StatusCode::BAD_REQUEST, format!("{of}: {message}")));
    let id = required_uuid(run, "id", of)?;
    let trace_id = required_uuid(run, "trace_id", of)?;
    let order = required(run, "dotted_order", of)?;
    let parent = text(run, "parent_run_id");
    let mut segments = Vec::new();
    for segment in order.split('.') {
        match segment.split_at_checked(STAMP) {
            Some((stamp, id)) if is_stamp(stamp) && is_uuid(id) => segments.push((stamp, id)),
            _ => return bad(format!("invalid timestamp in dotted_order {order:?}: parsing time of part {segment:?}")),
        }
    }
    let first = segments.first().map(|(_, id)| *id);
    let last = segments.last().map(|(_, id)| *id);
    let before_last = segments.iter().rev().nth(1).map(|(_, id)| *id);
    if parent.is_none() && segments.len() > 1 {
        return bad("dotted_order must contain a single part for root runs".into());
    }
    if parent.is_some() && segments.len() < 2 {
        return bad("dotted_order must contain at least two parts for child runs".into());
    }
    if first != Some(trace_id) {
        return bad(format!("trace_id {trace_id} does not match first part of dotted_order {order}"));
    }
    if last != Some(id) {
        return bad(format!("run_id {id} does not match last part of dotted_order {order}"));
    }
    if before_last != parent {
        return bad(format!("parent_run_id does not match the part before the last of dotted_order {order}"));
    }
    if !segments.is_sorted_by_key(|(stamp, _)| *stamp) {
        return bad(format!("dotted_order {order} has a part earlier than its parent"));
    }
    Ok(())
}

/// `%Y%m%dT%H%M%S%fZ` with six digits of fraction.
fn is_stamp(stamp: &str) -> bool {
    let shape = stamp.bytes().zip("00000000T000000000000Z".bytes());
    let digits = shape.into_iter().all(|(c, pattern)| if pattern == b'0' { c.is_ascii_digit() } else { c == pattern });
    let number = |from: usize| stamp.get(from..from + 2).and_then(|two| two.parse::<u8>().ok()).unwrap_or(u8::MAX);
    let date = (1..=12).contains(&number(4)) && (1..=31).contains(&number(6));
    digits && date && number(9) < 24 && number(11) < 60 && number(13) < 60
}

/// A feedback for `POST /feedback`: about a run or a trace.
pub(super) fn feedback(body: Value) -> Result<Object, Refusal> {
    let Value::Object(mut feedback) = body else { return Err(Refusal::unprocessable("feedback is not an object")) };
    required(&feedback, "key", "feedback")?;
    if !feedback.contains_key("id") {
        feedback.insert("id".into(), Value::String(Uuid::now_v7().to_string()));
    }
    required_uuid(&feedback, "id", "feedback")?;
    if text(&feedback, "run_id").or(text(&feedback, "trace_id")).is_none() {
        return Err(Refusal::unprocessable("feedback: give run_id or trace_id"));
    }
    check_feedback_fields(&feedback)?;
    Ok(feedback)
}

/// A feedback part of a multipart request, which must name its trace.
pub(super) fn check_feedback_part(feedback: &Object, id: &str) -> Result<(), Refusal> {
    let of = format!("feedback.{id}");
    required(feedback, "key", &of)?;
    required_uuid(feedback, "trace_id", &of)?;
    if text(feedback, "id").is_some_and(|inner| inner != id) {
        return Err(Refusal::unprocessable(format!("{of}: its id is another")));
    }
    check_feedback_fields(feedback)
}

fn check_feedback_fields(feedback: &Object) -> Result<(), Refusal> {
    let score = feedback.get("score").unwrap_or(&Value::Null);
    if !(score.is_null() || score.is_number() || score.is_boolean()) {
        return Err(Refusal::unprocessable("feedback: score is neither a number nor a boolean"));
    }
    if !feedback.get("comment").is_none_or(|comment| comment.is_null() || comment.is_string()) {
        return Err(Refusal::unprocessable("feedback: comment is not a string"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const A: &str = "01a20791-8327-7764-a3ea-7224f6c98036";
    const B: &str = "01a20791-8327-7764-a3ea-7224f6c98037";
    const T1: &str = "20261123T084146535477Z";
    const T0: &str = "20261123T084146535476Z";

    fn order(id: &str, trace_id: &str, parent: Option<&str>, order: &str) -> Result<(), Refusal> {
        let run = json!({
            "id": id, "trace_id": trace_id, "parent_run_id": parent, "dotted_order": order, "name": "n",
            "run_type": "llm", "start_time": "2026-11-23T08:41:46.535477+00:00",
        });
        check_post(run.as_object().unwrap(), true)
    }

    #[test]
    fn roots_and_children_in_order_are_accepted() {
        assert_eq!(order(A, A, None, &format!("{T1}{A}")), Ok(()));
        assert_eq!(order(B, A, Some(A), &format!("{T1}{A}.{T1}{B}")), Ok(()));
    }

    #[test]
    fn each_broken_invariant_is_400_and_named() {
        let table = [
            (order(B, A, None, &format!("{T1}{A}.{T1}{B}")), "single part for root"),
            (order(B, B, Some(A), &format!("{T1}{B}")), "at least two parts"),
            (order(B, B, Some(A), &format!("{T1}{A}.{T1}{B}")), "does not match first part"),
            (order(A, B, None, &format!("{T1}{B}")), "does not match last part"),
            (order(B, A, Some(B), &format!("{T1}{A}.{T1}{B}")), "parent_run_id does not match"),
            (order(B, A, Some(A), &format!("{T1}{A}.{T0}{B}")), "earlier than its parent"),
            (order(A, A, None, &format!("20261123T084146535Z{A}")), "parsing time"),
            (order(A, A, None, &format!("20261323T084146535477Z{A}")), "parsing time"),
        ];
        for (result, complaint) in table {
            let refusal = result.unwrap_err();
            assert!(refusal.status == 400 && refusal.message.contains(complaint), "{refusal:?}");
        }
    }

    #[test]
    fn wrong_fields_are_422_and_named() {
        let whole = json!({
            "id": A, "trace_id": A, "dotted_order": format!("{T1}{A}"), "name": "n", "run_type": "llm",
            "start_time": "2026-11-23T08:41:46Z",
        });
        let table = [
            ("id", json!("1"), "not a UUID"),
            ("name", Value::Null, "name is missing"),
            ("run_type", json!("model"), "run_type"),
            ("start_time", json!("yesterday"), "ISO 8601"),
            ("inputs", json!([1]), "inputs is not an object"),
            ("outputs", json!("x"), "outputs is not an object"),
            ("error", json!({}), "error is not a string"),
            ("dotted_order", Value::Null, "dotted_order is missing"),
        ];
        for (field, value, complaint) in table {
            let mut run = whole.as_object().unwrap().clone();
            assert_eq!(check_post(&run, true), Ok(()));
            run.insert(field.into(), value);
            let refusal = check_post(&run, true).unwrap_err();
            assert!(refusal.status == 422 && refusal.message.contains(complaint), "{refusal:?}");
        }
    }
}
