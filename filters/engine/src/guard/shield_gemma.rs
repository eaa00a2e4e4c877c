//! ShieldGemma (2B, 9B, 27B) on the raw completions route: the first token is `Yes`, it violates the policy, or `No`.
//!
//! The model was trained to judge one policy at a time, and its makers ask for a call per policy. Here one call holds all
//! four of its card's guidelines, because a request waits for it: the scores are not those of the card, so tune `threshold` on
//! texts of your own. What the card does not name (privacy, fraud, copyright, elections, …) is not judged at all. No category
//! is named, and therefore every unsafe verdict blocks: `flag` and `ignore` have nothing to hold on to.
//!
//! The wording is the published chat template's, with two more liberties: earlier turns stand before the judged one as blocks
//! of the same form, where the template has room for one question and one answer, and `<bos>` is written out. The
//! conversation stands before the guidelines, so a prefix cache holds less of it than of other families.

use super::completion::Answer;
use super::transcript::Template;
use super::{Side, Verdict};

pub(super) const TEMPLATE: Template = Template {
    preamble,
    closing,
    user: "<start_of_turn>\nHuman Question: ",
    agent: "<start_of_turn>\nChatbot Response: ",
    after: "\n<end_of_turn>\n",
    line_starts: &[
        "human question:",
        "chatbot response:",
        "our safety principle",
        "===",
        "does the human question",
        "does the chatbot response",
    ],
    marks: &["<start_of_", "<end_of_", "<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "<unused", "[@"],
};

fn preamble(side: Side) -> String {
    let what = match side {
        Side::Input => "a user prompt",
        Side::Output => "an AI response to a prompt",
    };
    format!(
        "<bos>You are a policy expert trying to help determine whether {what} is in violation of the defined safety policies.\n\n"
    )
}

/// The guidelines are the model card's, to the letter.
fn closing(side: Side) -> String {
    let (shall_not, what, must) = match side {
        Side::Input => ("The prompt shall not contain or seek generation of content", "human question", "must"),
        // The two spaces are the template's.
        Side::Output => ("The chatbot shall not generate content", "Chatbot Response", "must "),
    };
    format!(
        "\nOur safety principle is defined in the below:\n\n* \"No Dangerous Content\": {shall_not} that harming oneself and/or others (e.g., accessing or building firearms and explosive devices, promotion of terrorism, instructions for suicide).\n* \"No Harassment\": {shall_not} that is malicious, intimidating, bullying, or abusive content targeting another individual (e.g., physical threats, denial of tragic events, disparaging victims of violence).\n* \"No Hate Speech\": {shall_not} that targeting identity and/or protected attributes (e.g., racial slurs, promotion of discrimination, calls to violence against protected groups) or dehumanizing/belittling/vilifying on the bases of race, ethnicity, religion, disability, age, nationality, veteran status, sexual orientation, gender, gender identity, caste, or any other protected status. We do allow content that includes a reference to a protected individual or group in a positive manner.\n* \"No Sexually Explicit Information\": {shall_not} that contains references to sexual acts or other lewd content (e.g., sexually graphic descriptions, content aimed at causing arousal). Medical or scientific terms related to human anatomy or sex education are permitted.\n\n===\n\nDoes the {what} violate the above principle? Your answer {must} start with 'Yes' or 'No'. And then walk through step by step to be sure we answer correctly.\n\n"
    )
}

/// `Yes` or `No`, and perhaps reasons after it.
pub(super) fn verdict(answer: &Answer<'_>, threshold: f64) -> Verdict {
    let word = answer.text.trim_start().split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    let said_unsafe = word.eq_ignore_ascii_case("yes");
    if !said_unsafe && !word.eq_ignore_ascii_case("no") {
        return Verdict::Failed;
    }
    let score = answer.p_unsafe(|token| token == "No", |token| token == "Yes");
    Verdict::of(score, said_unsafe, threshold, Vec::new())
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

    #[test]
    fn the_prompt_is_the_models_template_with_four_guidelines() {
        assert_eq!(
            prompt_of(&TEMPLATE, &[turn(Role::User, "hello<end_of_turn>")]),
            "<bos>You are a policy expert trying to help determine whether a user prompt is in violation of the defined safety policies.\n\n<start_of_turn>\nHuman Question: hello< end_of_turn>\n<end_of_turn>\n\nOur safety principle is defined in the below:\n\n* \"No Dangerous Content\": The prompt shall not contain or seek generation of content that harming oneself and/or others (e.g., accessing or building firearms and explosive devices, promotion of terrorism, instructions for suicide).\n* \"No Harassment\": The prompt shall not contain or seek generation of content that is malicious, intimidating, bullying, or abusive content targeting another individual (e.g., physical threats, denial of tragic events, disparaging victims of violence).\n* \"No Hate Speech\": The prompt shall not contain or seek generation of content that targeting identity and/or protected attributes (e.g., racial slurs, promotion of discrimination, calls to violence against protected groups) or dehumanizing/belittling/vilifying on the bases of race, ethnicity, religion, disability, age, nationality, veteran status, sexual orientation, gender, gender identity, caste, or any other protected status. We do allow content that includes a reference to a protected individual or group in a positive manner.\n* \"No Sexually Explicit Information\": The prompt shall not contain or seek generation of content that contains references to sexual acts or other lewd content (e.g., sexually graphic descriptions, content aimed at causing arousal). Medical or scientific terms related to human anatomy or sex education are permitted.\n\n===\n\nDoes the human question violate the above principle? Your answer must start with 'Yes' or 'No'. And then walk through step by step to be sure we answer correctly.\n\n"
        );
        let turns = [turn(Role::User, "a"), turn(Role::Assistant, "b"), turn(Role::User, "c")];
        let prompt = TEMPLATE.output_prompt(&TEMPLATE.output_context(&turns), "d");
        assert!(prompt.starts_with("<bos>You are a policy expert trying to help determine whether an AI response to a prompt is in violation of the defined safety policies.\n\n<start_of_turn>\nHuman Question: a\n<end_of_turn>\n<start_of_turn>\nChatbot Response: b\n<end_of_turn>\n<start_of_turn>\nHuman Question: c\n<end_of_turn>\n<start_of_turn>\nChatbot Response: d\n<end_of_turn>\n\nOur safety principle is defined in the below:\n\n* \"No Dangerous Content\": The chatbot shall not generate content that harming"), "{prompt}");
        assert!(prompt.ends_with("\n\n===\n\nDoes the Chatbot Response violate the above principle? Your answer must  start with 'Yes' or 'No'. And then walk through step by step to be sure we answer correctly.\n\n"), "{prompt}");
        assert_eq!(prompt.matches("The chatbot shall not generate content").count(), 4);
    }

    fn parse(text: &str, logprobs: &str, threshold: f64) -> Verdict {
        let text = serde_json::to_string(text).unwrap();
        let body = format!(r#"{{"choices":[{{"text":{text},"logprobs":{logprobs}}}]}}"#);
        Dialect::ShieldGemma.parse(200, body.as_bytes(), threshold)
    }

    #[test]
    fn every_documented_form_is_read_and_everything_else_is_a_failure() {
        let violates = Verdict::Unsafe { score: None, categories: Vec::new() };
        for (text, verdict) in [
            ("Yes", violates.clone()),
            ("\n\nYes, the prompt asks for", violates.clone()),
            ("yes.", violates),
            ("No", Verdict::Safe { score: None }),
            (" No\n\nIt is harmless", Verdict::Safe { score: None }),
            ("", Verdict::Failed),
            ("Not at all", Verdict::Failed),
            ("N0", Verdict::Failed),
            ("**No**", Verdict::Failed),
            ("The answer is No", Verdict::Failed),
        ] {
            assert_eq!(parse(text, "null", 0.5), verdict, "{text:?}");
        }
    }

    #[test]
    fn the_score_is_the_softmax_of_yes_and_no() {
        let top = r#"{"top_logprobs":[{"Yes":-0.92,"No":-0.51,"The":-5.0}]}"#;
        let Verdict::Unsafe { score: Some(score), categories } = parse("No", top, 0.3) else { panic!("0.4 is unsafe") };
        assert!((0.39..0.41).contains(&score) && categories.is_empty(), "{score}");
        assert!(matches!(parse("No", top, 0.5), Verdict::Safe { score: Some(_) }));
    }
}
