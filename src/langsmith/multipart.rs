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

/// Encodes the runs. The boundary is random: content cannot hold it.
pub fn encode(runs: &[Run]) -> Result<Form, serde_json::Error> {
    let boundary = Uuid::new_v7(uuid::Timestamp::now(uuid::NoContext)).simple().to_string();
    let mut body = Vec::with_capacity(runs.iter().map(Run::size).sum());
    for run in runs {
        part(&mut body, &boundary, &format!("post.{}", run.id), &run.head()?);
        for (field, value) in &run.fields {
            part(&mut body, &boundary, &format!("post.{}.{field}", run.id), value.as_bytes());
        }
    }
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    Ok(Form { content_type: format!("multipart/form-data; boundary={boundary}"), body })
}

fn part(body: &mut Vec<u8>, boundary: &str, name: &str, content: &[u8]) {
    let head = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        content.len()
    );
    body.extend_from_slice(head.as_bytes());
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
