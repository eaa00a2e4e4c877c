//! The chunks of one stream, most of which differ in nothing but their text: what is around it is parsed once, and again
//! only when it changes. What is read so is what a whole parse would read (tested on chunks of every kind).

use super::chunk::{Chunk, parse_chunk};
use crate::answer::Delta;
use crate::bytes::is_same;

/// Streams whose chunks never repeat (several choices, log probabilities, padding) are not learnt from for ever.
const MAX_MISSES: u8 = 4;

/// What is around a text is longer in no stream that repeats.
const MAX_FRAME_BYTES: usize = 4096;

/// Stands where the text stood when it is tried whether a frame holds. No quote, no backslash, and more than ASCII.
const PROBE: &str = "parapet\u{b7}probe";

/// Reads the chunks of one stream.
#[derive(Debug, Default)]
pub struct Reader {
    frame: Option<Frame>,
    misses: u8,
}

/// What is around the text of a chunk that adds a piece of content to one choice, and does nothing else.
#[derive(Debug)]
struct Frame {
    before: Vec<u8>,
    after: Vec<u8>,
    choice: usize,
    model: Option<String>,
    /// The same as it leaves, once that was asked for.
    written: Option<(Vec<u8>, Vec<u8>)>,
}

impl Reader {
    pub fn read(&mut self, data: &[u8]) -> Chunk {
        if let Some((frame, text)) = self.frame.as_ref().and_then(|frame| Some((frame, frame.text(data)?))) {
            self.misses = 0;
            return frame.chunk(text);
        }
        self.learn(data)
    }

    #[inline(never)]
    fn learn(&mut self, data: &[u8]) -> Chunk {
        let chunk = parse_chunk(data);
        if self.misses < MAX_MISSES
            && let Chunk::Deltas { deltas, .. } = &chunk
            && deltas.iter().any(Delta::has_text)
        {
            self.misses = self.misses.saturating_add(1);
            self.frame = Frame::of(data, &chunk);
        }
        chunk
    }

    /// The event of a chunk as `write` writes its JSON, which may depend on what is around the text and has to leave the
    /// text as it stands; one reader is given one `write` only. `None` where that writes nothing.
    #[inline(never)]
    pub fn event(&mut self, data: &[u8], write: &dyn Fn(&[u8]) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
        let json = match self.frame.as_mut().and_then(|frame| frame.written(data, write)) {
            Some(json) => json,
            None => write(data)?,
        };
        Some([b"data: ", &*json, b"\n\n"].concat())
    }
}

impl Frame {
    fn of(data: &[u8], chunk: &Chunk) -> Option<Self> {
        let (choice, content, model) = only_content(chunk)?;
        let literal = ["\"", content, "\""].concat();
        let at = data.windows(literal.len()).rposition(|window| window == literal.as_bytes())?.checked_add(1)?;
        let (before, rest) = data.split_at_checked(at)?;
        let after = rest.get(content.len()..)?;
        let frame =
            Self { before: before.to_vec(), after: after.to_vec(), choice, model: model.cloned(), written: None };
        // Whatever stands there is the content, and the content only: then any other plain text is, too.
        let holds = data.len() <= MAX_FRAME_BYTES
            && !has_logprobs(data)
            && only_content(&parse_chunk(&frame.with(PROBE))) == Some((choice, PROBE, model));
        holds.then_some(frame)
    }

    /// The text of a chunk that is this frame and a text without escapes.
    #[inline(never)]
    fn text<'a>(&self, data: &'a [u8]) -> Option<&'a str> {
        let (before, rest) = data.split_at_checked(self.before.len())?;
        let (text, after) = rest.split_at_checked(rest.len().checked_sub(self.after.len())?)?;
        let is_plain = text.iter().all(|byte| !matches!(byte, 0..=0x1f | b'"' | b'\\'));
        let fits = is_plain && is_same(after, &self.after) && is_same(before, &self.before);
        core::str::from_utf8(text).ok().filter(|_| fits)
    }

    fn chunk(&self, text: &str) -> Chunk {
        let delta = Delta { choice: self.choice, content: text.to_owned(), ..Delta::default() };
        Chunk::Deltas { deltas: vec![delta], usage: None, model: self.model.clone() }
    }

    fn with(&self, text: &str) -> Vec<u8> {
        [&*self.before, text.as_bytes(), &*self.after].concat()
    }

    fn written(&mut self, data: &[u8], write: &dyn Fn(&[u8]) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
        let text = self.text(data)?;
        if self.written.is_none() {
            let json = write(&self.with(PROBE))?;
            let at = json.windows(PROBE.len()).rposition(|window| window == PROBE.as_bytes())?;
            let after = json.get(at.checked_add(PROBE.len())?..)?.to_vec();
            self.written = Some((json.get(..at)?.to_vec(), after));
        }
        let (before, after) = self.written.as_ref()?;
        Some([&**before, text.as_bytes(), after].concat())
    }
}

/// Log probabilities repeat the text.
fn has_logprobs(data: &[u8]) -> bool {
    const KEY: &[u8] = b"\"logprobs\"";
    let after =
        data.windows(KEY.len()).position(|window| window == KEY).and_then(|at| data.get(at.checked_add(KEY.len())?..));
    let value = after.map(|after| after.trim_ascii_start().strip_prefix(b":").unwrap_or_default().trim_ascii_start());
    value.is_some_and(|value| !value.starts_with(b"null"))
}

