//! What the fake guard makes of a prompt: whether an offence stands in it, and how much of it a prefix cache would have.

use std::borrow::Cow;
use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};

use serde::Deserialize;

/// Stands before the number of the stream in which the offence is.
pub(crate) const OFFENCE: &str = " zq";

/// Bytes of text that are counted as one token: what Llama 3's tokenizer makes of English and of the guard's template (the
/// 297 bytes behind the conversation are 54 tokens).
const TOKEN_BYTES: usize = 5;

/// vLLM's block: a prefix is cached in whole blocks of so many tokens.
const BLOCK_TOKENS: usize = 16;

/// More blocks than any load here has; a cache that is full begins anew.
const MAX_BLOCKS: usize = 1 << 20;

/// What the guard is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Said {
    Safe,
    /// Of the stream with this number.
    Unsafe(usize),
    /// The second call's answer.
    Categories(usize),
}

#[derive(Deserialize)]
struct Asked<'a> {
    #[serde(borrow)]
    prompt: Cow<'a, str>,
    max_tokens: u32,
}

/// What one load had the guard read, in tokens.
#[derive(Debug, Default)]
pub(crate) struct Prefill {
    pub(crate) prompt_tokens: u64,
    pub(crate) uncached_tokens: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Guard {
    /// Each block by the hash of everything up to its end. Outlives a load: what is always the same is warm.
    blocks: HashSet<u64>,
    pub(crate) read: Prefill,
}

impl Guard {
    /// `None`: the request cannot be read.
    pub(crate) fn read(&mut self, body: &[u8]) -> Option<Said> {
        let asked: Asked<'_> = serde_json::from_slice(body).ok()?;
        let tokens = asked.prompt.len().div_ceil(TOKEN_BYTES);
        let cached = self.cached_tokens(asked.prompt.as_bytes());
        self.read.prompt_tokens += tokens as u64;
        self.read.uncached_tokens += tokens.saturating_sub(cached) as u64;
        let Some(stream) = offender(&asked.prompt) else { return Some(Said::Safe) };
        Some(if asked.max_tokens > 1 { Said::Categories(stream) } else { Said::Unsafe(stream) })
    }

    /// Of a prompt, which is cached from now on.
    fn cached_tokens(&mut self, prompt: &[u8]) -> usize {
        if self.blocks.len() > MAX_BLOCKS {
            self.blocks.clear();
        }
        let block_bytes = BLOCK_TOKENS * TOKEN_BYTES;
        let mut hash = DefaultHasher::new();
        let (mut cached, mut whole) = (0, true);
        for block in prompt.chunks_exact(block_bytes) {
            block.hash(&mut hash);
            whole &= !self.blocks.insert(hash.finish());
            cached += usize::from(whole) * BLOCK_TOKENS;
        }
        // The last token is always computed, and with it its block.
        if cached > 0 && cached * TOKEN_BYTES == prompt.len() { cached - BLOCK_TOKENS } else { cached }
    }
}

fn offender(prompt: &str) -> Option<usize> {
    let (_, behind) = prompt.split_once(OFFENCE)?;
    behind.get(..6)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(guard: &mut Guard, prompt: &str, max_tokens: u32) -> Option<Said> {
        guard.read(serde_json::json!({"prompt": prompt, "max_tokens": max_tokens}).to_string().as_bytes())
    }

    #[test]
    fn an_offence_names_its_stream_and_its_categories_are_a_call_of_their_own() {
        let mut guard = Guard::default();
        assert_eq!(ask(&mut guard, "all is well", 1), Some(Said::Safe));
        assert_eq!(ask(&mut guard, "then zq000017 came", 1), Some(Said::Unsafe(17)));
        assert_eq!(ask(&mut guard, "then zq000017 came", 50), Some(Said::Categories(17)));
        assert_eq!(guard.read(b"{}"), None);
    }

    #[test]
    fn whole_blocks_of_a_common_prefix_are_cached_and_nothing_behind_a_difference() {
        let mut guard = Guard::default();
        let (a, b) = ("a".repeat(80), "b".repeat(80));
        ask(&mut guard, &[&*a, "tail"].concat(), 1);
        assert_eq!((guard.read.prompt_tokens, guard.read.uncached_tokens), (17, 17));
        ask(&mut guard, &[&*a, &*b, "tail"].concat(), 1);
        assert_eq!((guard.read.prompt_tokens, guard.read.uncached_tokens), (50, 34));
        ask(&mut guard, &[&*b, &*a].concat(), 1);
        assert_eq!(guard.read.uncached_tokens, 66, "a block counts only behind the blocks that it was seen behind");
        ask(&mut guard, &[&*a, &*b].concat(), 1);
        assert_eq!(guard.read.uncached_tokens, 82, "the last token is computed");
    }
}
