//! Which family of guard is asked: how it is prompted, and how its answers read.

use std::collections::VecDeque;

use super::completion::{self, Answer};
use super::transcript::Template;
use super::{Verdict, llama_guard, qwen3_guard, shield_gemma};
use crate::conversation::Turn;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Dialect {
    /// Llama Guard 3, 8B.
    #[default]
    LlamaGuard3,
    LlamaGuard3Of1B,
    LlamaGuard4,
    Qwen3Guard,
    ShieldGemma,
}

impl Dialect {
    const fn template(self) -> &'static Template {
        match self {
            Self::LlamaGuard3 => &llama_guard::EIGHT_B,
            Self::LlamaGuard3Of1B => &llama_guard::ONE_B,
            Self::LlamaGuard4 => &llama_guard::FOUR,
            Self::Qwen3Guard => &qwen3_guard::TEMPLATE,
            Self::ShieldGemma => &shield_gemma::TEMPLATE,
        }
    }

    /// The input guard's prompts, in order; `None` where what the client says is too long to be judged.
    #[must_use]
    pub fn input_prompts(self, turns: &[Turn<'_>]) -> Option<VecDeque<String>> {
        self.template().input_prompts(turns)
    }

    /// The output guard's prompt, in two parts: the conversation, rendered once per request, and the answer so far.
    #[must_use]
    pub fn output_context(self, turns: &[Turn<'_>]) -> String {
        self.template().output_context(turns)
    }

    /// Completes an [`output_context`](Self::output_context) with the answer that is judged.
    #[must_use]
    pub fn output_prompt(self, context: &str, answer: &str) -> String {
        self.template().output_prompt(context, answer)
    }

    /// Where both calls go: every prompt is rendered here, so the server must not put it into a chat template again.
    #[must_use]
    pub fn path(base_path: &str) -> String {
        format!("{base_path}/completions")
    }

    /// The body of the first call: one token, with the log probabilities of its rivals.
    #[must_use]
    pub fn verdict_request(self, model: &str, prompt: &str) -> Vec<u8> {
        completion::request(model, prompt, 1, Some(5))
    }

    /// The body of the second call, the whole verdict: 64 tokens hold every category of either family that names any.
    /// `None` for a family that names none.
    #[must_use]
    pub fn categories_request(self, model: &str, prompt: &str) -> Option<Vec<u8>> {
        self.names_categories().then(|| completion::request(model, prompt, 64, None))
    }

    #[must_use]
    pub const fn names_categories(self) -> bool {
        !matches!(self, Self::ShieldGemma)
    }

    /// Reads either call's answer.
    #[must_use]
    pub fn parse(self, status: u16, body: &[u8], threshold: f64) -> Verdict {
        let verdict: fn(&Answer<'_>, f64) -> Verdict = match self {
            Self::LlamaGuard3 | Self::LlamaGuard3Of1B | Self::LlamaGuard4 => llama_guard::verdict,
            Self::Qwen3Guard => qwen3_guard::verdict,
            Self::ShieldGemma => shield_gemma::verdict,
        };
        completion::read(status, body).map_or(Verdict::Failed, |answer| verdict(&answer, threshold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Dialect; 5] = [
        Dialect::LlamaGuard3,
        Dialect::LlamaGuard3Of1B,
        Dialect::LlamaGuard4,
        Dialect::Qwen3Guard,
        Dialect::ShieldGemma,
    ];

    #[test]
    fn what_is_no_completion_is_a_failure_to_every_family() {
        for dialect in ALL {
            for (status, body) in [
                (503, r#"{"choices":[{"text":"safe"}]}"#),
                (0, ""),
                (200, ""),
                (200, "<html>"),
                (200, r#"{"choices":[]}"#),
                (200, r#"{"choices":[{"text":"maybe"}]}"#),
                (200, r#"{"choices":[{"text":"","logprobs":{"top_logprobs":[{"safe":0,"Safe":0,"No":0}]}}]}"#),
            ] {
                assert_eq!(dialect.parse(status, body.as_bytes(), 0.5), Verdict::Failed, "{dialect:?} {body}");
            }
        }
    }

    #[test]
    fn a_familys_answer_means_nothing_to_a_family_with_other_words() {
        let parse = |dialect: Dialect, text: &str| {
            dialect.parse(200, format!(r#"{{"choices":[{{"text":"{text}"}}]}}"#).as_bytes(), 0.5)
        };
        assert_eq!(parse(Dialect::LlamaGuard3, "No"), Verdict::Failed);
        assert_eq!(parse(Dialect::Qwen3Guard, "safe"), Verdict::Failed);
        assert_eq!(parse(Dialect::ShieldGemma, "safe"), Verdict::Failed);
    }

    #[test]
    fn the_calls_are_one_token_and_where_there_are_categories_a_few_more() {
        for dialect in ALL {
            let first = dialect.verdict_request("m", "p\n");
            assert_eq!(
                String::from_utf8(first).unwrap(),
                r#"{"model":"m","prompt":"p\n","max_tokens":1,"temperature":0,"add_special_tokens":false,"logprobs":5}"#
            );
            let second = dialect.categories_request("m", "p").map(|body| String::from_utf8(body).unwrap());
            let expected =
                r#"{"model":"m","prompt":"p","max_tokens":64,"temperature":0,"add_special_tokens":false}"#.to_owned();
            assert_eq!(second, dialect.names_categories().then_some(expected), "{dialect:?}");
        }
        assert_eq!(Dialect::path("/v1"), "/v1/completions");
    }
}
