//! An answer that comes as events: one pass feeds the answer, the guard's windows and the client.

use std::collections::VecDeque;

use crate::answer::{Answer, Delta};
use crate::chat;
use crate::config::OutputMode;
use crate::guard::passage::{self, Marks, Passage};
use crate::guard::window::Windows;
use crate::openai::{self, Chunk, Frame};
use crate::reason::Refusal;
use crate::sse::{Decoder, Event};

/// What waits for a verdict; beyond it the answer is refused, as a guard that cannot keep up.
const MAX_HELD_BYTES: usize = 4 * 1024 * 1024;

/// The whole answer is judged at once, unless it is longer than a guard's context: then in pieces of so many tokens.
const FULL_WINDOW_TOKENS: u32 = 1_500;

/// How the client wants its events.
#[derive(Debug, Clone)]
pub(super) enum Form {
    /// OpenAI's, with the client's name of the model; `id` is that of judged answers; `usage`: it asked for the usage chunk.
    OpenAi {
        id: String,
        model: String,
        usage: bool,
    },
    Chat,
}

/// One event on its way to the client.
#[derive(Debug)]
struct Held {
    bytes: Vec<u8>,
    /// Events with text that came before this one.
    texts_before: u64,
    kind: Kind,
    /// What it adds to the answer, where the answer that leaves may differ from the one that came.
    deltas: Vec<Delta>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Carries text: what is judged.
    Text,
    /// A role, an empty delta, a comment.
    Quiet,
    /// A finish reason, usage, `[DONE]`: says that all is well, so it leaves last.
    Terminal,
}

#[derive(Debug)]
pub(super) struct Stream {
    form: Form,
    mode: OutputMode,
    decoder: Decoder,
    reader: openai::Reader,
    /// As it came.
    pub(super) answer: Answer,
    /// As it left.
    shown: Answer,
    windows: Windows,
    /// How far the guard has read, and how far it will have once the call in flight has passed.
    read: Marks,
    reading: Option<Passage>,
    held: VecDeque<Held>,
    held_bytes: usize,
    /// May leave.
    ready: Vec<u8>,
    /// Events with text so far; those that the call in flight covers; those that passed.
    texts: u64,
    asked: u64,
    passed: u64,
    /// What the call in flight asked.
    prompt: Option<String>,
    /// The guard has said unsafe and is being asked why: until that is known nothing leaves in any mode.
    suspect: bool,
    /// Something left, so the head is out.
    pub(super) released: bool,
    pub(super) done: bool,
    /// The provider's stream is over.
    ended: bool,
    /// Nothing of the provider's leaves any more: blocked, or failed.
    pub(super) cut: bool,
    /// It is cut, and the guard is being asked why.
    explains: bool,
    pub(super) first_text_us: Option<u64>,
    last_text_us: Option<u64>,
    /// When something was last made ready; 0 before the first bytes.
    quiet_since_us: u64,
}

/// What a step found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    /// The output guard is to be asked about [`Answer::visible_text`].
    Due,
    /// The provider failed after its first token, or what it sends cannot be read.
    Failed,
    /// More text than may wait.
    Overflow,
}

/// A provider that takes so long from one token to the next is slower than people read: its tokens are judged as they
/// come, instead of a window at a time.
const STALL_US: u64 = 250_000;

/// How long a client that waits for a verdict goes without a byte.
const KEEP_ALIVE_US: u64 = 5_000_000;
const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";

impl Stream {
    pub(super) fn new(form: Form, mode: OutputMode, window_tokens: Vec<u32>) -> Self {
        let sizes = if mode == OutputMode::Full { vec![FULL_WINDOW_TOKENS] } else { window_tokens };
        Self {
            form,
            mode,
            decoder: Decoder::default(),
            reader: openai::Reader::default(),
            answer: Answer::default(),
            shown: Answer::default(),
            read: Marks::default(),
            reading: None,
            windows: Windows::new(sizes),
            held: VecDeque::new(),
            held_bytes: 0,
            ready: Vec::new(),
            texts: 0,
            asked: 0,
            passed: 0,
            prompt: None,
            suspect: false,
            released: false,
            done: false,
            ended: false,
            cut: false,
            explains: false,
            first_text_us: None,
            last_text_us: None,
            quiet_since_us: 0,
        }
    }

