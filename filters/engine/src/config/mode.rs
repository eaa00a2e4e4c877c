//! A guard's mode. `off` is a boolean to readers of YAML 1.1, Envoy's among them: `mode: off` arrives as `false`.

use core::fmt;
use core::marker::PhantomData;

use serde::de::value::StrDeserializer;
use serde::{Deserialize, Deserializer, de};

pub(super) fn read<'de, M: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<M, D::Error> {
    struct Visitor<M>(PhantomData<M>);
    impl<'de, M: Deserialize<'de>> de::Visitor<'de> for Visitor<M> {
        type Value = M;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("the name of a mode")
        }

        fn visit_str<E: de::Error>(self, name: &str) -> Result<M, E> {
            M::deserialize(StrDeserializer::new(name))
        }

        fn visit_bool<E: de::Error>(self, on: bool) -> Result<M, E> {
            if on { Err(E::invalid_type(de::Unexpected::Bool(on), &self)) } else { self.visit_str("off") }
        }
    }
    deserializer.deserialize_any(Visitor(PhantomData))
}
