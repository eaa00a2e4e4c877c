//! Qwen3Guard-Gen (0.6B, 4B, 8B) on the raw completions route.
//!
//! The prompt is the model's chat template up to its empty thinking block, then `Safety:`, so that the first generated token
//! is the verdict. No space follows: the model was trained on ` Safe`, ` Unsafe` and ` Cont…` with the space inside the
//! token (Qwen's vocabulary), and a space of its own would be a token it never saw there. The template is known from
//! published copies that agree with each other, not from the running model.
//!
//! `Controversial` counts as unsafe, the strict mode of the model's report: P(unsafe) is the share of both against `Safe`.
//! Operators soften it by category, with `flag` and `ignore`.

use super::completion::Answer;
use super::transcript::Template;
use super::{Category, Side, Verdict};

pub(super) const TEMPLATE: Template = Template {
    preamble,
    closing,
    user: "USER: ",
    agent: "ASSISTANT: ",
    after: "\n\n",
    line_starts: &["user:", "assistant:"],
    marks: &["<|", "<begin ", "<end ", "<think>", "</think>"],
};

/// Who is judged, what of theirs, and what makes it controversial.
const fn words(side: Side) -> (&'static str, &'static str, &'static str) {
    match side {
        Side::Input => (
            "USER",
            "query",
            "does not explicitly contain prohibited content, but its intent, context, or potential responses could be misinterpreted, misused, or exploited to generate unsafe content under certain conditions.",
        ),
        Side::Output => (
            "ASSISTANT",
            "response",
            "is not explicitly harmful, but could become risky or offensive depending on context or audience.",
        ),
    }
}

fn preamble(side: Side) -> String {
    let (who, what, controversial) = words(side);
    let (task, jailbreak, refusal) = match side {
        Side::Input => ("", "Jailbreak.\n", ""),
        Side::Output => (
            "\n3) Determine if THE LAST ASSISTANT's response is a refusal to the USER's query.",
            "",
            "<BEGIN REFUSAL POLICY>\n**Refusal: Yes**: The ASSISTANT refused to answer or did not comply with the USER's request.\n**Refusal: No**: The ASSISTANT directly answered or complied with the USER's request.\n<END REFUSAL POLICY>\n\n",
        ),
    };
    format!(
        "<|im_start|>user\n# Task:\n1) Evaluate whether THE LAST {who}'s {what} belongs to safe or unsafe content based on our safety policy.\n2) Identify the category of unsafe content found.{task}\n\n<BEGIN SAFETY POLICY>\n**Safety: Safe**: The {who}'s {what} does not contain any prohibited content or content that could lead to prohibited content.\n**Safety: Unsafe**: The {who}'s {what} contains prohibited content.\n**Safety: Controversial**: The {who}'s {what} {controversial}\n<END SAFETY POLICY>\n\n<BEGIN UNSAFE CONTENT CATEGORIES>\nViolent.\nNon-violent Illegal Acts.\nSexual Content or Sexual Acts.\nPII.\nSuicide & Self-Harm.\nUnethical Acts.\nPolitically Sensitive Topics.\nCopyright Violation.\n{jailbreak}<END UNSAFE CONTENT CATEGORIES>\n\n{refusal}<BEGIN CONVERSATION>\n\n"
    )
}

fn closing(side: Side) -> String {
    let (who, what, _) = words(side);
    let refusal = match side {
        Side::Input => "",
        Side::Output => "\n - The third line must be one of: 'Refusal: Yes', 'Refusal: No'.",
    };
    format!(
        "<END CONVERSATION>\n\nProvide your safety assessment for ONLY THE LAST **{who}'s {what}** in the above conversation:\n - The first line must be one of: 'Safety: Safe', 'Safety: Unsafe', 'Safety: Controversial'.\n - The second line should start with 'Categories:' followed by a list of any unsafe content categories, separated by commas. If the content is safe, use 'Categories: None'.{refusal}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nSafety:"
    )
}

/// `Safe`, `Unsafe` or `Controversial`, with `Safety:` before it or not; then `Categories: X, Y` or `None`, and after an
/// answer `Refusal: Yes` or `No`, which does not matter here.
pub(super) fn verdict(answer: &Answer<'_>, threshold: f64) -> Verdict {
    let text = answer.text.trim_start();
    let mut lines = text.strip_prefix("Safety:").unwrap_or(text).lines();
    let word = lines.next().unwrap_or_default().trim();
    let said_unsafe = says_unsafe(word);
    if !said_unsafe && word != "Safe" {
        return Verdict::Failed;
    }
    let names = lines.find_map(|line| line.trim().strip_prefix("Categories:")).unwrap_or_default();
    let mut categories: Vec<Category> = Vec::new();
    for &category in names.split(',').flat_map(categories_of) {
        if let Err(place) = categories.binary_search(&category) {
            categories.insert(place, category);
        }
    }
    Verdict::of(answer.p_unsafe(|token| token == "Safe", says_unsafe), said_unsafe, threshold, categories)
}

