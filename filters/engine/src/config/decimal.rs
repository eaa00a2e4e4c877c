//! Numbers with a fraction. Envoy makes whole numbers of YAML numbers and strings of all others (measured on 1.40), so a
//! decimal is read from either.

use core::fmt;

use serde::{Deserialize, Deserializer, de};

struct Decimal(f64);

impl<'de> Deserialize<'de> for Decimal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Decimal;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number")
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Decimal, E> {
                Ok(Decimal(value))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Decimal, E> {
                Ok(Decimal(value as f64))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Decimal, E> {
                Ok(Decimal(value as f64))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Decimal, E> {
                // The JSON reader's own number parser: the standard library's would be 16 KB more in the module.
                let number = serde_json::from_slice(text.trim().as_bytes()).ok();
                number.map(Decimal).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

pub(super) fn required<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Decimal::deserialize(deserializer).map(|Decimal(number)| number)
}

pub(super) fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    required(deserializer).map(Some)
}
