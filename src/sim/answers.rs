//! What the simulated models say, and how they cut text into tokens. Deterministic, the same for every server.

use serde_json::Value;

/// `count to N` counts no further.
const MAX_COUNT: u32 = 5000;
/// An echo stays short however long the question was, in characters.
const MAX_ECHO: usize = 200;
/// A word is cut into pieces of so many characters.
const PIECE: usize = 6;

/// The answer to a conversation's last user text:
/// `say: X` gives X, `count to N` gives `1 2 … N`, anything else an echo.
pub(super) fn answer(user_text: &str) -> String {
    if let Some(said) = strip_prefix_ignore_case(user_text, "say:") {
        return said.strip_prefix(' ').unwrap_or(said).to_owned();
    }
    if let Some(limit) = count_limit(user_text) {
        let numbers: Vec<String> = (1..=limit).map(|number| number.to_string()).collect();
        return numbers.join(" ");
    }
    let echo: String = user_text.chars().take(MAX_ECHO).collect();
    format!("You asked: {echo}")
}

fn count_limit(text: &str) -> Option<u32> {
    let rest = strip_prefix_ignore_case(text.trim(), "count to ")?.trim_start();
    let digits = rest.find(|c: char| !c.is_ascii_digit()).map_or(rest, |end| rest.split_at(end).0);
    digits.parse().ok().filter(|limit| (1..=MAX_COUNT).contains(limit))
}

fn strip_prefix_ignore_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// The tool that `call the tool NAME` names.
pub(super) fn wanted_tool(user_text: &str) -> Option<&str> {
    const PHRASE: &str = "call the tool ";
    // ASCII lowering keeps every byte offset.
    let at = user_text.to_ascii_lowercase().find(PHRASE)?;
    let name = user_text.get(at + PHRASE.len()..)?;
    let end = name.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-')).unwrap_or(name.len());
    name.get(..end).filter(|name| !name.is_empty())
}

/// Where each token of `text` ends, in bytes. Whitespace belongs to the word behind it, longer words fall into pieces of
/// [`PIECE`] characters, so the tokens put together are the text.
pub(super) fn token_ends(text: &str) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut in_word = 0_usize;
    for (at, c) in text.char_indices() {
        let space = c.is_whitespace();
        if in_word > 0 && (space || in_word == PIECE) {
            ends.push(at);
            in_word = 0;
        }
        if !space {
            in_word += 1;
        }
    }
    if !text.is_empty() {
        ends.push(text.len());
    }
    ends
}

pub(super) fn tokens(text: &str) -> Vec<&str> {
    let mut start = 0;
    token_ends(text).into_iter().filter_map(|end| text.get(std::mem::replace(&mut start, end)..end)).collect()
}

/// The text of a message's `content`: a string, or the text parts of a list, one a line.
pub(super) fn content_text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts: Vec<&str> = parts.iter().filter_map(|part| part.get("text")?.as_str()).collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

/// Stable, not any real tokenizer's: the text's tokens, four for each message's frame, three for the answer's.
pub(super) fn prompt_tokens<'a>(contents: impl Iterator<Item = &'a Value>) -> usize {
    contents.map(|content| 4 + token_ends(&content_text(content)).len()).sum::<usize>() + 3
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_model_says_counts_and_echoes() {
        assert_eq!(answer("say: Hello,  world\n"), "Hello,  world\n");
        assert_eq!(answer("SAY:x"), "x");
        assert_eq!(answer("Count to 5"), "1 2 3 4 5");
        assert!(answer("count to 5000").ends_with(" 4999 5000"));
        assert_eq!(answer("count to 5001"), "You asked: count to 5001");
        assert_eq!(answer("What is Envoy?"), "You asked: What is Envoy?");
        assert_eq!(answer("ü"), "You asked: ü");
        assert_eq!(answer(&"x".repeat(9999)).len(), "You asked: ".len() + MAX_ECHO);
    }

    #[test]
    fn a_tool_is_named_anywhere_in_the_text() {
        assert_eq!(wanted_tool("Please Call the tool get_weather now"), Some("get_weather"));
        assert_eq!(wanted_tool("call the tool "), None);
        assert_eq!(wanted_tool("hello"), None);
    }

    #[test]
    fn words_are_cut_into_short_pieces_with_their_space() {
        assert_eq!(tokens("1 2  three"), ["1", " 2", "  three"]);
        assert_eq!(tokens(" international "), [" intern", "ationa", "l", " "]);
        assert_eq!(tokens("ääääääää"), ["ääääää", "ää"]);
        assert!(tokens("").is_empty());
    }

    proptest! {
        #[test]
        fn tokens_put_together_are_the_text(text in "\\PC*|[ a-zé\n]{0,80}") {
            prop_assert_eq!(tokens(&text).concat(), text.as_str());
            for token in tokens(&text) {
                prop_assert!(token.trim_start().chars().count() <= PIECE);
            }
        }
    }
}
