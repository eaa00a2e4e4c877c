//! docs/record.md against the record: one with everything set, written as the filter writes it.

use std::collections::{BTreeMap, BTreeSet};

use parapet_engine::record::{
    Answered, Attempt, CacheRecord, Content, GuardRecord, QuotaRecord, Record, ToolCall, Usage, VERSION,
};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::page::{Page, code};

/// No field is left to its default, so that a new one does not compile until it stands here.
fn whole() -> Record {
    let text = || "x".to_owned();
    let some = || Some(text());
    let raw = |json: &str| Some(RawValue::from_string(json.to_owned()).unwrap());
    let guard = || GuardRecord {
        mode: text(),
        verdict: text(),
        action: text(),
        score: Some(0.5),
        categories: vec![text()],
        model: text(),
        calls: 1,
        start_us: Some(1),
        end_us: Some(1),
        text_digest: some(),
        text: some(),
    };
    let call = ToolCall { id: text(), name: text(), arguments: text() };
    Record {
        v: VERSION,
        id: text(),
        start_us: 1,
        end_us: 1,
        api: text(),
        status: 200,
        reason: some(),
        tenant: text(),
        user: text(),
        policy: text(),
        revision: text(),
        session: some(),
        feature: some(),
        end_user: some(),
        request_id: some(),
        traceparent: some(),
        langsmith_parent: some(),
        model: text(),
        stream: true,
        messages: raw("[]"),
        params: raw("{}"),
        answers: vec![Answered {
            content: text(),
            reasoning: text(),
            refusal: text(),
            tool_calls: vec![call],
            finish_reason: some(),
        }],
        first_token_us: Some(1),
        usage: Some(Usage { prompt: 1, completion: 1, cached: 1, reasoning: 1, estimated: true }),
        cost_nanousd: 1,
        input_guard: Some(guard()),
        output_guard: Some(guard()),
        cache: Some(CacheRecord { outcome: text(), key: some(), store_s: Some(1), age_s: Some(1) }),
        quota: Some(QuotaRecord { reserved_tokens: 1, settled_tokens: 1 }),
        attempts: vec![Attempt {
            provider: text(),
            model: text(),
            start_us: 1,
            first_token_us: Some(1),
            end_us: Some(1),
            status: 200,
            outcome: text(),
            usage: Some(Usage { prompt: 1, completion: 1, cached: 1, reasoning: 1, estimated: true }),
            cost_nanousd: Some(1),
            output_nanousd: Some(1),
        }],
        spilled: true,
        content: Content::Hash,
        prompt_digest: some(),
        answer_digest: some(),
        redacted: true,
        unsampled: true,
        client_aborted: true,
        truncated: true,
    }
}

fn fields(value: &Value, path: &str, found: &mut BTreeMap<String, &'static str>) {
    let Value::Object(object) = value else { return };
    for (key, inner) in object {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let kind = match inner {
            Value::Object(_) => "object",
            Value::Array(_) => "list",
            Value::String(_) => "string",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::Null => "null",
        };
        found.insert(path.clone(), kind);
        match inner {
            Value::Array(list) => list.iter().for_each(|entry| fields(entry, &format!("{path}[]"), found)),
            inner => fields(inner, &path, found),
        }
    }
}

#[test]
fn every_field_is_documented_with_its_type_and_no_other() {
    let mut real = BTreeMap::new();
    fields(&serde_json::to_value(whole()).unwrap(), "", &mut real);
    let real: BTreeSet<(String, &str)> = real.into_iter().collect();
    let rows = Page::open("docs/record.md").rows("Field");
    let documented: BTreeSet<(String, &str)> = rows
        .iter()
        .flat_map(|row| {
            let field = code(&row[0]).unwrap_or_else(|| panic!("{row:?}"));
            let fields = match field.strip_prefix('*') {
                Some(rest) => vec![format!("input{rest}"), format!("output{rest}")],
                None => vec![field.to_owned()],
            };
            fields.into_iter().map(|field| (field, row[1].as_str()))
        })
        .collect();
    assert_eq!(documented, real);
}
