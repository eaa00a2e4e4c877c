//! A value of the configuration as it stands, before anything is known of its meaning: what both wire forms become.

use core::fmt;

use serde::{Deserialize, Deserializer, de};

#[derive(Debug, PartialEq)]
pub(super) enum Node {
    Null,
    Flag(bool),
    /// A `Struct` knows only doubles.
    Number(f64),
    Text(String),
    List(Vec<Self>),
    /// In the order in which it is written.
    Section(Vec<(String, Self)>),
}

impl Node {
    /// For errors: what stands there instead of what was expected.
    pub(super) fn kind(&self) -> String {
        match self {
            Self::Null => "nothing".to_owned(),
            Self::Flag(true) => "`true`".to_owned(),
            Self::Flag(false) => "`false`".to_owned(),
            Self::Number(number) => match whole(*number) {
                Some(number) => format!("`{number}`"),
                None => "a number with a fraction".to_owned(),
            },
            Self::Text(text) => format!("`{text}`"),
            Self::List(_) => "a list".to_owned(),
            Self::Section(_) => "a section".to_owned(),
        }
    }
}

/// The integer that a double stands for, where it does so exactly.
#[expect(clippy::cast_possible_truncation, reason = "only whole numbers within the exact range are cast")]
pub(super) fn whole(number: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    // `fract` would be a call into the maths library on this target.
    let integer = number as i64;
    #[expect(clippy::cast_precision_loss, reason = "within the exact range")]
    let same = integer as f64 == number;
    (number.abs() <= EXACT && same).then_some(integer)
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Visitor)
    }
}

struct Visitor;

impl<'de> de::Visitor<'de> for Visitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Node, E> {
        Ok(Node::Flag(flag))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Node, E> {
        Ok(Node::Number(number))
    }

    #[expect(clippy::cast_precision_loss, reason = "the other wire form knows only doubles, too")]
    fn visit_u64<E>(self, number: u64) -> Result<Node, E> {
        Ok(Node::Number(number as f64))
    }

    #[expect(clippy::cast_precision_loss, reason = "the other wire form knows only doubles, too")]
    fn visit_i64<E>(self, number: i64) -> Result<Node, E> {
        Ok(Node::Number(number as f64))
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Node::Text(text.to_owned()))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = list.next_element()? {
            nodes.push(node);
        }
        Ok(Node::List(nodes))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Node::Section(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_becomes_nodes_in_its_order() {
        let node: Node = serde_json::from_str(r#"{"b": [1, -2, 0.5, true, null], "a": {"x": "€"}}"#).unwrap();
        let numbers = [1.0, -2.0, 0.5].map(Node::Number);
        let list = numbers.into_iter().chain([Node::Flag(true), Node::Null]).collect();
        let inner = Node::Section(vec![("x".to_owned(), Node::Text("€".to_owned()))]);
        assert_eq!(node, Node::Section(vec![("b".to_owned(), Node::List(list)), ("a".to_owned(), inner)]));
    }

    #[test]
    fn a_double_is_an_integer_only_where_nothing_is_lost() {
        for (number, integer) in [
            (0.0, Some(0)),
            (-3.0, Some(-3)),
            (4_194_304.0, Some(4_194_304)),
            (0.5, None),
            (1e300, None),
            (f64::NAN, None),
            (f64::INFINITY, None),
        ] {
            assert_eq!(whole(number), integer, "{number}");
        }
    }
}
