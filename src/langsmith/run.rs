//! A run as LangSmith takes it: a small head, and the big fields as JSON texts that are never parsed again.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use uuid::Uuid;

/// The fields that travel as parts of their own.
const FIELDS: [&str; 5] = ["inputs", "outputs", "events", "extra", "error"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunType {
    Chain,
    Llm,
    Tool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    #[serde(serialize_with = "text", deserialize_with = "uuid")]
    pub id: Uuid,
    #[serde(serialize_with = "text", deserialize_with = "uuid")]
    pub trace_id: Uuid,
    #[serde(
        default,
        serialize_with = "maybe_text",
        deserialize_with = "maybe_uuid",
        skip_serializing_if = "Option::is_none"
    )]
    pub parent_run_id: Option<Uuid>,
    pub dotted_order: String,
    pub name: String,
    pub run_type: RunType,
    pub start_time: String,
    pub end_time: String,
    pub session_name: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The big fields by name, each a JSON text.
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

    /// The run that [`Run::whole`] wrote.
    pub fn read(whole: &RawValue) -> Result<Self, serde_json::Error> {
        let mut run: Self = serde_json::from_str(whole.get())?;
        let all: BTreeMap<String, &RawValue> = serde_json::from_str(whole.get())?;
        let field = |name| all.get(name).map(|value| (name, value.get().to_owned()));
        run.fields = FIELDS.into_iter().filter_map(field).collect();
        Ok(run)
    }

    /// Not fewer bytes than it takes on the wire, uncompressed.
    pub fn size(&self) -> usize {
        /// A part's own head, or the names and the fixed fields of the run's.
        const PART: usize = 256;
        const HEAD: usize = 512;
        /// What a character may become in JSON: `\u0000`.
        const ESCAPED: usize = 6;
        let texts = [&self.name, &self.session_name].into_iter().chain(&self.tags);
        let head = HEAD + self.dotted_order.len() + texts.map(|text| text.len() * ESCAPED + 3).sum::<usize>();
        PART + head + self.fields.iter().map(|(_, value)| PART + value.len()).sum::<usize>()
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

fn uuid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
    let text = String::deserialize(deserializer)?;
    Uuid::try_parse(&text).map_err(serde::de::Error::custom)
}

fn maybe_uuid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Uuid>, D::Error> {
    uuid(deserializer).map(Some)
}
