//! Which requests want the same replica: those whose opening it has in its prefix cache.

use crate::config::Affinity;
use crate::conversation::{Conversation, Role};
use crate::digest::{Parts, hex};
use crate::identity::Principal;

/// The header that Envoy's hash policy reads. It is written by the gateway filter alone, and the provider filter takes it
/// out again.
pub const HEADER: &str = "x-parapet-affinity";

/// How much of an opening tells it from others, in bytes. A system prompt of this length or more brings all its
/// conversations together; a shorter one is told apart by the first question, so that each conversation stays where it
/// began, however long it becomes.
const OPENING_BYTES: usize = 4096;

/// Half of a digest is more than a ring of replicas tells apart.
const KEY_BYTES: usize = 16;

/// What is hashed to choose a replica; `None`: any will do.
#[must_use]
pub fn key(
    affinity: Affinity,
    principal: &Principal,
    session: Option<&str>,
    conversation: &Conversation<'_>,
) -> Option<String> {
    let mut parts = Parts::default();
    match (affinity, session) {
        (Affinity::None, _) => return None,
        // One tenant's `s-1` is not another's.
        (Affinity::Session, Some(session)) => {
            parts.add(principal.tenant.as_bytes());
            parts.add(session.as_bytes());
        }
        (Affinity::Session | Affinity::Prefix, _) => parts.add(&opening(conversation)),
    }
    parts.finish().get(..KEY_BYTES).map(hex)
}

/// What every turn of a conversation begins with: what stands before the first question, and the question.
fn opening(conversation: &Conversation<'_>) -> Vec<u8> {
    let mut opening = Vec::with_capacity(OPENING_BYTES);
    for turn in &conversation.turns {
        for part in core::iter::once(turn.role.name()).chain(turn.texts.iter().map(AsRef::as_ref)) {
            let room = OPENING_BYTES.saturating_sub(opening.len());
            opening.extend(part.bytes().chain([0]).take(room));
        }
        if turn.role != Role::System || opening.len() == OPENING_BYTES {
            break;
        }
    }
    opening
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai;

    fn principal(tenant: &str) -> Principal {
        Principal { tenant: tenant.to_owned(), user: "u".to_owned(), policy: "p".to_owned() }
    }

    fn key_of(affinity: Affinity, session: Option<&str>, messages: &[(&str, &str)]) -> Option<String> {
        let messages: Vec<_> =
            messages.iter().map(|(role, content)| serde_json::json!({"role": role, "content": content})).collect();
        let body = serde_json::json!({"model": "m", "messages": messages}).to_string();
        key(affinity, &principal("acme"), session, &openai::read(body.as_bytes()).unwrap())
    }

    fn prefix(messages: &[(&str, &str)]) -> String {
        key_of(Affinity::Prefix, Some("ignored"), messages).unwrap()
    }

    #[test]
    fn a_conversation_stays_where_it_began() {
        let first = [("system", "Be brief."), ("user", "Hello")];
        let later = [first[0], first[1], ("assistant", "Hi"), ("user", "And now?")];
        assert_eq!(prefix(&first), prefix(&later));
        assert_ne!(prefix(&first), prefix(&[first[0], ("user", "Good morning")]));
        assert_ne!(prefix(&first), prefix(&[("system", "Be long."), first[1]]));
        assert_ne!(prefix(&[("user", "ab"), ("user", "c")]), prefix(&[("user", "a"), ("user", "bc")]));
    }

    #[test]
    fn a_long_system_prompt_brings_its_conversations_together() {
        let (long, short) = ("x".repeat(5000), "x".repeat(2000));
        assert_eq!(prefix(&[("system", &long), ("user", "a")]), prefix(&[("system", &long), ("user", "b")]));
        assert_ne!(prefix(&[("system", &short), ("user", "a")]), prefix(&[("system", &short), ("user", "b")]));
    }

    #[test]
    fn a_session_goes_by_its_name_and_else_by_its_opening() {
        let (a, b) = ([("user", "a")], [("user", "b")]);
        let session = |name, messages: &[(&str, &str)]| key_of(Affinity::Session, name, messages);
        assert_eq!(session(Some("s"), &a), session(Some("s"), &b));
        assert_ne!(session(Some("s"), &a), session(Some("t"), &a));
        assert_ne!(session(None, &a), session(None, &b));
        let conversation = br#"{"messages": [{"role": "user", "content": "a"}]}"#;
        let conversation = openai::read(conversation).unwrap();
        let of = |tenant: &str| key(Affinity::Session, &principal(tenant), Some("s"), &conversation);
        assert_ne!(of("acme"), of("globex"));
    }

    #[test]
    fn without_affinity_there_is_no_key_and_a_key_tells_nothing() {
        assert_eq!(key_of(Affinity::None, Some("s"), &[("user", "a")]), None);
        let key = prefix(&[("user", "my secret")]);
        assert!(key.len() == 32 && key.bytes().all(|byte| byte.is_ascii_hexdigit()), "{key}");
    }
}
