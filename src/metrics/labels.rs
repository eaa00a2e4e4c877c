//! Labels: values with a bound, past which every new one is `other`, so that no client can grow the metrics; and cheap to
//! look a series up by, which every record does a dozen times.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::{
    EncodeLabel as _, EncodeLabelSet, EncodeLabelValue, LabelSetEncoder, LabelValueEncoder,
};

const LONGEST: usize = 64;

/// A label's value. Copied and hashed without looking at the text again.
#[derive(Debug, Clone)]
pub struct Value {
    text: Text,
    hash: u64,
}

#[derive(Debug, Clone)]
enum Text {
    Fixed(&'static str),
    Shared(Arc<str>),
}

impl Value {
    pub fn as_str(&self) -> &str {
        match &self.text {
            Text::Fixed(text) => text,
            Text::Shared(text) => text,
        }
    }
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self { text: Text::Fixed(text), hash: fold(text) }
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::from(if flag { "true" } else { "false" })
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self { hash: fold(&text), text: Text::Shared(text.into()) }
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.as_str() == other.as_str()
    }
}

impl Eq for Value {}

impl EncodeLabelValue for Value {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(self.as_str())
    }
}

/// The labels of a series, in their order; one without a value is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels<const N: usize>([(&'static str, Value); N]);

pub const fn labels<const N: usize>(labels: [(&'static str, Value); N]) -> Labels<N> {
    Labels(labels)
}

impl<const N: usize> Hash for Labels<N> {
    /// The names are those of the family: only values tell its series apart.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let sum = self.0.iter().fold(0_u64, |sum, (_, value)| sum.rotate_left(7).wrapping_mul(PRIME) ^ value.hash);
        state.write_u64(sum);
    }
}

impl<const N: usize> EncodeLabelSet for Labels<N> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let set = self.0.iter().filter(|(_, value)| !value.as_str().is_empty());
        set.map(|(name, value)| (*name, value.clone())).try_for_each(|label| label.encode(encoder.encode_label()))
    }
}

const PRIME: u64 = 0x0100_0000_01b3;

/// FNV-1a. What is hashed is bounded in number and length: nobody gains by collisions.
fn fold(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(PRIME))
}

/// Hands a hash through that was made already.
#[derive(Debug, Default)]
struct Made(u64);

impl Hasher for Made {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(PRIME));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[derive(Debug)]
pub struct Bound {
    /// By hash; of two texts with one hash the later is `other`.
    seen: Mutex<HashMap<u64, Value, BuildHasherDefault<Made>>>,
    max: usize,
}

impl Bound {
    pub fn new(max: usize) -> Self {
        Self { seen: Mutex::default(), max }
    }

    /// The value itself, `none` for an empty one, or `other`.
    pub fn label(&self, value: &str) -> Value {
        if value.is_empty() {
            return "none".into();
        }
        if value.len() > LONGEST {
            return "other".into();
        }
        let hash = fold(value);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = seen.get(&hash) {
            return if known.as_str() == value { known.clone() } else { "other".into() };
        }
        if seen.len() >= self.max {
            return "other".into();
        }
        let fresh = Value { text: Text::Shared(value.into()), hash };
        seen.insert(hash, fresh.clone());
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_values_past_the_bound_are_other() {
        let bound = Bound::new(2);
        let values = ["a", "b", "c", "a", "", &"x".repeat(65)].map(|value| bound.label(value));
        assert_eq!(values.each_ref().map(Value::as_str), ["a", "b", "other", "a", "none", "other"]);
    }

    #[test]
    fn equal_texts_are_one_series_wherever_they_come_from() {
        let shared = Bound::new(1).label("safe");
        assert_eq!((&shared, &Value::from("safe")), (&Value::from("safe".to_owned()), &shared));
        let family =
            prometheus_client::metrics::family::Family::<_, prometheus_client::metrics::counter::Counter>::default();
        for value in [shared, Value::from("safe"), Value::from("unsafe")] {
            family.get_or_create(&labels([("verdict", value), ("left_out", "".into())])).inc();
        }
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register("verdicts", "Verdicts", family);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(
            text.contains("verdicts_total{verdict=\"safe\"} 2\n") && text.contains("{verdict=\"unsafe\"} 1\n"),
            "{text}"
        );
    }
}
