//! Finds the line of a field in a manifest that was refused.
//!
//! It reads the input a second time, with positions, and only after something was refused: a good manifest costs
//! nothing. It decides nothing: where it finds no line, the error simply has none.

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use std::{collections::BTreeMap, fmt};

/// A YAML node with the lines of what is in it.
enum Node {
    Map(BTreeMap<String, (u64, Spanned<Node>)>),
    Seq(Vec<Spanned<Node>>),
    Leaf,
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NodeVisitor;
        impl<'de> Visitor<'de> for NodeVisitor {
            type Value = Node;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut fields = BTreeMap::new();
                while let Some(key) = map.next_key::<Spanned<String>>()? {
                    let line = key.referenced.line();
                    fields.insert(key.value, (line, map.next_value()?));
                }
                Ok(Node::Map(fields))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Node::Seq(items))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_str<E>(self, _: &str) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Leaf)
            }
            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
                IgnoredAny::deserialize(deserializer).map(|_| Node::Leaf)
            }
        }
        deserializer.deserialize_any(NodeVisitor)
    }
}

/// The line, from 1, of the deepest part of `path` that document number `document` (from 1) of `input` has.
pub(crate) fn line_of(input: &str, document: usize, path: &str) -> Option<u64> {
    let documents: Vec<Spanned<Node>> = serde_saphyr::from_multiple(input).ok()?;
    let root = documents.get(document.checked_sub(1)?)?;
    let mut line = root.referenced.line();
    let mut node = &root.value;
    for step in path.split(['.', '[']).filter(|step| !step.is_empty()) {
        let next = match (node, step.strip_suffix(']')) {
            (Node::Seq(items), Some(index)) => index
                .parse::<usize>()
                .ok()
                .and_then(|index| items.get(index))
                .map(|item| (item.referenced.line(), item)),
            (Node::Map(fields), None) => fields.get(step).map(|(line, value)| (*line, value)),
            _ => None,
        };
        let Some((found, value)) = next else { break };
        line = found;
        node = &value.value;
    }
    (line > 0).then_some(line)
}