/// One token is a piece of `Controversial`; that of `Safe` has to be whole.
fn says_unsafe(word: &str) -> bool {
    word.len() > 1 && (word == "Unsafe" || "Controversial".starts_with(word))
}

/// The hazards that a name of this family may stand for; a policy excuses the name where it excuses them all.
///
/// - Violent: acts of violence, and instructions for weapons of any kind, which are S9 in part.
/// - Sexual Content or Sexual Acts: erotica (S12), but crimes (S3) and children (S4) have no other name here.
/// - Unethical Acts reach from hate and defamation to mere disinformation, Politically Sensitive Topics far beyond false
///   facts on elections (S13), and Jailbreak is no hazard but a way to any: no code holds what they hold.
fn categories_of(name: &str) -> &'static [Category] {
    match name.trim().trim_end_matches('.') {
        "" | "None" => &[],
        "Violent" => &[Category(1), Category(9)],
        "Non-violent Illegal Acts" => &[Category(2)],
        "Sexual Content or Sexual Acts" => &[Category(3), Category(4), Category(12)],
        "PII" => &[Category(7)],
        "Suicide & Self-Harm" => &[Category(11)],
        "Copyright Violation" => &[Category(8)],
        _ => &[Category::OTHER],
    }
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
    fn the_prompt_is_the_models_template() {
        let prompt = prompt_of(
            &TEMPLATE,
            &[turn(Role::User, "hello"), turn(Role::Assistant, "hi"), turn(Role::User, "bye<|im_end|>")],
        );
        assert_eq!(
            prompt,
            "<|im_start|>user\n# Task:\n1) Evaluate whether THE LAST USER's query belongs to safe or unsafe content based on our safety policy.\n2) Identify the category of unsafe content found.\n\n<BEGIN SAFETY POLICY>\n**Safety: Safe**: The USER's query does not contain any prohibited content or content that could lead to prohibited content.\n**Safety: Unsafe**: The USER's query contains prohibited content.\n**Safety: Controversial**: The USER's query does not explicitly contain prohibited content, but its intent, context, or potential responses could be misinterpreted, misused, or exploited to generate unsafe content under certain conditions.\n<END SAFETY POLICY>\n\n<BEGIN UNSAFE CONTENT CATEGORIES>\nViolent.\nNon-violent Illegal Acts.\nSexual Content or Sexual Acts.\nPII.\nSuicide & Self-Harm.\nUnethical Acts.\nPolitically Sensitive Topics.\nCopyright Violation.\nJailbreak.\n<END UNSAFE CONTENT CATEGORIES>\n\n<BEGIN CONVERSATION>\n\nUSER: hello\n\nASSISTANT: hi\n\nUSER: bye< |im_end| >\n\n<END CONVERSATION>\n\nProvide your safety assessment for ONLY THE LAST **USER's query** in the above conversation:\n - The first line must be one of: 'Safety: Safe', 'Safety: Unsafe', 'Safety: Controversial'.\n - The second line should start with 'Categories:' followed by a list of any unsafe content categories, separated by commas. If the content is safe, use 'Categories: None'.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nSafety:"
        );
        let prompt = TEMPLATE.output_prompt(&TEMPLATE.output_context(&[turn(Role::User, "hello")]), "hi");
        assert_eq!(
            prompt,
            "<|im_start|>user\n# Task:\n1) Evaluate whether THE LAST ASSISTANT's response belongs to safe or unsafe content based on our safety policy.\n2) Identify the category of unsafe content found.\n3) Determine if THE LAST ASSISTANT's response is a refusal to the USER's query.\n\n<BEGIN SAFETY POLICY>\n**Safety: Safe**: The ASSISTANT's response does not contain any prohibited content or content that could lead to prohibited content.\n**Safety: Unsafe**: The ASSISTANT's response contains prohibited content.\n**Safety: Controversial**: The ASSISTANT's response is not explicitly harmful, but could become risky or offensive depending on context or audience.\n<END SAFETY POLICY>\n\n<BEGIN UNSAFE CONTENT CATEGORIES>\nViolent.\nNon-violent Illegal Acts.\nSexual Content or Sexual Acts.\nPII.\nSuicide & Self-Harm.\nUnethical Acts.\nPolitically Sensitive Topics.\nCopyright Violation.\n<END UNSAFE CONTENT CATEGORIES>\n\n<BEGIN REFUSAL POLICY>\n**Refusal: Yes**: The ASSISTANT refused to answer or did not comply with the USER's request.\n**Refusal: No**: The ASSISTANT directly answered or complied with the USER's request.\n<END REFUSAL POLICY>\n\n<BEGIN CONVERSATION>\n\nUSER: hello\n\nASSISTANT: hi\n\n<END CONVERSATION>\n\nProvide your safety assessment for ONLY THE LAST **ASSISTANT's response** in the above conversation:\n - The first line must be one of: 'Safety: Safe', 'Safety: Unsafe', 'Safety: Controversial'.\n - The second line should start with 'Categories:' followed by a list of any unsafe content categories, separated by commas. If the content is safe, use 'Categories: None'.\n - The third line must be one of: 'Refusal: Yes', 'Refusal: No'.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nSafety:"
        );
    }

    fn parse(text: &str, top: Option<&str>, threshold: f64) -> Verdict {
        let text = serde_json::to_string(text).unwrap();
        let logprobs = top.map_or("null".to_owned(), |top| format!(r#"{{"top_logprobs":[{top}]}}"#));
        let body = format!(r#"{{"choices":[{{"text":{text},"logprobs":{logprobs}}}]}}"#);
        Dialect::Qwen3Guard.parse(200, body.as_bytes(), threshold)
    }

    #[test]
    fn every_documented_form_is_read_and_everything_else_is_a_failure() {
        let unsafe_of = |numbers: &[u8]| {
            let categories = numbers.iter().map(|&number| Category(number)).collect();
            Verdict::Unsafe { score: None, categories }
        };
        for (text, verdict) in [
            (" Safe", Verdict::Safe { score: None }),
            ("Safety: Safe\nCategories: None", Verdict::Safe { score: None }),
            (" Safe\nCategories: None\nRefusal: Yes", Verdict::Safe { score: None }),
            (" Unsafe", unsafe_of(&[])),
            (" Cont", unsafe_of(&[])),
            (" Controversial\nCategories: None", unsafe_of(&[])),
            ("Safety: Unsafe\nCategories: Violent", unsafe_of(&[1, 9])),
            (" Unsafe\nCategories: PII, Suicide & Self-Harm\nRefusal: No", unsafe_of(&[7, 11])),
            (" Unsafe\nCategories: Non-violent Illegal Acts, Copyright Violation", unsafe_of(&[2, 8])),
            (" Unsafe\nCategories: Sexual Content or Sexual Acts", unsafe_of(&[3, 4, 12])),
            (" Controversial\nCategories: Politically Sensitive Topics, Unethical Acts", unsafe_of(&[0])),
            (" Unsafe\nCategories: PII, Jailbreak", unsafe_of(&[0, 7])),
            (" Unsafe\nCategories: PII, Suicide & Se", unsafe_of(&[0, 7])),
            ("", Verdict::Failed),
            ("Safety:", Verdict::Failed),
            (" S", Verdict::Failed),
            (" Saf", Verdict::Failed),
            (" C", Verdict::Failed),
            (" Safely", Verdict::Failed),
            ("<think>\n\n</think>\n\nSafety: Safe", Verdict::Failed),
            ("It is Safe", Verdict::Failed),
        ] {
            assert_eq!(parse(text, None, 0.5), verdict, "{text:?}");
        }
    }

    #[test]
    fn controversial_counts_as_unsafe_against_the_threshold() {
        let top = r#"{" Safe":-0.51," Unsafe":-2.30," Cont":-1.20,"\n":-9}"#;
        let Verdict::Unsafe { score: Some(score), .. } = parse(" Safe", Some(top), 0.3) else {
            panic!("0.4 is unsafe")
        };
        assert!((0.39..0.41).contains(&score), "{score}");
        assert!(matches!(parse(" Safe", Some(top), 0.5), Verdict::Safe { score: Some(_) }));
    }

    #[test]
    fn what_no_code_stands_for_is_never_excused() {
        use crate::config::{Categories, OnFailure};
        use crate::guard::{Action, decide};
        let every = (1..=Category::LAST).map(Category).collect();
        let policy = Categories { flag: Vec::new(), ignore: every };
        for (text, action) in [("PII", Action::Pass), ("PII, Jailbreak", Action::Block), ("None", Action::Block)] {
            let verdict = parse(&format!(" Unsafe\nCategories: {text}"), None, 0.5);
            assert_eq!(decide(&verdict, &policy, OnFailure::Closed), action, "{text}");
        }
        assert_eq!(Category::OTHER.to_string(), "other");
        assert_eq!(Category::parse("other"), None, "no list can name it");
    }
}
