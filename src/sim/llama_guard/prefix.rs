//! vLLM's prefix cache as usage shows it: whole blocks of tokens that some earlier prompt began with too.

use std::{
    collections::{HashSet, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Mutex, PoisonError},
};

/// Tokens a block, vLLM's default on GPU.
const BLOCK: usize = 16;
/// Oldest blocks are evicted beyond (1.6 million tokens).
const MAX_BLOCKS: usize = 100_000;

#[derive(Default)]
pub(super) struct PrefixCache(Mutex<Blocks>);

#[derive(Default)]
struct Blocks {
    known: HashSet<u64>,
    order: VecDeque<u64>,
}

impl PrefixCache {
    /// How many leading tokens were known, a multiple of 16 below the whole; all are known afterwards.
    pub(super) fn cached_tokens(&self, tokens: &[(u32, &str)]) -> usize {
        let mut blocks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut chain = DefaultHasher::new();
        let (mut cached, mut missed) = (0, false);
        for block in tokens.chunks_exact(BLOCK) {
            block.hash(&mut chain);
            let key = chain.finish();
            if blocks.known.insert(key) {
                missed = true;
                blocks.order.push_back(key);
            } else if !missed {
                cached += BLOCK;
            }
        }
        while blocks.order.len() > MAX_BLOCKS {
            let Some(oldest) = blocks.order.pop_front() else { break };
            blocks.known.remove(&oldest);
        }
        // The last token is always computed: its logits are the answer.
        let most = tokens.len().saturating_sub(1) / BLOCK * BLOCK;
        cached.min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_shared_beginning_in_whole_blocks_is_cached() {
        let cache = PrefixCache::default();
        let prompt = |last: u32| -> Vec<(u32, &str)> { (0..39).chain([last]).map(|id| (id, "")).collect() };
        assert_eq!(cache.cached_tokens(&prompt(1)), 0);
        assert_eq!(cache.cached_tokens(&prompt(2)), 32);
        assert_eq!(cache.cached_tokens(&prompt(2)[1..]), 0);
        assert_eq!(cache.cached_tokens(&prompt(2)[..32]), 16);
    }
}
