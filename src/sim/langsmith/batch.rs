//! One request's runs and feedback, checked as a whole before anything is stored.

use axum::http::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    multipart::Part,
    run::{Object, Refusal, check_feedback_part, check_patch, check_post, is_uuid, text},
};

/// Fields that come as parts of their own.
const FIELDS: [&str; 6] = ["inputs", "outputs", "events", "extra", "error", "serialized"];

/// Every run carries its `id`.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) posts: Vec<Object>,
    pub(super) patches: Vec<Object>,
    pub(super) feedback: Vec<Value>,
}

impl Batch {
    /// `post.ID`, `patch.ID`, their fields, `feedback.ID` and `attachment.ID.FILENAME`.
    pub(super) fn from_parts(parts: &[Part<'_>]) -> Result<Self, Refusal> {
        let mut batch = Self::default();
        let mut positions = std::collections::HashMap::new();
        let refuse = |part: &Part<'_>, message: &str| Refusal::unprocessable(format!("part {}: {message}", part.name));
        // Fields and attachments may stand before their run.
        let (whole, dependent): (Vec<_>, Vec<_>) = parts.iter().partition(|part| part.name.split('.').count() == 2);
        for part in whole {
            let (kind, id) = part.name.split_once('.').unwrap_or_default();
            if !is_uuid(id) {
                return Err(refuse(part, "no UUID behind the dot"));
            }
            let Value::Object(mut object) = json_of(part)? else { return Err(refuse(part, "not a JSON object")) };
            if text(&object, "id").is_some_and(|inner| inner != id) {
                return Err(refuse(part, "the id inside is another"));
            }
            object.insert("id".into(), json!(id));
            let into = match kind {
                "post" => &mut batch.posts,
                "patch" => &mut batch.patches,
                "feedback" => {
                    check_feedback_part(&object, id)?;
                    batch.feedback.push(Value::Object(object));
                    continue;
                }
                _ => return Err(refuse(part, "neither post, patch, feedback nor attachment")),
            };
            positions.insert((kind, id), into.len());
            into.push(object);
        }
        for part in dependent {
            let mut name = part.name.splitn(3, '.');
            let (Some(kind), Some(id), Some(field)) = (name.next(), name.next(), name.next()) else {
                return Err(refuse(part, "the name has no dot"));
            };
            if kind == "attachment" {
                let post = positions.get(&("post", id)).and_then(|at| batch.posts.get_mut(*at));
                let patch = positions.get(&("patch", id)).and_then(|at| batch.patches.get_mut(*at));
                let run = post.or(patch).ok_or_else(|| refuse(part, "no such run in this request"))?;
                attach(run, field, part).map_err(|message| refuse(part, message))?;
                continue;
            }
            let at = positions.get(&(kind, id)).copied();
            let run = match kind {
                "post" => at.and_then(|at| batch.posts.get_mut(at)),
                "patch" => at.and_then(|at| batch.patches.get_mut(at)),
                _ => return Err(refuse(part, "neither post, patch, feedback nor attachment")),
            };
            let run = run.ok_or_else(|| refuse(part, "no such run in this request"))?;
            if !FIELDS.contains(&field) {
                return Err(refuse(part, "no such field"));
            }
            run.insert(field.to_owned(), json_of(part)?);
        }
        batch.checked(true)
    }

    /// `{"post": [run…], "patch": [run…]}`.
    pub(super) fn from_json(body: Value) -> Result<Self, Refusal> {
        let Value::Object(mut body) = body else { return Err(Refusal::unprocessable("body is not an object")) };
        let mut runs = |list: &str| match body.remove(list) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(runs)) => runs.into_iter().map(|run| object(run, list)).collect(),
            Some(_) => Err(Refusal::unprocessable(format!("{list} is not an array"))),
        };
        let batch = Self { posts: runs("post")?, patches: runs("patch")?, feedback: Vec::new() };
        if batch.posts.is_empty() && batch.patches.is_empty() {
            return Err(Refusal::unprocessable("neither post nor patch has a run"));
        }
        batch.checked(true)
    }

    /// `POST /runs`: id, trace_id and dotted_order may be missing.
    pub(super) fn from_one_run(body: Value) -> Result<Self, Refusal> {
        let mut run = object(body, "run")?;
        if !run.contains_key("id") {
            run.insert("id".into(), json!(Uuid::now_v7().to_string()));
        }
        Self { posts: vec![run], ..Self::default() }.checked(false)
    }

    /// `PATCH /runs/{id}`.
    pub(super) fn from_one_patch(id: &str, body: Value) -> Result<Self, Refusal> {
        let mut run = object(body, "run")?;
        if text(&run, "id").is_some_and(|inner| inner != id) {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "the id inside is another than the path's"));
        }
        run.insert("id".into(), json!(id));
        Self { patches: vec![run], ..Self::default() }.checked(false)
    }

    fn checked(self, ordered: bool) -> Result<Self, Refusal> {
        self.posts.iter().try_for_each(|run| check_post(run, ordered))?;
        self.patches.iter().try_for_each(|run| check_patch(run, ordered))?;
        Ok(self)
    }
}

fn object(value: Value, what: &str) -> Result<Object, Refusal> {
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(Refusal::unprocessable(format!("{what}: not an object"))),
    }
}

fn json_of(part: &Part<'_>) -> Result<Value, Refusal> {
    let refuse = |message: String| Refusal::unprocessable(format!("part {}: {message}", part.name));
    if !part.media_type.eq_ignore_ascii_case("application/json") {
        return Err(refuse(format!("Content-Type {:?} is not application/json", part.media_type)));
    }
    serde_json::from_slice(part.body).map_err(|error| refuse(format!("not JSON: {error}")))
}

/// Keeps what an attachment is, not its bytes.
fn attach(run: &mut Object, filename: &str, part: &Part<'_>) -> Result<(), &'static str> {
    if filename.is_empty() || filename.contains('.') {
        return Err("an attachment's filename must not be empty nor contain a dot");
    }
    let attachments = run.entry("attachments").or_insert_with(|| json!({}));
    let attachments = attachments.as_object_mut().ok_or("the run's attachments are no object")?;
    attachments.insert(filename.to_owned(), json!({"content_type": part.media_type, "bytes": part.body.len()}));
    Ok(())
}
