//! Structural schemas: what a CustomResourceDefinition says of its objects, in the form that drives decoding, pruning,
//! defaulting, validation, apply and OpenAPI of custom resources.
//!
//! A structural schema gives every field a type outside of `allOf`, `anyOf`, `oneOf` and `not`; those may only restrict values.

mod decode;
mod defaults;
mod formats;
mod parse;
mod prune;
mod validate;

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::Value;

use super::ListType;

pub use decode::{decode, decode_patched, normalize};
pub use defaults::apply_defaults;
pub use parse::{MAX_NODES, parse};
pub use prune::prune;
pub use validate::{item_key, validate, validate_update};

/// The JSON type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonType {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

impl JsonType {
    /// As a schema writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            JsonType::Object => "object",
            JsonType::Array => "array",
            JsonType::String => "string",
            JsonType::Integer => "integer",
            JsonType::Number => "number",
            JsonType::Boolean => "boolean",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Array, Self::Boolean, Self::Integer, Self::Number, Self::Object, Self::String]
            .into_iter()
            .find(|t| t.as_str() == text)
    }
}

/// What a map may hold under keys that are no properties.
#[derive(Clone, Debug, Default)]
pub enum Additional {
    /// Nothing: they are pruned.
    #[default]
    None,
    /// Anything.
    Any,
    /// Values of this schema.
    Schema(Box<Structural>),
}

/// A rule in the Common Expression Language.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub rule: String,
    pub message: String,
    pub message_expression: String,
    pub reason: String,
    pub field_path: String,
    pub optional_old_self: bool,
}

/// One node of a structural schema.
#[derive(Clone, Debug, Default)]
pub struct Structural {
    pub kind: Option<JsonType>,
    pub format: String,
    pub nullable: bool,
    pub default: Option<Value>,
    pub properties: BTreeMap<String, Structural>,
    pub additional: Additional,
    pub items: Option<Box<Structural>>,
    pub preserve_unknown: bool,
    pub embedded: bool,
    pub int_or_string: bool,
    pub list_type: Option<ListType>,
    pub list_map_keys: Vec<String>,
    pub map_atomic: bool,
    pub rules: Vec<Rule>,
    /// What restricts values.
    pub limits: Limits,
}

/// Restrictions of a value.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    pub required: Vec<String>,
    pub enum_values: Vec<Value>,
    pub pattern: Option<Regex>,
    pub minimum: Option<f64>,
    pub maximum: Option<f64>,
    pub exclusive_minimum: bool,
    pub exclusive_maximum: bool,
    pub multiple_of: Option<f64>,
    pub min_length: Option<u64>,
    pub max_length: Option<u64>,
    pub min_items: Option<u64>,
    pub max_items: Option<u64>,
    pub min_properties: Option<u64>,
    pub max_properties: Option<u64>,
    pub all_of: Vec<Structural>,
    pub any_of: Vec<Structural>,
    pub one_of: Vec<Structural>,
    pub not: Option<Box<Structural>>,
}

impl Structural {
    /// The schema of a member of an object: a property, or what any other key may hold.
    pub fn member(&self, key: &str) -> Option<&Structural> {
        self.properties.get(key).or(match &self.additional {
            Additional::Schema(schema) => Some(schema),
            _ => None,
        })
    }

    /// Whether this node or one below it has a rule.
    pub fn has_rules(&self) -> bool {
        !self.rules.is_empty()
            || self.properties.values().any(Structural::has_rules)
            || self.items.as_deref().is_some_and(Structural::has_rules)
            || matches!(&self.additional, Additional::Schema(s) if s.has_rules())
    }
}

#[cfg(test)]
mod tests;
