//! When the output guard is asked: windows of tokens that grow, one call at a time.
//!
//! A call judges everything said so far, so nothing hides in a seam between windows. While one is in flight the next
//! window fills; under load, when verdicts are slow, windows grow instead of queueing.

/// The windows of one stream.
#[derive(Debug, Clone)]
pub struct Windows {
    /// Sizes of the windows still to come, in tokens; the last repeats.
    sizes: Vec<u32>,
    next: usize,
    /// Tokens since the last call was made.
    filled: u32,
    sentence_ended: bool,
    /// The provider is slower than a reader.
    stalled: bool,
    in_flight: bool,
}

impl Windows {
    /// `sizes` as configured; none means one window that only the end closes.
    #[must_use]
    pub const fn new(sizes: Vec<u32>) -> Self {
        Self { sizes, next: 0, filled: 0, sentence_ended: false, stalled: false, in_flight: false }
    }

    /// A token with text came; `text` is its piece.
    pub fn token(&mut self, text: &str) {
        self.filled = self.filled.saturating_add(1);
        self.sentence_ended = text.trim_end().ends_with(['.', '!', '?', '\n', '。', '！', '？', '।']);
    }

    /// The provider lets wait for its tokens: those that are there are judged without waiting for more.
    pub const fn stalled(&mut self) {
        self.stalled = self.filled > 0;
    }

    /// Whether a call is to be made now. `ending`: nothing follows.
    ///
    /// A window closes at its size, or in its last quarter where a sentence ends: whole sentences judge better, and each
    /// call costs the guard its prompt's end anew.
    #[must_use]
    pub fn is_due(&self, ending: bool) -> bool {
        if self.in_flight || self.filled == 0 {
            return false;
        }
        let full = self.sizes.get(self.next).is_some_and(|&size| {
            self.filled >= size
                || (self.sentence_ended && self.filled >= size.saturating_sub(size / 4).max(MIN_SENTENCE))
        });
        ending || full || self.stalled
    }

    /// A call was made with everything so far.
    pub fn asked(&mut self) {
        self.in_flight = true;
        self.filled = 0;
        self.sentence_ended = false;
        self.stalled = false;
        let last = self.sizes.len().saturating_sub(1);
        self.next = self.next.saturating_add(1).min(last);
    }

    /// Its verdict is in.
    pub const fn answered(&mut self) {
        self.in_flight = false;
    }

    #[must_use]
    pub const fn is_in_flight(&self) -> bool {
        self.in_flight
    }

    /// Tokens that no call has covered.
    #[must_use]
    pub const fn unasked(&self) -> u32 {
        self.filled
    }
}

/// Sentences shorter than this are not worth a call of their own.
const MIN_SENTENCE: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes at which calls are made when each verdict takes `latency` tokens.
    fn calls(sizes: &[u32], tokens: u32, latency: u32) -> Vec<u32> {
        let mut windows = Windows::new(sizes.to_vec());
        let (mut calls, mut verdict_at) = (Vec::new(), None);
        for token in 0..tokens {
            windows.token("word");
            if verdict_at == Some(token) {
                windows.answered();
            }
            if windows.is_due(false) {
                calls.push(windows.unasked());
                windows.asked();
                verdict_at = Some(token + latency);
            }
        }
        calls
    }

    #[test]
    fn windows_grow_and_the_last_repeats() {
        assert_eq!(calls(&[8, 16, 32], 120, 1), [8, 16, 32, 32, 32]);
    }

    #[test]
    fn slow_verdicts_make_larger_windows_not_more_calls() {
        assert_eq!(calls(&[8], 100, 20), [8, 20, 20, 20, 20]);
    }

    #[test]
    fn a_sentence_end_closes_a_window_in_its_last_quarter() {
        let mut windows = Windows::new(vec![8, 32]);
        for _ in 0..5 {
            windows.token(" x.");
        }
        assert!(!windows.is_due(false));
        windows.token(" six.");
        assert!(windows.is_due(false));
        windows.asked();
        windows.answered();
        for _ in 0..23 {
            windows.token(" x.");
            assert!(!windows.is_due(false));
        }
        windows.token(" end. ");
        assert!(windows.is_due(false));
    }

    #[test]
    fn a_stall_closes_a_window_that_has_begun_and_only_that() {
        let mut windows = Windows::new(vec![8]);
        windows.stalled();
        windows.token("x");
        assert!(!windows.is_due(false));
        windows.stalled();
        assert!(windows.is_due(false));
        windows.asked();
        windows.token("y");
        windows.answered();
        assert!(!windows.is_due(false));
    }

    #[test]
    fn the_end_is_judged_once_and_one_call_is_in_flight_at_most() {
        let mut windows = Windows::new(Vec::new());
        windows.token("x");
        assert!(!windows.is_due(false) && windows.is_due(true));
        windows.asked();
        windows.token("y");
        assert!(!windows.is_due(true));
        windows.answered();
        assert!(windows.is_due(true));
        windows.asked();
        windows.answered();
        assert!(!windows.is_due(true));
    }
}