    const fn judges(&self) -> bool {
        !matches!(self.mode, OutputMode::Off)
    }

    /// Unjudged text may not leave.
    const fn holds(&self) -> bool {
        self.suspect || matches!(self.mode, OutputMode::Hold | OutputMode::Full)
    }

    /// Takes the provider's next bytes.
    pub(super) fn feed(&mut self, bytes: &[u8], ends: bool, now_us: u64) -> Found {
        self.ended |= ends;
        if self.cut {
            return Found::Nothing;
        }
        let stalls = self.mode == OutputMode::Hold
            && self.last_text_us.is_some_and(|last_us| now_us.saturating_sub(last_us) >= STALL_US);
        let mut decoder = core::mem::take(&mut self.decoder);
        let mut failed = false;
        let fed = decoder.feed(bytes, |event| failed = failed || self.on_event(event, now_us).is_err());
        if ends && let Some(event) = decoder.finish() {
            failed = failed || self.on_event(event, now_us).is_err();
        }
        self.decoder = decoder;
        if stalls {
            self.windows.stalled();
        }
        self.release();
        // Cut off in the middle: never a silent, clean end.
        let broken_off = ends && !self.done && !self.answer.is_finished();
        if failed || fed.is_err() || broken_off {
            return Found::Failed;
        }
        if self.held_bytes.saturating_add(self.ready.len()) > MAX_HELD_BYTES {
            return Found::Overflow;
        }
        self.keep_alive(now_us);
        self.due()
    }

    /// A comment instead of text that still waits. It says nothing of the answer, and only follows a head that is out or
    /// due: the first one leaves no earlier than [`KEEP_ALIVE_US`] after the provider's.
    fn keep_alive(&mut self, now_us: u64) {
        if !self.ready.is_empty() || self.quiet_since_us == 0 {
            self.quiet_since_us = now_us;
        } else if self.judges()
            && !self.windows.is_in_flight()
            && now_us.saturating_sub(self.quiet_since_us) >= KEEP_ALIVE_US
        {
            self.quiet_since_us = now_us;
            self.ready.extend_from_slice(KEEP_ALIVE);
        }
    }

    fn due(&self) -> Found {
        if self.judges() && self.windows.is_due(self.is_ending()) { Found::Due } else { Found::Nothing }
    }

    /// Nothing with text follows.
    fn is_ending(&self) -> bool {
        self.ended || self.done || self.answer.is_finished()
    }

    fn on_event(&mut self, event: Event, now_us: u64) -> Result<(), ()> {
        let Some(data) = event.data() else {
            // A comment: keeps the connection alive while others wait, and waits for nobody.
            if matches!(self.form, Form::OpenAi { .. }) {
                self.push(if self.judges() { KEEP_ALIVE.to_vec() } else { event.raw }, Kind::Quiet);
            }
            return Ok(());
        };
        match self.reader.read(data) {
            Chunk::Done => {
                self.done = true;
                self.push(if self.judges() { openai::DONE.to_vec() } else { event.raw }, Kind::Terminal);
                Ok(())
            }
            Chunk::Error { .. } => Err(()),
            // What cannot be read cannot be judged.
            Chunk::Unreadable if self.judges() => Ok(()),
            Chunk::Unreadable if self.texts == 0 => Err(()),
            Chunk::Unreadable => {
                self.push(event.raw, Kind::Quiet);
                Ok(())
            }
            // What no call would read cannot be judged either.
            Chunk::Deltas { deltas, .. } if self.judges() && !deltas.iter().all(Delta::is_within_bounds) => Err(()),
            Chunk::Deltas { deltas, usage, model } => {
                self.answer.usage = usage.or(self.answer.usage);
                self.on_deltas(event, deltas, usage.is_some(), model.as_deref(), now_us)
            }
        }
    }

