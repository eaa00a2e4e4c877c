//! The prompts of Qwen3Guard and ShieldGemma, read as the models read them.

use super::{END_CONVERSATION, Family, GuardPrompt, Role, TemplateError, last_message, seen};

/// Neither family's prompt names the categories of Llama Guard: it judges by its own.
const EVERY_CATEGORY: core::ops::RangeInclusive<u8> = 1..=14;

/// # Errors
/// Naming the part of the template that is missing.
pub(super) fn qwen3_guard(prompt: &str) -> Result<GuardPrompt, TemplateError> {
    let missing = TemplateError::Prompt;
    let rest = prompt
        .strip_prefix("<|im_start|>user\n# Task:\n1) Evaluate whether THE LAST ")
        .ok_or(missing("it does not begin with the user's turn and the task"))?;
    let (_, rest) = rest.split_once("\n\n<BEGIN CONVERSATION>\n\n").ok_or(missing("the conversation is not there"))?;
    let rest = rest
        .strip_suffix("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nSafety:")
        .ok_or(missing("it does not end with the assistant's turn and `Safety:`"))?;
    let (conversation, assess) = rest.rsplit_once(END_CONVERSATION).ok_or(missing("the conversation has no end"))?;
    let judged = match assess.strip_prefix("\n\nProvide your safety assessment for ONLY THE LAST **") {
        Some(rest) if rest.starts_with("USER's query**") => Role::User,
        Some(rest) if rest.starts_with("ASSISTANT's response**") => Role::Agent,
        _ => return Err(missing("ONLY THE LAST names neither USER nor ASSISTANT")),
    };
    let family = Family::Qwen3Guard;
    let text = last_message(seen(conversation, family, END_CONVERSATION), judged, &["USER:", "ASSISTANT:"])
        .ok_or(missing("the conversation does not begin with `USER: ` or `ASSISTANT: `"))?;
    Ok(GuardPrompt { family, judged, categories: EVERY_CATEGORY.collect(), text, verdict_first: true })
}

/// # Errors
/// Naming the part of the template that is missing.
pub(super) fn shield_gemma(prompt: &str) -> Result<GuardPrompt, TemplateError> {
    const OPEN: &str = "<start_of_turn>\n";
    const CLOSE: &str = "\n<end_of_turn>\n";
    const PRINCIPLE: &str = "\nOur safety principle is defined in the below:\n\n* ";
    let missing = TemplateError::Prompt;
    let rest = prompt
        .strip_prefix("<bos>You are a policy expert trying to help determine whether ")
        .ok_or(missing("it does not begin with `<bos>` and the task"))?;
    let (_, rest) = rest
        .split_once(" is in violation of the defined safety policies.\n\n")
        .ok_or(missing("the task is damaged"))?;
    let rest = rest
        .strip_suffix(
            "start with 'Yes' or 'No'. And then walk through step by step to be sure we answer correctly.\n\n",
        )
        .ok_or(missing("the answer's format is not asked for at the end"))?;
    let (conversation, rest) = rest.split_once(PRINCIPLE).ok_or(missing("the principle is not there"))?;
    let judged = match rest.rsplit_once("\n\n===\n\nDoes the ") {
        Some((_, rest)) if rest.starts_with("human question violate") => Role::User,
        Some((_, rest)) if rest.starts_with("Chatbot Response violate") => Role::Agent,
        _ => return Err(missing("the question names neither speaker")),
    };
    let family = Family::ShieldGemma;
    let mut last = None;
    let mut turns = conversation;
    while let Some(rest) = turns.strip_prefix(OPEN) {
        let (role, rest) = Role::opens(rest, &["Human Question:", "Chatbot Response:"])
            .ok_or(missing("a turn is of neither speaker"))?;
        // To the model a turn ends with whatever special token comes first.
        let text = seen(rest, family, CLOSE);
        if role == judged {
            last = Some(text.trim().to_owned());
        }
        turns = rest.split_once(CLOSE).map_or("", |(_, behind)| behind);
    }
    let text = last.ok_or(missing("the judged speaker has no turn"))?;
    Ok(GuardPrompt { family, judged, categories: EVERY_CATEGORY.collect(), text, verdict_first: true })
}
