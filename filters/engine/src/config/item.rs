//! Reading a value of the configuration as what it has to be. Every mistake names the path of its key, and what was
//! expected there.
//!
//! The first mistake is kept aside and reading goes on with some value in its place, which nobody gets to see: code that
//! would stop at each of a hundred keys is worth 13 KB in the module. As it runs once at load, nothing here is inlined.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::ConfigError;
use super::node::{Node, whole};

/// The first mistake found.
#[derive(Default)]
pub(super) struct Mistake(RefCell<Option<ConfigError>>);

impl Mistake {
    pub(super) fn into_result<T>(self, value: T) -> Result<T, ConfigError> {
        self.0.into_inner().map_or(Ok(value), Err)
    }
}

/// A value and where it stands.
pub(super) struct Item<'a> {
    path: String,
    node: &'a Node,
    mistake: &'a Mistake,
}

/// What a value of the configuration can be read as. The default stands in for what cannot be read.
pub(super) trait Read: Default {
    fn read(item: &Item<'_>) -> Self;
}

/// One of several names.
pub(super) trait Choice: Copy + Default + 'static {
    const CHOICES: &'static [(&'static str, Self)];
}

impl<'a> Item<'a> {
    pub(super) const fn root(node: &'a Node, mistake: &'a Mistake) -> Self {
        Self { path: String::new(), node, mistake }
    }

    /// Notes a mistake here; the value that stands in for what was wrong.
    #[inline(never)]
    pub(super) fn error<T: Default>(&self, message: impl Into<String>) -> T {
        if let Ok(mut mistake) = self.mistake.0.try_borrow_mut() {
            let path = if self.path.is_empty() { ".".to_owned() } else { self.path.clone() };
            mistake.get_or_insert_with(|| ConfigError { path, message: message.into() });
        }
        T::default()
    }

    #[inline(never)]
    fn expected<T: Default>(&self, what: &str) -> T {
        self.error(format!("expected {what}; got {}", self.node.kind()))
    }

    #[inline(never)]
    fn child(&self, key: &str, node: &'a Node) -> Self {
        let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        Self { path, node, mistake: self.mistake }
    }

    #[inline(never)]
    pub(super) fn text(&self) -> &'a str {
        match self.node {
            Node::Text(text) => text,
            _ => self.expected("a string"),
        }
    }

    #[inline(never)]
    fn fields(&self) -> &'a [(String, Node)] {
        let Node::Section(fields) = self.node else { return self.expected("a section") };
        for (i, (key, node)) in fields.iter().enumerate() {
            if fields.iter().take(i).any(|(other, _)| other == key) {
                return self.child(key, node).error("this key stands twice");
            }
        }
        fields
    }

    /// The section whose keys can be `keys` and nothing else.
    #[inline(never)]
    pub(super) fn section(&self, keys: &'static [&'static str]) -> Section<'a> {
        let fields = self.fields();
        for (key, node) in fields {
            if !keys.contains(&key.as_str()) {
                let keys = quoted(keys.iter().copied());
                self.child(key, node).error::<()>(format!("unknown key `{key}`; expected one of {keys}"));
            }
        }
        Section { at: Item { path: self.path.clone(), node: self.node, mistake: self.mistake }, fields }
    }
}

fn quoted(names: impl Iterator<Item = &'static str>) -> String {
    let mut list = String::new();
    for name in names {
        if !list.is_empty() {
            list.push_str(", ");
        }
        list.push('`');
        list.push_str(name);
        list.push('`');
    }
    list
}

pub(super) struct Section<'a> {
    at: Item<'a>,
    fields: &'a [(String, Node)],
}

impl Section<'_> {
    /// A key without a value (`limits:` and nothing below) is as one that is not there.
    #[inline(never)]
    pub(super) fn optional<T: Read>(&self, key: &'static str) -> Option<T> {
        match self.fields.iter().find(|(name, _)| name == key) {
            None | Some((_, Node::Null)) => None,
            Some((_, node)) => Some(T::read(&self.at.child(key, node))),
        }
    }

    pub(super) fn required<T: Read>(&self, key: &'static str) -> T {
        match self.optional(key) {
            Some(value) => value,
            None => self.at.error(format!("missing key `{key}`")),
        }
    }

    pub(super) fn or<T: Read>(&self, key: &'static str, default: T) -> T {
        self.optional(key).unwrap_or(default)
    }
}

impl Read for String {
    fn read(item: &Item<'_>) -> Self {
        item.text().to_owned()
    }
}

impl Read for bool {
    fn read(item: &Item<'_>) -> Self {
        match item.node {
            Node::Flag(flag) => *flag,
            _ => item.expected("true or false"),
        }
    }
}

impl Read for u64 {
    #[inline(never)]
    fn read(item: &Item<'_>) -> Self {
        let number = match item.node {
            Node::Number(number) => whole(*number).and_then(|number| Self::try_from(number).ok()),
            _ => None,
        };
        number.unwrap_or_else(|| item.expected("a whole number, 0 or more"))
    }
}

impl Read for u32 {
    fn read(item: &Item<'_>) -> Self {
        Self::try_from(u64::read(item)).unwrap_or_else(|_| item.expected("a smaller number"))
    }
}

impl Read for usize {
    fn read(item: &Item<'_>) -> Self {
        Self::try_from(u64::read(item)).unwrap_or_else(|_| item.expected("a smaller number"))
    }
}

/// Envoy makes whole numbers of YAML numbers and strings of all others (measured on 1.40): a decimal is read from either.
impl Read for f64 {
    #[inline(never)]
    fn read(item: &Item<'_>) -> Self {
        let number = match item.node {
            Node::Number(number) => Some(*number),
            // The JSON reader's own number parser: the standard library's would be 16 KB more in the module.
            Node::Text(text) => serde_json::from_slice(text.trim().as_bytes()).ok(),
            _ => None,
        };
        number.unwrap_or_else(|| item.expected("a number"))
    }
}

impl<T: Read> Read for Vec<T> {
    fn read(item: &Item<'_>) -> Self {
        let Node::List(nodes) = item.node else { return item.expected("a list") };
        let mut values = Self::with_capacity(nodes.len());
        for (i, node) in nodes.iter().enumerate() {
            let path = format!("{}[{i}]", item.path);
            values.push(T::read(&Item { path, node, mistake: item.mistake }));
        }
        values
    }
}

/// A section whose keys are names that the operator chose.
impl<T: Read> Read for BTreeMap<String, T> {
    fn read(item: &Item<'_>) -> Self {
        let mut values = Self::new();
        for (key, node) in item.fields() {
            values.insert(key.clone(), T::read(&item.child(key, node)));
        }
        values
    }
}

/// `off` is a boolean to readers of YAML 1.1, Envoy's among them: `mode: off` arrives as `false`.
impl<C: Choice> Read for C {
    fn read(item: &Item<'_>) -> Self {
        let name = match item.node {
            Node::Text(text) => text.as_str(),
            Node::Flag(false) => "off",
            _ => "",
        };
        match C::CHOICES.iter().find(|(choice, _)| *choice == name) {
            Some((_, value)) => *value,
            None => item.expected(&format!("one of {}", quoted(C::CHOICES.iter().map(|(choice, _)| *choice)))),
        }
    }
}
