//! `google.protobuf.Struct` in its wire form: what Envoy hands a filter whose configuration is written inline as YAML.
//! (A `StringValue`, as meshes send it, arrives as the JSON text itself.)

use crate::openai::json_string;

/// Deeper nesting than any configuration has.
const MAX_DEPTH: usize = 64;

/// The JSON text of an encoded `Struct`; `None` when the bytes are none.
#[must_use]
pub(super) fn to_json(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut json = Vec::with_capacity(bytes.len().saturating_mul(2));
    structure(bytes, MAX_DEPTH, &mut json)?;
    Some(json)
}

/// Fields of a message: number and payload.
enum Field<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(&'a [u8]),
}

fn next_field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let tag = varint(bytes)?;
    let field = match tag & 7 {
        0 => Field::Varint(varint(bytes)?),
        1 => {
            let (fixed, rest) = bytes.split_first_chunk::<8>()?;
            *bytes = rest;
            Field::Fixed64(*fixed)
        }
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            let (payload, rest) = bytes.split_at_checked(length)?;
            *bytes = rest;
            Field::Bytes(payload)
        }
        _ => return None,
    };
    Some((tag >> 3, field))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn string(bytes: &[u8], json: &mut Vec<u8>) -> Option<()> {
    json.extend_from_slice(&json_string(core::str::from_utf8(bytes).ok()?));
    Some(())
}

/// `Struct { map<string, Value> fields = 1 }`
fn structure(mut bytes: &[u8], depth: usize, json: &mut Vec<u8>) -> Option<()> {
    json.push(b'{');
    let mut first = true;
    while !bytes.is_empty() {
        let (1, Field::Bytes(mut entry)) = next_field(&mut bytes)? else { return None };
        let (mut key, mut member) = (&[][..], &[][..]);
        while !entry.is_empty() {
            match next_field(&mut entry)? {
                (1, Field::Bytes(bytes)) => key = bytes,
                (2, Field::Bytes(bytes)) => member = bytes,
                _ => return None,
            }
        }
        if !core::mem::take(&mut first) {
            json.push(b',');
        }
        string(key, json)?;
        json.push(b':');
        value(member, depth.checked_sub(1)?, json)?;
    }
    json.push(b'}');
    Some(())
}

/// `Value { oneof { null = 1, number = 2, string = 3, bool = 4, struct = 5, list = 6 } }`
fn value(mut bytes: &[u8], depth: usize, json: &mut Vec<u8>) -> Option<()> {
    if bytes.is_empty() {
        json.extend_from_slice(b"null");
        return Some(());
    }
    match next_field(&mut bytes)? {
        (1, Field::Varint(_)) => json.extend_from_slice(b"null"),
        (2, Field::Fixed64(fixed)) => json.extend_from_slice(number(f64::from_le_bytes(fixed))?.as_bytes()),
        (3, Field::Bytes(bytes)) => string(bytes, json)?,
        (4, Field::Varint(flag)) => json.extend_from_slice(if flag == 0 { b"false" } else { b"true" }),
        (5, Field::Bytes(bytes)) => structure(bytes, depth.checked_sub(1)?, json)?,
        (6, Field::Bytes(bytes)) => list(bytes, depth.checked_sub(1)?, json)?,
        _ => return None,
    }
    bytes.is_empty().then_some(())
}

/// `ListValue { repeated Value values = 1 }`
fn list(mut bytes: &[u8], depth: usize, json: &mut Vec<u8>) -> Option<()> {
    json.push(b'[');
    let mut first = true;
    while !bytes.is_empty() {
        let (1, Field::Bytes(element)) = next_field(&mut bytes)? else { return None };
        if !core::mem::take(&mut first) {
            json.push(b',');
        }
        value(element, depth, json)?;
    }
    json.push(b']');
    Some(())
}

/// A `Struct` knows only doubles; whole ones become integers again.
#[expect(clippy::cast_possible_truncation, reason = "only whole numbers within the exact range are cast")]
fn number(double: f64) -> Option<String> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if double.fract() == 0.0 && double.abs() <= EXACT {
        return Some((double as i64).to_string());
    }
    double.is_finite().then(|| double.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn encode_varint(mut value: usize, out: &mut Vec<u8>) {
        while value >= 0x80 {
            out.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    }

    fn message(number: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2];
        encode_varint(payload.len(), &mut out);
        out.extend_from_slice(payload);
        out
    }

    fn encode_value(value: &Value) -> Vec<u8> {
        match value {
            Value::Null => vec![0x08, 0],
            Value::Number(number) => [&[0x11][..], &number.as_f64().unwrap().to_le_bytes()].concat(),
            Value::String(text) => message(3, text.as_bytes()),
            Value::Bool(flag) => vec![0x20, u8::from(*flag)],
            Value::Object(_) => message(5, &encode(value)),
            Value::Array(values) => {
                message(6, &values.iter().flat_map(|value| message(1, &encode_value(value))).collect::<Vec<u8>>())
            }
        }
    }

    fn encode(value: &Value) -> Vec<u8> {
        let entry = |(key, value): (&String, &Value)| {
            message(1, &[message(1, key.as_bytes()), message(2, &encode_value(value))].concat())
        };
        value.as_object().unwrap().iter().flat_map(entry).collect()
    }

    #[test]
    fn every_kind_of_value_comes_back() {
        let value = json!({"a": [1, -2, 0.5, "x", true, false, null, [], {}], "b": {"c": {"d": 4_194_304}}, "": "€"});
        assert_eq!(serde_json::from_slice::<Value>(&to_json(&encode(&value)).unwrap()).unwrap(), value);
    }

    #[test]
    fn nesting_is_bounded() {
        let mut value = json!({});
        for _ in 0..100 {
            value = json!({ "x": value });
        }
        assert_eq!(to_json(&encode(&value)), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(json) = to_json(&bytes) {
                prop_assert!(serde_json::from_slice::<Value>(&json).is_ok());
            }
        }
    }
}
