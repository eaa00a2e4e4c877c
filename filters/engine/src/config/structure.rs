//! `google.protobuf.Struct` in its wire form: what Envoy hands a filter whose configuration is written inline as YAML.
//! (A `StringValue`, as meshes send it, arrives as the JSON text itself.)

use super::node::Node;

/// Deeper nesting than any configuration has.
const MAX_DEPTH: usize = 64;

/// The encoded `Struct`; `None` when the bytes are none.
#[must_use]
pub(super) fn node(bytes: &[u8]) -> Option<Node> {
    structure(bytes, MAX_DEPTH)
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

fn text(bytes: &[u8]) -> Option<String> {
    core::str::from_utf8(bytes).ok().map(str::to_owned)
}

/// `Struct { map<string, Value> fields = 1 }`
fn structure(mut bytes: &[u8], depth: usize) -> Option<Node> {
    let mut fields = Vec::new();
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
        fields.push((text(key)?, value(member, depth.checked_sub(1)?)?));
    }
    Some(Node::Section(fields))
}

/// `Value { oneof { null = 1, number = 2, string = 3, bool = 4, struct = 5, list = 6 } }`
fn value(mut bytes: &[u8], depth: usize) -> Option<Node> {
    if bytes.is_empty() {
        return Some(Node::Null);
    }
    let node = match next_field(&mut bytes)? {
        (1, Field::Varint(_)) => Node::Null,
        (2, Field::Fixed64(fixed)) => Node::Number(f64::from_le_bytes(fixed)),
        (3, Field::Bytes(bytes)) => Node::Text(text(bytes)?),
        (4, Field::Varint(flag)) => Node::Flag(flag != 0),
        (5, Field::Bytes(bytes)) => structure(bytes, depth.checked_sub(1)?)?,
        (6, Field::Bytes(bytes)) => list(bytes, depth.checked_sub(1)?)?,
        _ => return None,
    };
    bytes.is_empty().then_some(node)
}

/// `ListValue { repeated Value values = 1 }`
fn list(mut bytes: &[u8], depth: usize) -> Option<Node> {
    let mut nodes = Vec::new();
    while !bytes.is_empty() {
        let (1, Field::Bytes(element)) = next_field(&mut bytes)? else { return None };
        nodes.push(value(element, depth)?);
    }
    Some(Node::List(nodes))
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
        assert_eq!(node(&encode(&value)).unwrap(), serde_json::from_value::<Node>(value).unwrap());
    }

    #[test]
    fn nesting_is_bounded() {
        let mut value = json!({});
        for _ in 0..100 {
            value = json!({ "x": value });
        }
        assert_eq!(node(&encode(&value)), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(node) = node(&bytes) {
                prop_assert!(matches!(node, Node::Section(_)));
            }
        }
    }
}
