//! A run as LangSmith takes it: a small head, and the big fields as JSON texts that are never parsed again.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use uuid::Uuid;

/// The fields that travel as parts of their own.
pub const FIELDS: [&str; 5] = ["inputs", "outputs", "events", "extra", "error"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RunType {
    Chain,
    Llm,
    Tool,
}

/// The run without its big fields.
#[derive(Debug, Clone, Serialize)]
pub struct Head {
    #[serde(serialize_with = "text")]
    pub id: Uuid,
    #[serde(serialize_with = "text")]
    pub trace_id: Uuid,
    #[serde(serialize_with = "maybe_text", skip_serializing_if = "Option::is_none")]
    pub parent_run_id: Option<Uuid>,
    pub dotted_order: String,
    pub name: String,
    pub run_type: RunType,
    pub start_time: String,
    pub end_time: String,
    pub session_name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub id: Uuid,
    /// A JSON object.
    pub head: String,
    /// By name, each a JSON text.
    pub fields: Vec<(&'static str, String)>,
}

impl Run {
    pub fn new(head: &Head, fields: Vec<(&'static str, String)>) -> Self {
        // Texts in a struct cannot fail to be JSON; if they could, LangSmith would refuse the run and it would be parked.
        Self { id: head.id, head: serde_json::to_string(head).unwrap_or_else(|_| "{}".to_owned()), fields }
    }

    /// The run that [`Run::whole`] wrote.
    pub fn read(id: Uuid, whole: &RawValue) -> Result<Self, serde_json::Error> {
        let mut head: BTreeMap<String, Box<RawValue>> = serde_json::from_str(whole.get())?;
        let field = |name| head.remove(name).map(|value| (name, value.get().to_owned()));
        let fields = FIELDS.into_iter().filter_map(field).collect();
        Ok(Self { id, head: serde_json::to_string(&head)?, fields })
    }

    /// The whole run as one JSON object.
    pub fn whole(&self) -> String {
        let mut json = self.head.clone();
        json.pop();
        for (name, value) in &self.fields {
            json.push_str(",\"");
            json.push_str(name);
            json.push_str("\":");
            json.push_str(value);
        }
        json.push('}');
        json
    }

    /// Not fewer bytes than it takes on the wire, uncompressed.
    pub fn size(&self) -> usize {
        /// A part's head.
        const PART: usize = 256;
        PART + self.head.len() + self.fields.iter().map(|(_, value)| PART + value.len()).sum::<usize>()
    }

    #[cfg(test)]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.whole()).unwrap()
    }
}

fn text<S: Serializer>(id: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

fn maybe_text<S: Serializer>(id: &Option<Uuid>, serializer: S) -> Result<S::Ok, S::Error> {
    match id {
        Some(id) => serializer.collect_str(id),
        None => serializer.serialize_none(),
    }
}
