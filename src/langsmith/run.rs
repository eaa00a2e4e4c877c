//! A run as LangSmith takes it: a small head, and the big fields as JSON texts that are never parsed again.

use serde::{Serialize, Serializer};
use uuid::Uuid;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RunType {
    Chain,
    Llm,
    Tool,
}

#[derive(Debug, Clone, Serialize)]
pub struct Run {
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
    /// The fields that travel as parts of their own, by name, each a JSON text: `inputs`, `outputs`, `events`, `extra`,
    /// `error`.
    #[serde(skip)]
    pub fields: Vec<(&'static str, String)>,
}

impl Run {
    /// The run without its big fields.
    pub fn head(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// The whole run as one JSON object.
    pub fn whole(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut json = self.head()?;
        json.pop();
        for (name, value) in &self.fields {
            json.extend_from_slice(b",\"");
            json.extend_from_slice(name.as_bytes());
            json.extend_from_slice(b"\":");
            json.extend_from_slice(value.as_bytes());
        }
        json.push(b'}');
        Ok(json)
    }

    /// About how many bytes it takes on the wire.
    pub fn size(&self) -> usize {
        const HEAD: usize = 1024;
        HEAD + self.dotted_order.len() + self.fields.iter().map(|(_, value)| value.len() + 256).sum::<usize>()
    }

    #[cfg(test)]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.whole().unwrap()).unwrap()
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
