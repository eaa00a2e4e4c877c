//! The common form of an answer: choices that grow by deltas, usage, and how it finished.

use crate::record::{Answered, ToolCall, Usage};

/// What a provider says instead of a blocked answer.
pub const REFUSAL: &str = "I'm unable to provide a response to that request.";

/// More choices or tool calls than any request may ask for; further ones are neither remembered nor judged, so they must
/// not pass where a guard is: [`Delta::is_within_bounds`].
const MAX_CHOICES: usize = 128;
const MAX_TOOL_CALLS: usize = 256;

/// A piece of one choice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta {
    pub choice: usize,
    pub content: String,
    pub reasoning: String,
    pub refusal: String,
    pub tool_calls: Vec<ToolCallDelta>,
    pub finish_reason: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToolCallDelta {
    pub index: usize,
    pub id: String,
    pub name: String,
    pub arguments: String,
}

impl Delta {
    /// Progress is text in any channel; a role, an empty delta or a finish reason is none.
    #[must_use]
    pub fn has_text(&self) -> bool {
        !(self.content.is_empty() && self.reasoning.is_empty() && self.refusal.is_empty())
            || self
                .tool_calls
                .iter()
                .any(|call| !(call.id.is_empty() && call.name.is_empty() && call.arguments.is_empty()))
    }

    /// Nothing of it is lost in an [`Answer`].
    #[must_use]
    pub fn is_within_bounds(&self) -> bool {
        self.choice < MAX_CHOICES && self.tool_calls.iter().all(|call| call.index < MAX_TOOL_CALLS)
    }

    /// Bytes of text in all channels.
    #[must_use]
    pub fn text_len(&self) -> usize {
        let calls = self.tool_calls.iter().map(|call| call.name.len().saturating_add(call.arguments.len()));
        calls.chain([self.content.len(), self.reasoning.len(), self.refusal.len()]).fold(0, usize::saturating_add)
    }
}

/// An answer as far as it has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    pub choices: Vec<Answered>,
    pub usage: Option<Usage>,
    /// Deltas with text: one token each on vLLM, near one on OpenAI. What is counted when no usage comes.
    pub progress: u64,
}

impl Answer {
    pub fn add(&mut self, delta: &Delta) {
        if delta.has_text() {
            self.progress = self.progress.saturating_add(1);
        }
        if delta.choice >= MAX_CHOICES {
            return;
        }
        while self.choices.len() <= delta.choice {
            self.choices.push(Answered::default());
        }
        let Some(choice) = self.choices.get_mut(delta.choice) else { return };
        choice.content.push_str(&delta.content);
        choice.reasoning.push_str(&delta.reasoning);
        choice.refusal.push_str(&delta.refusal);
        for call in delta.tool_calls.iter().filter(|call| call.index < MAX_TOOL_CALLS) {
            while choice.tool_calls.len() <= call.index {
                choice.tool_calls.push(ToolCall::default());
            }
            if let Some(known) = choice.tool_calls.get_mut(call.index) {
                known.id.push_str(&call.id);
                known.name.push_str(&call.name);
                known.arguments.push_str(&call.arguments);
            }
        }
        if delta.finish_reason.is_some() {
            choice.finish_reason.clone_from(&delta.finish_reason);
        }
    }

    /// Every choice said how it finished.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        !self.choices.is_empty() && self.choices.iter().all(|choice| choice.finish_reason.is_some())
    }
}
