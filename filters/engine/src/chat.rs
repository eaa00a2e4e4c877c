//! `POST /chat`: one message in, one answer out.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::conversation::{Conversation, Role, Turn};
use crate::reason::{Reason, Refusal};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request<'a> {
    #[serde(borrow)]
    message: Cow<'a, str>,
    #[serde(borrow, default)]
    session_id: Option<Cow<'a, str>>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
}

/// Reads a request's body: the conversation, and the session it belongs to.
///
/// # Errors
/// The refusal to answer with: `invalid_json` or `invalid_request`, with the place.
pub fn read(body: &[u8], stream: bool) -> Result<(Conversation<'_>, Option<Cow<'_, str>>), Refusal> {
    let request: Request<'_> = serde_json::from_slice(body).map_err(|error| {
        let reason = if error.is_data() { Reason::InvalidRequest } else { Reason::InvalidJson };
        Refusal::new(reason, format!("The body must be {{\"message\": string, \"session_id\"?: string}}: {error}."))
    })?;
    let message = Message { role: "user", content: &request.message };
    let messages = serde_json::value::to_raw_value(&[message])
        .map_err(|error| Refusal::new(Reason::InvalidRequest, format!("The message cannot be sent on: {error}.")))?;
    let conversation = Conversation {
        model: None,
        turns: vec![Turn { role: Role::User, texts: vec![request.message], is_plain: true }],
        messages: Cow::Owned(messages),
        params: Vec::new(),
        stream,
        include_usage: false,
        max_tokens: None,
        choices: 1,
        temperature: None,
        unseen: None,
        acts: false,
    };
    Ok((conversation, request.session_id))
}

/// The answer's body.
#[must_use]
pub fn write_answer(answer: &str) -> Vec<u8> {
    #[derive(Serialize)]
    struct Body<'a> {
        answer: &'a str,
    }
    serde_json::to_vec(&Body { answer }).unwrap_or_default()
}

/// One piece of a streamed answer; a client concatenates the pieces.
#[must_use]
pub fn write_piece(piece: &str) -> Vec<u8> {
    let mut event = b"data: ".to_vec();
    event.extend_from_slice(&write_answer(piece));
    event.extend_from_slice(b"\n\n");
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_becomes_a_conversation_of_one_turn() {
        let (conversation, session) = read(br#"{"message":"say \"hi\"","session_id":"s"}"#, false).unwrap();
        assert_eq!(conversation.messages.get(), r#"[{"role":"user","content":"say \"hi\""}]"#);
        assert_eq!((conversation.turns[0].text().as_ref(), session.as_deref()), ("say \"hi\"", Some("s")));
    }

    #[test]
    fn a_bad_body_is_told_what_was_expected() {
        for (body, reason) in
            [("{", Reason::InvalidJson), ("{}", Reason::InvalidRequest), (r#"{"message":1}"#, Reason::InvalidRequest)]
        {
            assert_eq!(read(body.as_bytes(), false).unwrap_err().reason, reason);
        }
    }
}
