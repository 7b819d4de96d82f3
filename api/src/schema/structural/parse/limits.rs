//! What a schema says of values: rules and limits.

use regex::RegexBuilder;
use serde_json::{Map, Value};

use super::super::{Limits, Rule, Structural};
use super::{Parser, Place, flag};
use crate::field::{Error, Path};

/// The most bytes that one compiled pattern may take.
const MAX_PATTERN: usize = 1 << 20;

impl Parser {
    pub(super) fn rules(&mut self, map: &Map<String, Value>, path: &Path, place: Place) -> Vec<Rule> {
        let at = path.child("x-kubernetes-validations");
        let list = map.get("x-kubernetes-validations").and_then(Value::as_array);
        let list = list.map(Vec::as_slice).unwrap_or_default();
        if place == Place::Junctor && !list.is_empty() {
            self.errors.push(Error::forbidden(&at, "must be empty to be structural"));
        }
        let mut out = Vec::new();
        for (i, rule) in list.iter().enumerate() {
            let word = |name: &str| rule.get(name).and_then(Value::as_str).unwrap_or("").trim().to_owned();
            let rule = Rule {
                rule: word("rule"),
                message: word("message"),
                message_expression: word("messageExpression"),
                reason: word("reason"),
                field_path: word("fieldPath"),
                optional_old_self: rule.get("optionalOldSelf") == Some(&Value::Bool(true)),
            };
            let at = at.index(i);
            if rule.rule.is_empty() {
                self.errors.push(Error::required(&at.child("rule"), "rule is not specified"));
            }
            if rule.message.contains('\n') {
                let words = "message must not contain line breaks";
                self.errors.push(Error::invalid(&at.child("message"), rule.message.as_str(), words));
            }
            out.push(rule);
        }
        out
    }

    pub(super) fn limits(&mut self, map: &Map<String, Value>, path: &Path, depth: usize) -> Limits {
        let number = |name: &str| map.get(name).and_then(Value::as_f64);
        let count = |name: &str| map.get(name).and_then(Value::as_u64);
        let strings = |name: &str| -> Vec<String> {
            let list = map.get(name).and_then(Value::as_array);
            list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let pattern = map.get("pattern").and_then(Value::as_str).filter(|p| !p.is_empty());
        let pattern = pattern.and_then(|p| match RegexBuilder::new(p).size_limit(MAX_PATTERN).build() {
            Ok(regex) => Some(regex),
            Err(e) => {
                let words = format!("must be a valid regular expression, but isn't: {e}");
                self.errors.push(Error::invalid(&path.child("pattern"), p, words));
                None
            }
        });
        let mut junctors = |name: &'static str| -> Vec<Structural> {
            let list = map.get(name).and_then(Value::as_array);
            let at = path.child(name);
            let nodes = list.into_iter().flatten().enumerate();
            nodes.map(|(i, s)| self.node(s, &at.index(i), Place::Junctor, depth + 1)).collect()
        };
        let (all_of, any_of, one_of) = (junctors("allOf"), junctors("anyOf"), junctors("oneOf"));
        let not =
            map.get("not").map(|s| Box::new(self.node(s, &path.child("not"), Place::Junctor, depth + 1)));
        Limits {
            required: strings("required"),
            enum_values: map.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
            pattern,
            minimum: number("minimum"),
            maximum: number("maximum"),
            exclusive_minimum: flag(map, "exclusiveMinimum"),
            exclusive_maximum: flag(map, "exclusiveMaximum"),
            multiple_of: number("multipleOf"),
            min_length: count("minLength"),
            max_length: count("maxLength"),
            min_items: count("minItems"),
            max_items: count("maxItems"),
            min_properties: count("minProperties"),
            max_properties: count("maxProperties"),
            all_of,
            any_of,
            one_of,
            not,
        }
    }
}
