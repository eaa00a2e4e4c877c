//! The body of `POST /runs/multipart`: for each run a part `post.<id>` with its head, then one part for each big field.
//! Every part carries its length, which LangSmith demands.

use uuid::Uuid;

use super::run::Run;

/// A body and its `Content-Type`.
#[derive(Debug)]
pub struct Form {
    pub content_type: String,
    pub body: Vec<u8>,
}

/// What stands around the parts.
pub const FRAME: usize = 64;

/// Encodes the runs. The boundary is random: content cannot hold it.
pub fn encode(runs: &[Run]) -> Result<Form, serde_json::Error> {
    let boundary = Uuid::new_v7(uuid::Timestamp::now(uuid::NoContext)).simple().to_string();
    let mut body = Vec::with_capacity(runs.iter().map(Run::size).sum::<usize>() + FRAME);
    for run in runs {
        let mut buffer = Uuid::encode_buffer();
        let id = &*run.id.hyphenated().encode_lower(&mut buffer);
        part(&mut body, &boundary, &["post.", id], &run.head()?);
        for (field, value) in &run.fields {
            part(&mut body, &boundary, &["post.", id, ".", field], value.as_bytes());
        }
    }
    for text in ["--", &boundary, "--\r\n"] {
        body.extend_from_slice(text.as_bytes());
    }
    Ok(Form { content_type: format!("multipart/form-data; boundary={boundary}"), body })
}

fn part(body: &mut Vec<u8>, boundary: &str, name: &[&str], content: &[u8]) {
    let length = content.len().to_string();
    for text in ["--", boundary, "\r\nContent-Disposition: form-data; name=\""] {
        body.extend_from_slice(text.as_bytes());
    }
    for text in name {
        body.extend_from_slice(text.as_bytes());
    }
    for text in ["\"\r\nContent-Type: application/json\r\nContent-Length: ", &length, "\r\n\r\n"] {
        body.extend_from_slice(text.as_bytes());
    }
    body.extend_from_slice(content);
    body.extend_from_slice(b"\r\n");
}

/// The body of `POST /runs/batch`, for servers without the multipart endpoint.
pub fn encode_batch(runs: &[Run]) -> Result<Vec<u8>, serde_json::Error> {
    let mut body = b"{\"post\":[".to_vec();
    for (index, run) in runs.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&run.whole()?);
    }
    body.extend_from_slice(b"],\"patch\":[]}");
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::langsmith::run::RunType;

    #[test]
    fn a_form_is_never_longer_than_its_runs_say() {
        for text in ["x".repeat(9_999_999), "\u{1}\"".repeat(1000), String::new()] {
            let run = Run {
                id: Uuid::max(),
                trace_id: Uuid::max(),
                parent_run_id: Some(Uuid::max()),
                dotted_order: "o".repeat(5000),
                name: text.clone(),
                run_type: RunType::Chain,
                start_time: "2026-11-23T08:41:46.535477+00:00".to_owned(),
                end_time: "2026-11-23T08:41:46.535477+00:00".to_owned(),
                session_name: text.clone(),
                tags: vec![text.clone(), text.clone()],
                fields: vec![("inputs", "{}".to_owned()), ("outputs", text.clone()), ("error", "\"e\"".to_owned())],
            };
            let runs = vec![run; 3];
            let bound = runs.iter().map(Run::size).sum::<usize>() + FRAME;
            assert!(encode(&runs).unwrap().body.len() <= bound && encode_batch(&runs).unwrap().len() <= bound);
        }
    }
}
