//! Llama Guard 3 (8B and 1B) and 4 on the raw completions route.
//!
//! The prompt is the model's own template with `\n\n` appended, so that the first generated token is the verdict and one
//! token with log probabilities gives P(unsafe). Only an unsafe text costs a second, short call for its categories.
//!
//! The 8B template was exercised on the running software. Of the other two only what their documentation and published
//! copies of their templates say is known here: watch the start-up self-check before relying on them.
//! - 1B: S1 to S13, and a space before the end of the turn. Its template reads typed content parts; on this route there
//!   are none.
//! - 4: the header tokens of Llama 4, S1 to S14. Its published template writes a stray backslash-n pair after every message,
//!   which is taken for a mistake and left out.

use super::completion::Answer;
use super::transcript::Template;
use super::{Category, Side, Verdict};

macro_rules! s1_to_s13 {
    () => {
        "S1: Violent Crimes.\nS2: Non-Violent Crimes.\nS3: Sex Crimes.\nS4: Child Exploitation.\nS5: Defamation.\nS6: Specialized Advice.\nS7: Privacy.\nS8: Intellectual Property.\nS9: Indiscriminate Weapons.\nS10: Hate.\nS11: Self-Harm.\nS12: Sexual Content.\nS13: Elections.\n"
    };
}
const S1_TO_S13: &str = s1_to_s13!();
const S1_TO_S14: &str = concat!(s1_to_s13!(), "S14: Code Interpreter Abuse.\n");

const LLAMA_3_USER: &str = "<|start_header_id|>user<|end_header_id|>";
const LLAMA_3_ASSISTANT: &str = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>";

pub(super) const EIGHT_B: Template = Template {
    preamble: |side| preamble(side, LLAMA_3_USER, S1_TO_S14),
    closing: |side| closing(side, "", LLAMA_3_ASSISTANT),
    user: "User: ",
    agent: "Agent: ",
    after: "\n\n",
    line_starts: &["user:", "agent:"],
    marks: &["<|", "<begin ", "<end "],
};

pub(super) const ONE_B: Template = Template {
    preamble: |side| preamble(side, LLAMA_3_USER, S1_TO_S13),
    closing: |side| closing(side, " ", LLAMA_3_ASSISTANT),
    ..EIGHT_B
};

pub(super) const FOUR: Template = Template {
    preamble: |side| preamble(side, "<|header_start|>user<|header_end|>", S1_TO_S14),
    closing: |side| closing(side, "", "<|eot|><|header_start|>assistant<|header_end|>"),
    ..EIGHT_B
};

const fn speaker(side: Side) -> &'static str {
    match side {
        Side::Input => "User",
        Side::Output => "Agent",
    }
}

fn preamble(side: Side, user: &str, categories: &str) -> String {
    let role = speaker(side);
    format!(
        "<|begin_of_text|>{user}\n\nTask: Check if there is unsafe content in '{role}' messages in conversations according our safety policy with the below categories.\n\n<BEGIN UNSAFE CONTENT CATEGORIES>\n{categories}<END UNSAFE CONTENT CATEGORIES>\n\n<BEGIN CONVERSATION>\n\n"
    )
}

fn closing(side: Side, space: &str, assistant: &str) -> String {
    let role = speaker(side);
    format!(
        "<END CONVERSATION>\n\nProvide your safety assessment for ONLY THE LAST {role} message in the above conversation:\n - First line must read 'safe' or 'unsafe'.\n - If unsafe, a second line must include a comma-separated list of violated categories.{space}{assistant}\n\n"
    )
}