    fn on_deltas(
        &mut self,
        event: Event,
        deltas: Vec<Delta>,
        usage: bool,
        model: Option<&str>,
        now_us: u64,
    ) -> Result<(), ()> {
        for delta in &deltas {
            self.answer.add(delta);
        }
        let has_text = deltas.iter().any(Delta::has_text);
        let finishes = deltas.iter().any(|delta| delta.finish_reason.is_some());
        let bytes = match &self.form {
            Form::OpenAi { usage: wanted, .. } if deltas.is_empty() && usage && !wanted => return Ok(()),
            Form::OpenAi { model, id, .. } if self.judges() => {
                let judged = |json: &[u8]| openai::judged_only(json, id, model);
                event.data().and_then(|data| self.reader.event(data, &judged)).ok_or(())?
            }
            Form::OpenAi { model: public, .. } => {
                let renamed = model.is_some_and(|model| model != public);
                let rename = |json: &[u8]| openai::with_model_in(json, public);
                let rewritten = event.data().filter(|_| renamed).and_then(|data| self.reader.event(data, &rename));
                rewritten.unwrap_or(event.raw)
            }
            Form::Chat => {
                let text: String =
                    deltas.iter().filter(|delta| delta.choice == 0).map(|delta| &*delta.content).collect();
                if text.is_empty() { Vec::new() } else { chat::write_piece(&text) }
            }
        };
        if has_text {
            self.push_with(bytes, Kind::Text, deltas);
            self.texts = self.texts.saturating_add(1);
            self.first_text_us = self.first_text_us.or(Some(now_us));
            self.last_text_us = Some(now_us);
        } else {
            self.push_with(bytes, if finishes || usage { Kind::Terminal } else { Kind::Quiet }, deltas);
        }
        Ok(())
    }

    fn push(&mut self, bytes: Vec<u8>, kind: Kind) {
        self.push_with(bytes, kind, Vec::new());
    }

    fn push_with(&mut self, bytes: Vec<u8>, kind: Kind, deltas: Vec<Delta>) {
        if self.judges() {
            deltas.iter().filter(|delta| delta.has_text()).for_each(|delta| self.windows.token(&delta.content));
        }
        self.held_bytes = self.held_bytes.saturating_add(bytes.len());
        let deltas = if self.judges() { deltas } else { Vec::new() };
        self.held.push_back(Held { bytes, texts_before: self.texts, kind, deltas });
    }

    /// Moves what may leave, in order.
    fn release(&mut self) {
        while self.held.front().is_some_and(|held| self.may_leave(held)) {
            if let Some(held) = self.held.pop_front() {
                self.held_bytes = self.held_bytes.saturating_sub(held.bytes.len());
                self.ready.extend_from_slice(&held.bytes);
                held.deltas.iter().for_each(|delta| self.shown.add(delta));
            }
        }
    }

    fn may_leave(&self, held: &Held) -> bool {
        // The head leaves with the first byte and cannot be taken back: until there is text, or an answer without any is
        // over, a failure is still an error answer.
        if self.texts == 0 && !self.is_over_without_text() {
            return false;
        }
        let mode = if self.suspect { OutputMode::Hold } else { self.mode };
        match (mode, held.kind) {
            (OutputMode::Off, _) | (OutputMode::Async, Kind::Text | Kind::Quiet) => true,
            (OutputMode::Full, _) => self.is_ending() && self.passed >= self.texts,
            (_, Kind::Text) => self.passed > held.texts_before,
            // Likewise the first byte of a held stream is a judged one.
            (_, Kind::Quiet) => (self.passed > 0 || self.is_over_without_text()) && self.passed >= held.texts_before,
            (_, Kind::Terminal) => self.passed >= held.texts_before,
        }
    }

    const fn is_over_without_text(&self) -> bool {
        self.texts == 0 && (self.ended || self.done)
    }

    /// What the guard has to read now.
    pub(super) fn passage(&mut self) -> Option<String> {
        self.reading = passage::next(&self.answer, &self.read);
        self.reading.as_ref().map(|passage| passage.text.clone())
    }

    /// The guard was asked about that.
    pub(super) fn asked(&mut self, prompt: String) {
        self.asked = self.texts;
        self.prompt = Some(prompt);
        self.windows.asked();
    }

    pub(super) fn asked_prompt(&self) -> Option<&str> {
        self.prompt.as_deref()
    }

