//! vLLM's raw completions route, which is the same for every guard: the calls' bodies and what their answers hold.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    prompt: &'a str,
    max_tokens: u32,
    temperature: u32,
    // A prompt carries its own tokens of beginning.
    add_special_tokens: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<u32>,
}

/// With `logprobs`, the rivals of every generated token come along.
pub(super) fn request(model: &str, prompt: &str, max_tokens: u32, logprobs: Option<u32>) -> Vec<u8> {
    let request = Request { model, prompt, max_tokens, temperature: 0, add_special_tokens: false, logprobs };
    serde_json::to_vec(&request).unwrap_or_default()
}

#[derive(Deserialize)]
struct Completion<'a> {
    #[serde(borrow)]
    choices: Vec<Choice<'a>>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    text: Cow<'a, str>,
    #[serde(default)]
    logprobs: Option<Logprobs>,
}

#[derive(Deserialize)]
struct Logprobs {
    #[serde(default)]
    top_logprobs: Vec<Option<TopLogprobs>>,
}

/// Log probabilities by token.
type TopLogprobs = BTreeMap<String, f64>;

/// What a guard generated.
pub(super) struct Answer<'a> {
    pub(super) text: Cow<'a, str>,
    /// Of the first token, where the server gave them.
    top: Option<TopLogprobs>,
}

/// `None` for whatever is no completion.
pub(super) fn read(status: u16, body: &[u8]) -> Option<Answer<'_>> {
    if status != 200 {
        return None;
    }
    let choice = serde_json::from_slice::<Completion<'_>>(body).ok()?.choices.into_iter().next()?;
    let top = choice.logprobs.and_then(|logprobs| logprobs.top_logprobs.into_iter().next().flatten());
    Some(Answer { text: choice.text, top })
}

impl Answer<'_> {
    /// Softmax over the tokens of two verdicts: the share of those that say unsafe. A verdict without a listed token is at
    /// most as likely as the least likely that is listed.
    pub(super) fn p_unsafe(&self, says_safe: fn(&str) -> bool, says_unsafe: fn(&str) -> bool) -> Option<f64> {
        let top = self.top.as_ref()?;
        let of = |says: fn(&str) -> bool| {
            top.iter().filter(|(token, _)| says(token.trim())).map(|(_, logprob)| logprob.exp()).reduce(|a, b| a + b)
        };
        let floor = top.values().copied().reduce(f64::min)?.exp();
        let (safe, unsafe_) = match (of(says_safe), of(says_unsafe)) {
            (None, None) => return None,
            (safe, unsafe_) => (safe.unwrap_or(floor), unsafe_.unwrap_or(floor)),
        };
        let score = unsafe_ / (safe + unsafe_);
        score.is_finite().then_some(score)
    }
}
