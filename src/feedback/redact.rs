//! What a caller writes freely: secrets and personal data are taken out before the disk sees it. The rules that a policy adds
//! of its own are in the filter, which only passes feedback on: the built-in ones hold for everyone.

use parapet_engine::redact::{Kind, Rules};
use serde_json::Value;

use super::queue::Item;

/// What stands where something was hidden.
const HIDDEN: &str = "[hidden]";

/// `hide`: nothing is left of free text, a label such as `good` stays.
pub(super) fn apply(item: &mut Item, hide: bool) {
    let rules = Rules { kinds: vec![Kind::Email, Kind::Phone, Kind::Card, Kind::Secret], patterns: Vec::new() };
    if let Some(comment) = &mut item.comment {
        clean(comment, &rules, hide);
    }
    if let Some(value) = &mut item.value {
        within(value, &rules, hide);
    }
    // Its letters are few, but a card's digits are among them.
    if let Some(redacted) = rules.redact(&item.key) {
        item.key = redacted;
    }
}

fn clean(text: &mut String, rules: &Rules, hide: bool) {
    if hide {
        HIDDEN.clone_into(text);
    } else if let Some(redacted) = rules.redact(text) {
        *text = redacted;
    }
}

/// The body's length and serde's depth bound the walk.
fn within(value: &mut Value, rules: &Rules, hide: bool) {
    match value {
        Value::String(text) => clean(text, rules, hide && !is_label(text)),
        // A card's digits need no quotes, and have a checksum; any other number may be just that.
        Value::Number(number) => {
            let card = Rules { kinds: vec![Kind::Card], patterns: Vec::new() };
            if let Some(redacted) = card.redact(&number.to_string()) {
                *value = redacted.into();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| within(item, rules, hide)),
        Value::Object(entries) => {
            for (mut name, mut value) in std::mem::take(entries) {
                let hidden = hide && !is_label(&name);
                clean(&mut name, rules, hidden);
                within(&mut value, rules, hide);
                entries.insert(name, value);
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
}

/// One short word.
fn is_label(text: &str) -> bool {
    const LONGEST: usize = 32;
    text.len() <= LONGEST && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte))
}