/// The choice, the text and the model of a chunk that does nothing but add content to one choice.
fn only_content(chunk: &Chunk) -> Option<(usize, &str, Option<&String>)> {
    let Chunk::Deltas { deltas, usage: None, model } = chunk else { return None };
    let [Delta { choice, content, reasoning, refusal, tool_calls, finish_reason: None }] = deltas.as_slice() else {
        return None;
    };
    let is_only = reasoning.is_empty() && refusal.is_empty() && tool_calls.is_empty();
    is_only.then_some((*choice, content, model.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::super::chunk::with_model_in;
    use super::super::judged::judged_only;
    use super::*;
    use proptest::prelude::*;

    /// Texts as they stand in JSON: plain, escaped, such that break out of their literal, and none at all.
    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => "[a-zé\u{1f600} ]{0,8}",
            1 => Just(PROBE.to_owned()),
            1 => r#"[a-z]{0,3}(\\n|\\"|\\u00e9|\\ud83d\\ude00|\\)[a-z]{0,3}"#,
            1 => prop::sample::select(vec![
                r#"x","content":"y"#, r#"x"},"finish_reason":"stop"#, r#"","role":"assistant"#, "a\u{1}b", "\"", "\\"
            ]).prop_map(str::to_owned),
        ]
    }

    fn chunk() -> impl Strategy<Value = Vec<u8>> {
        let shape = prop::sample::select(vec![
            r#"{"id":"c","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"TEXT"},"logprobs":null,"finish_reason":null}]}"#,
            r#"{"id":"c","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"TEXT"},"logprobs":null,"finish_reason":null}]}"#,
            r#"{"choices":[{"index":1,"delta":{"content":"TEXT"}}]}"#,
            r#"{"choices":[{"delta":{"content":"TEXT"},"text":"TEXT"}],"model":"TEXT"}"#,
            r#"{"choices":[{"delta":{"reasoning":"TEXT"}}]}"#,
            r#"{"choices":[{"delta":{"refusal":"TEXT","content":""}}]}"#,
            r#"{"choices":[{"delta":{"content":"TEXT","reasoning_content":"TEXT"}}]}"#,
            r#"{"choices":[{"delta":{"content":"TEXT"}},{"index":1,"delta":{"content":"TEXT"}}]}"#,
            r#"{"choices":[{"delta":{"content":"TEXT"},"finish_reason":"TEXT"}]}"#,
            r#"{"choices":[{"delta":{"content":"TEXT"}}],"usage":{"prompt_tokens":1}}"#,
            r#"{"choices":[{"delta":{"content":"TEXT"},"logprobs":{"content":[{"token":"TEXT"}]}}]}"#,
            r#"{"choices":[{"delta":{"content":"TEXT"},"logprobs" : {"content":[{"token":"a","logprob":-1}]}}]}"#,
            r#"{"id":"TEXT","system_fingerprint":"fp_1","choices":[{"delta":{"role":"assistant","content":"TEXT"},"x":"TEXT"}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"TEXT"}}]}}]}"#,
            r#"{"choices":[{"delta":{"content":"TEXT","content":"x"}}]}"#,
            r#"{"error":{"message":"TEXT"},"choices":[{"delta":{"content":"TEXT"}}]}"#,
            r#"{"choices":[{"delta":{"content":"TEXT"}}],"error":null}"#,
            r#"{"choices":[{"delta":{"content":"TEXT"}}"#,
            "[DONE]",
        ]);
        (shape, text(), prop::option::weighted(0.1, any::<u8>())).prop_map(|(shape, text, odd)| {
            let mut bytes = shape.replace("TEXT", &text).into_bytes();
            if let Some(odd) = odd {
                let middle = bytes.len() / 2;
                bytes[middle] = odd;
            }
            bytes
        })
    }

    proptest! {
        #[test]
        fn a_chunk_is_read_and_renamed_as_if_it_stood_alone(chunks in proptest::collection::vec(chunk(), 1..12)) {
            let renamed = |json: &[u8]| with_model_in(json, "ours");
            let judged = |json: &[u8]| judged_only(json, "id", "ours");
            let (mut renaming, mut judging) = (Reader::default(), Reader::default());
            for chunk in chunks {
                let shown = String::from_utf8_lossy(&chunk).into_owned();
                prop_assert_eq!(renaming.read(&chunk), parse_chunk(&chunk), "{}", &shown);
                judging.read(&chunk);
                let event = |json: Option<Vec<u8>>| json.map(|json| [b"data: ", &*json, b"\n\n"].concat());
                prop_assert_eq!(renaming.event(&chunk, &renamed), event(renamed(&chunk)), "{}", &shown);
                prop_assert_eq!(judging.event(&chunk, &judged), event(judged(&chunk)), "{}", &shown);
            }
        }
    }

    #[test]
    fn what_repeats_is_learnt_and_what_never_does_is_given_up() {
        let chunk = |id: u32, text: &str| {
            format!(r#"{{"id":"{id}","choices":[{{"index":0,"delta":{{"content":"{text}"}}}}]}}"#).into_bytes()
        };
        let mut reader = Reader::default();
        reader.read(&chunk(1, "a"));
        assert!(reader.frame.as_ref().is_some_and(|frame| frame.text(&chunk(1, "some more")).is_some()));
        for id in 2..20 {
            reader.read(&chunk(id, "b"));
        }
        assert_eq!(reader.misses, MAX_MISSES);
        assert!(reader.frame.is_some_and(|frame| frame.text(&chunk(19, "c")).is_none()));
    }
}
