//! What of an answer a guard call reads: everything no call has read yet, and enough before it to understand it.
//!
//! A guard has a limited context, so a long answer is not read whole each time. Each channel of each choice (content,
//! reasoning, refusal, tool calls) has its own mark of how far it was read; nothing is released beyond its mark.

use hashbrown::HashMap;

use super::pieces::floor;
use crate::answer::Answer;
use crate::record::Answered;

/// Bytes of an answer that one call reads: with the conversation before it some 7,000 tokens at worst (two bytes to a
/// token), which a guard served with 8,192 holds.
pub const MAX_BYTES: usize = 8_000;

/// Bytes that are read again before what is new.
const OVERLAP: usize = 2_000;

/// One channel: a choice's index, and which of its texts.
type Channel = (usize, usize);

/// How far each channel was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks(HashMap<Channel, usize>);

/// What a call reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passage {
    pub text: String,
    /// How far everything is read once this call has passed.
    pub marks: Marks,
    /// Nothing unread is left behind it.
    pub is_complete: bool,
}

/// The next passage of an answer; `None` when everything was read.
#[must_use]
pub fn next(answer: &Answer, marks: &Marks) -> Option<Passage> {
    let unread: Vec<(Channel, &str, usize)> = channels(answer)
        .filter_map(|(channel, text)| {
            let read = marks.0.get(&channel).copied().unwrap_or(0);
            (text.len() > read).then_some((channel, text, read))
        })
        .collect();
    if unread.is_empty() {
        return None;
    }
    if let Some(whole) = whole(answer) {
        return Some(whole);
    }
    let mut passage = Passage { text: String::new(), marks: marks.clone(), is_complete: true };
    let context = OVERLAP.checked_div(unread.len()).unwrap_or(0);
    for (channel, text, read) in unread {
        let room = MAX_BYTES.saturating_sub(passage.text.len());
        let start = floor(text, read.saturating_sub(context));
        let end = floor(text, text.len().min(start.saturating_add(room)));
        if end <= read {
            passage.is_complete = false;
            continue;
        }
        if !passage.text.is_empty() {
            passage.text.push('\n');
        }
        passage.text.push_str(text.get(start..end).unwrap_or_default());
        passage.marks.0.insert(channel, end);
        passage.is_complete &= end == text.len();
    }
    Some(passage)
}

/// An answer that fits is read whole each time: a verdict on all of it is worth more, and the guard's prefix cache holds
/// what it has read.
fn whole(answer: &Answer) -> Option<Passage> {
    let texts: Vec<(Channel, &str)> = channels(answer).filter(|(_, text)| !text.is_empty()).collect();
    let bytes = texts.iter().fold(0_usize, |sum, (_, text)| sum.saturating_add(text.len()));
    (bytes <= MAX_BYTES).then(|| Passage {
        text: texts.iter().map(|(_, text)| *text).collect::<Vec<_>>().join("\n"),
        marks: Marks(texts.iter().map(|(channel, text)| (*channel, text.len())).collect()),
        is_complete: true,
    })
}

/// Every text that the client would see.
fn channels(answer: &Answer) -> impl Iterator<Item = (Channel, &str)> {
    answer.choices.iter().enumerate().flat_map(|(choice, answered)| {
        texts(answered).enumerate().map(move |(channel, text)| ((choice, channel), text))
    })
}

/// In an order that growth does not change: tool calls come last and are only ever added at their end.
fn texts(answered: &Answered) -> impl Iterator<Item = &str> {
    let calls = answered.tool_calls.iter().flat_map(|call| [&*call.id, &*call.name, &*call.arguments]);
    [&*answered.reasoning, &*answered.content, &*answered.refusal].into_iter().chain(calls)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(choices: &[(&str, &str)]) -> Answer {
        let choices = choices
            .iter()
            .map(|(reasoning, content)| Answered {
                reasoning: (*reasoning).into(),
                content: (*content).into(),
                ..Answered::default()
            })
            .collect();
        Answer { choices, ..Answer::default() }
    }

    #[test]
    fn a_short_answer_is_read_whole_each_time() {
        let first = next(&answer(&[("", "one two")]), &Marks::default()).unwrap();
        assert_eq!((&*first.text, first.is_complete), ("one two", true));
        let second = next(&answer(&[("", "one two three")]), &first.marks).unwrap();
        assert_eq!(second.text, "one two three");
        assert_eq!(next(&answer(&[("", "one two three")]), &second.marks), None);
    }

    #[test]
    fn every_channel_of_every_choice_is_read() {
        let passage = next(&answer(&[("hm", "a"), ("", "b")]), &Marks::default()).unwrap();
        assert_eq!(passage.text, "hm\na\nb");
        let more = next(&answer(&[("hm", "a"), ("", "b c")]), &passage.marks).unwrap();
        assert_eq!(more.text, "hm\na\nb c", "what was read before is context");
    }

    proptest! {
        /// Whatever the lengths: passages are bounded, and together they cover every byte of every channel.
        #[test]
        fn nothing_is_left_unread(texts in prop::collection::vec("[a-zé€]{0,40}", 1..6), times in 1_usize..800) {
            let long: Vec<String> = texts.iter().map(|text| text.repeat(times)).collect();
            let answer = answer(&long.iter().map(|text| ("", &**text)).collect::<Vec<_>>());
            let mut marks = Marks::default();
            let mut calls = 0;
            while let Some(passage) = next(&answer, &marks) {
                prop_assert!(passage.text.len() <= MAX_BYTES + texts.len());
                prop_assert!(passage.marks != marks, "each call gets on");
                let complete = passage.is_complete;
                marks = passage.marks;
                prop_assert_eq!(complete, next(&answer, &marks).is_none());
                calls += 1;
            }
            let bytes: usize = long.iter().map(String::len).sum();
            prop_assert!(calls <= 1 + texts.len() + bytes / (MAX_BYTES - OVERLAP));
        }
    }
}
