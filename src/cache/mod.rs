//! The exact cache's store: answers by key, asked by the gateway, filled from the access log.

pub mod embedded;
pub mod redis;

use std::io;

use bytes::Bytes;
use parapet_engine::cache::Entry;
use parapet_engine::record::Record;

use embedded::Embedded;
use redis::Redis;

/// Where entries live: in this process, and in a Redis that others share.
#[derive(Debug)]
pub struct Store {
    memory: Embedded,
    shared: Option<Redis>,
}

impl Store {
    pub const fn new(memory: Embedded, shared: Option<Redis>) -> Self {
        Self { memory, shared }
    }

    /// The entry's JSON, unless it is unknown or too old at `now_s` (seconds since the Unix epoch). What memory has is
    /// not asked for elsewhere.
    pub async fn get(&self, key: &str, now_s: u64) -> Option<Bytes> {
        if let Some(found) = self.memory.get(key, now_s) {
            return Some(found);
        }
        let (json, entry) = self.shared.as_ref()?.get(key, now_s).await?;
        self.memory.remember(key, &json, &entry, now_s);
        Some(json)
    }

    /// Stores entries. The same entries again change nothing.
    pub fn put(&self, entries: &[(String, Entry)], now_s: u64) -> io::Result<()> {
        if let Some(shared) = &self.shared {
            let live = entries.iter().filter(|(_, entry)| entry.expires_s > now_s);
            live.for_each(|(key, entry)| shared.offer(key, entry));
        }
        self.memory.put(entries, now_s)
    }

    /// Entries and bytes in this process.
    pub fn size(&self) -> (u64, u64) {
        self.memory.size()
    }
}

/// A key is the hexadecimal text that the gateway made.
pub fn is_key(key: &str) -> bool {
    (16..=128).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'))
}

/// What the record says may be stored. The gateway allowed it with `store_s`; that the answer is whole, and is the
/// model's own, is checked again here, because a wrong entry would be served for its whole life.
pub fn storable(record: &Record) -> Option<(String, Entry)> {
    let cache = record.cache.as_ref()?;
    let (key, store_s) = (cache.key.as_ref()?, cache.store_s?);
    let whole = record.status == 200
        && record.reason.is_none()
        && !record.truncated
        && !record.client_aborted
        && !record.answers.is_empty()
        && record.answers.iter().all(|answer| {
            answer.finish_reason.as_deref().is_some_and(|reason| !matches!(reason, "" | "content_filter"))
        });
    if !whole || store_s == 0 || cache.outcome == "hit" || !is_key(key) {
        return None;
    }
    let created_s = record.end_us / 1_000_000;
    let entry = Entry {
        created_s,
        expires_s: created_s.saturating_add(store_s),
        provider: record.attempts.last().map(|attempt| attempt.provider.clone()).unwrap_or_default(),
        answers: record.answers.clone(),
        usage: record.usage.unwrap_or_default(),
    };
    Some((key.clone(), entry))
}

#[cfg(test)]
mod tests {
    use parapet_engine::record::{Answered, Attempt, CacheRecord};

    use super::*;

    fn record() -> Record {
        Record {
            status: 200,
            end_us: 1_000_900_000,
            answers: vec![Answered { content: "a".into(), finish_reason: Some("stop".into()), ..Answered::default() }],
            cache: Some(CacheRecord {
                outcome: "miss".into(),
                key: Some("ab".repeat(32)),
                store_s: Some(60),
                age_s: None,
            }),
            attempts: vec![Attempt { provider: "vllm".into(), ..Attempt::default() }],
            ..Record::default()
        }
    }

    #[test]
    fn a_whole_answer_is_stored_for_its_time() {
        let (key, entry) = storable(&record()).unwrap();
        assert_eq!(key, "ab".repeat(32));
        assert_eq!((entry.created_s, entry.expires_s, entry.provider.as_str()), (1000, 1060, "vllm"));
    }

    #[test]
    fn anything_less_is_not() {
        let changes: [fn(&mut Record); 10] = [
            |record| record.status = 502,
            |record| record.truncated = true,
            |record| record.client_aborted = true,
            |record| record.answers.clear(),
            |record| record.answers[0].finish_reason = None,
            |record| record.answers[0].finish_reason = Some("content_filter".into()),
            |record| record.reason = Some("content_blocked".into()),
            |record| record.cache.as_mut().unwrap().store_s = None,
            |record| record.cache.as_mut().unwrap().key = Some("../../etc/passwd".into()),
            |record| record.cache.as_mut().unwrap().outcome = "hit".into(),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let mut record = record();
            change(&mut record);
            assert_eq!(storable(&record), None, "change {index}");
        }
    }
}