    pub(super) fn reading(&self) -> Option<&str> {
        self.reading.as_ref().map(|passage| &*passage.text)
    }

    /// The guard said unsafe; its categories are still asked for.
    pub(super) const fn suspected(&mut self) {
        self.suspect = true;
    }

    /// The guard let pass what it was asked about; it may be due again.
    pub(super) fn passed(&mut self) -> Found {
        self.suspect = false;
        self.windows.answered();
        self.prompt = None;
        let Some(passage) = self.reading.take() else { return self.due() };
        self.read = passage.marks;
        if !passage.is_complete {
            return Found::Due;
        }
        self.passed = self.asked;
        self.release();
        self.due()
    }

    /// Everything unjudged is dropped, `ending` goes out, and nothing after it.
    pub(super) fn cut(&mut self, ending: &[u8]) {
        self.windows.answered();
        self.prompt = None;
        self.reading = None;
        self.held.clear();
        self.held_bytes = 0;
        if !self.released {
            // What was ready has not left, and now never will.
            self.ready.clear();
            self.shown = Answer::default();
        }
        self.ready.extend_from_slice(ending);
        self.cut = true;
    }

    /// Why it was cut is being asked.
    pub(super) const fn explains(&mut self, asked: bool) {
        self.explains = asked;
    }

    pub(super) const fn is_explaining(&self) -> bool {
        self.explains
    }

    /// See [`super::Flow::lingers`].
    pub(super) const fn lingers(&self) -> bool {
        self.judges() && self.windows.is_in_flight() && !self.ended && !self.cut
    }

    /// See [`super::Flow::abandons_in`].
    pub(super) const fn abandons(&self) -> bool {
        self.cut && !self.explains && !self.ended && self.released && self.ready.is_empty()
    }

    /// What the client saw.
    pub(super) const fn shown(&self) -> &Answer {
        if self.judges() { &self.shown } else { &self.answer }
    }

    /// The end of a blocked stream in the client's form.
    pub(super) fn blocked_ending(&self, created_s: u64) -> Vec<u8> {
        match &self.form {
            Form::OpenAi { id, model, .. } => {
                let open =
                    |(_, choice): &(usize, &crate::record::Answered)| self.holds() || choice.finish_reason.is_none();
                let mut choices: Vec<usize> =
                    self.answer.choices.iter().enumerate().filter(open).map(|(index, _)| index).collect();
                if choices.is_empty() {
                    choices.push(0);
                }
                openai::refusal_chunk(Frame { id, created_s, model }, &choices)
            }
            Form::Chat => {
                let mut ending = chat::write_piece(crate::answer::REFUSAL);
                ending.extend_from_slice(openai::DONE);
                ending
            }
        }
    }

    /// The end of a stream that failed after bytes of it have left: an error event and no `[DONE]`.
    pub(super) fn failed_ending() -> Vec<u8> {
        openai::error_event(&super::response::broke_off())
    }

    pub(super) fn unavailable_ending(refusal: &Refusal) -> Vec<u8> {
        openai::error_event(refusal)
    }

    pub(super) const fn is_complete(&self) -> bool {
        self.ended && self.held_bytes == 0
    }

    /// Something of the answer still waits for a verdict.
    pub(super) fn holds_back(&self) -> bool {
        !self.held.is_empty()
    }

    /// Every text has passed, or none is judged.
    pub(super) const fn is_judged(&self) -> bool {
        !self.judges() || self.passed >= self.texts
    }

    pub(super) fn waits(&self) -> bool {
        if self.cut {
            // The stream's end is the record's: what the guard is being asked still belongs there.
            return self.ended && self.explains;
        }
        if self.ended {
            // Text that has left already is judged to its end, too.
            return !self.held.is_empty() || self.windows.is_in_flight();
        }
        // What passed leaves although the next call is under way: slow verdicts must not hold back everything.
        self.ready.is_empty() && (!self.released || (self.holds() && self.windows.is_in_flight()))
    }

    /// What leaves now.
    pub(super) fn take_ready(&mut self) -> Vec<u8> {
        self.released = true;
        core::mem::take(&mut self.ready)
    }
}