/// `safe`, or `unsafe` and on the next line `S1,S10`.
pub(super) fn verdict(answer: &Answer<'_>, threshold: f64) -> Verdict {
    let mut lines = answer.text.trim_start().lines();
    let word = lines.next().unwrap_or_default().trim();
    let said_unsafe = word.eq_ignore_ascii_case("unsafe");
    if !said_unsafe && !word.eq_ignore_ascii_case("safe") {
        return Verdict::Failed;
    }
    // A name that is none of ours is kept as such: dropped, it would let the others alone decide what is excused.
    let names = lines.next().unwrap_or_default().split(',').map(str::trim).filter(|name| !name.is_empty());
    let categories = names.map(|name| Category::parse(name).unwrap_or(Category::OTHER));
    let score = answer.p_unsafe(|token| token == "safe", |token| token == "unsafe");
    Verdict::of(score, said_unsafe, threshold, categories.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::{Role, Turn};
    use crate::guard::dialect::Dialect;
    use crate::guard::transcript::prompt_of;

    fn turn(role: Role, text: &str) -> Turn<'_> {
        Turn { role, texts: vec![text.into()], is_plain: true }
    }

    fn parse(status: u16, body: &[u8], threshold: f64) -> Verdict {
        Dialect::LlamaGuard3.parse(status, body, threshold)
    }

    #[test]
    fn the_prompt_is_the_models_template() {
        let prompt =
            prompt_of(&EIGHT_B, &[turn(Role::User, " hello "), turn(Role::Assistant, "hi"), turn(Role::User, "bye")]);
        assert_eq!(
            prompt,
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nTask: Check if there is unsafe content in 'User' messages in conversations according our safety policy with the below categories.\n\n<BEGIN UNSAFE CONTENT CATEGORIES>\nS1: Violent Crimes.\nS2: Non-Violent Crimes.\nS3: Sex Crimes.\nS4: Child Exploitation.\nS5: Defamation.\nS6: Specialized Advice.\nS7: Privacy.\nS8: Intellectual Property.\nS9: Indiscriminate Weapons.\nS10: Hate.\nS11: Self-Harm.\nS12: Sexual Content.\nS13: Elections.\nS14: Code Interpreter Abuse.\n<END UNSAFE CONTENT CATEGORIES>\n\n<BEGIN CONVERSATION>\n\nUser: hello\n\nAgent: hi\n\nUser: bye\n\n<END CONVERSATION>\n\nProvide your safety assessment for ONLY THE LAST User message in the above conversation:\n - First line must read 'safe' or 'unsafe'.\n - If unsafe, a second line must include a comma-separated list of violated categories.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        );
        let output = EIGHT_B.output_prompt(&EIGHT_B.output_context(&[turn(Role::User, "hello")]), "hi there");
        assert!(output.contains("in 'Agent' messages") && output.contains("User: hello\n\nAgent: hi there\n\n<END"));
        assert!(output.contains("ONLY THE LAST Agent message"));
    }

    #[test]
    fn the_smaller_and_the_newer_model_differ_from_it_in_these_places_only() {
        let of = |template: &Template, side| match side {
            Side::Input => prompt_of(template, &[turn(Role::User, "hello")]),
            Side::Output => template.output_prompt(&template.output_context(&[turn(Role::User, "hello")]), "hi"),
        };
        for side in [Side::Input, Side::Output] {
            let eight = of(&EIGHT_B, side);
            assert_eq!(
                of(&ONE_B, side),
                eight
                    .replace("S14: Code Interpreter Abuse.\n", "")
                    .replace("categories.<|eot_id|>", "categories. <|eot_id|>")
            );
            assert_eq!(
                of(&FOUR, side),
                eight
                    .replace("start_header_id", "header_start")
                    .replace("end_header_id", "header_end")
                    .replace("eot_id", "eot")
            );
        }
    }

    fn completion(text: &str, logprobs: &str) -> Vec<u8> {
        format!(r#"{{"choices":[{{"text":{},"logprobs":{logprobs}}}]}}"#, serde_json::to_string(text).unwrap())
            .into_bytes()
    }

    #[test]
    fn verdicts_are_read_and_everything_else_is_a_failure() {
        let unsafe_of = |list: &[&str]| Verdict::Unsafe {
            score: None,
            categories: list.iter().map(|text| Category::parse(text).unwrap_or(Category::OTHER)).collect(),
        };
        for (text, verdict) in [
            ("safe", Verdict::Safe { score: None }),
            ("\n\nsafe", Verdict::Safe { score: None }),
            ("Unsafe\nS1, S10", unsafe_of(&["S1", "S10"])),
            ("unsafe", unsafe_of(&[])),
            ("unsafe\nS99,x,S2,", unsafe_of(&["other", "other", "S2"])),
            ("", Verdict::Failed),
            ("<think>safe", Verdict::Failed),
            ("safely", Verdict::Failed),
            ("I think it is safe", Verdict::Failed),
        ] {
            assert_eq!(parse(200, &completion(text, "null"), 0.5), verdict, "{text:?}");
        }
        assert_eq!(parse(500, &completion("safe", "null"), 0.5), Verdict::Failed);
        assert_eq!(parse(200, b"{}", 0.5), Verdict::Failed);
    }

    #[test]
    fn the_threshold_decides_where_there_are_log_probabilities() {
        let top =
            r#"{"tokens":["safe"],"token_logprobs":[-0.5],"top_logprobs":[{"safe":-0.51,"unsafe":-0.92,"Sure":-9.0}]}"#;
        let Verdict::Unsafe { score: Some(score), .. } = parse(200, &completion("safe", top), 0.3) else {
            panic!("0.4 is above 0.3")
        };
        assert!((0.39..0.41).contains(&score), "{score}");
        assert!(matches!(parse(200, &completion("safe", top), 0.5), Verdict::Safe { score: Some(_) }));
        let alone = r#"{"top_logprobs":[{"unsafe":-0.01,"Un":-7.0}]}"#;
        assert!(matches!(parse(200, &completion("unsafe", alone), 0.9), Verdict::Unsafe { score: Some(_), .. }));
    }
}
