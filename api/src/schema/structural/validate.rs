//! Values against a schema, in Kubernetes' words. What an update does not change is not checked again, so that a stricter
//! schema does not lock objects that were fine when they were made.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Additional, JsonType, ListType, Structural, formats};
use crate::field::{self, Error, Path};
use crate::meta::validation;

/// The most errors that are reported.
const MAX_ERRORS: usize = 100;

/// Everything wrong with an object.
pub fn validate(schema: &Structural, object: &Value) -> Vec<Error> {
    let mut check = Check { errors: Vec::new() };
    check.value(schema, object, None, &Place::root());
    check.errors
}

/// Everything wrong with what an update changed.
pub fn validate_update(schema: &Structural, object: &Value, old: &Value) -> Vec<Error> {
    let mut check = Check { errors: Vec::new() };
    check.value(schema, object, Some(old), &Place::root());
    check.errors
}

/// Where a value is; words of errors repeat the path.
struct Place {
    path: Path,
    root: bool,
}

impl Place {
    fn root() -> Self {
        Self { path: field::root(), root: true }
    }
    fn child(&self, name: &str) -> Self {
        Self { path: self.path.child(name.to_owned()), root: false }
    }
    fn index(&self, i: usize) -> Self {
        Self { path: self.path.index(i), root: false }
    }
    fn name(&self) -> String {
        if self.root { String::new() } else { self.path.to_string() }
    }
}

struct Check {
    errors: Vec<Error>,
}

impl Check {
    fn push(&mut self, error: Error) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(error);
        }
    }

    fn invalid(&mut self, at: &Place, value: &Value, words: &str) {
        self.push(Error::invalid(&at.path, value.clone(), format!("{} in body {words}", at.name())));
    }

    fn value(&mut self, schema: &Structural, value: &Value, old: Option<&Value>, at: &Place) {
        if old == Some(value) {
            return;
        }
        if value.is_null() && schema.nullable {
            return;
        }
        if !self.kind(schema, value, at) {
            return;
        }
        self.limits(schema, value, at);
        match value {
            Value::Object(map) => self.object(schema, map, old, at),
            Value::Array(list) => self.list(schema, list, old, at),
            _ => {}
        }
        self.junctors(schema, value, at);
    }

    /// Whether the type is right, so that it makes sense to look closer.
    fn kind(&mut self, schema: &Structural, value: &Value, at: &Place) -> bool {
        let fits = |kind: JsonType| match (kind, value) {
            (JsonType::Object, Value::Object(_))
            | (JsonType::Array, Value::Array(_))
            | (JsonType::String, Value::String(_))
            | (JsonType::Number, Value::Number(_))
            | (JsonType::Boolean, Value::Bool(_)) => true,
            (JsonType::Integer, Value::Number(n)) => {
                n.is_i64() || n.is_u64() || n.as_f64().is_some_and(|f| f.fract() == 0.0)
            }
            _ => false,
        };
        let wanted = match schema.kind {
            Some(kind) if !fits(kind) => kind.as_str().to_owned(),
            None if schema.int_or_string && !fits(JsonType::Integer) && !fits(JsonType::String) => {
                "integer,string".to_owned()
            }
            _ => {
                return match value.as_str() {
                    Some(text) if !formats::matches(&schema.format, text) => {
                        let words = format!(
                            "{} in body must be of type {}: {}",
                            at.name(),
                            schema.format,
                            field::go_quote(text)
                        );
                        self.push(Error::type_invalid(&at.path, text, words));
                        false
                    }
                    _ => true,
                };
            }
        };
        let found = type_word(value);
        let words = format!("{} in body must be of type {wanted}: {}", at.name(), field::go_quote(found));
        self.push(Error::type_invalid(&at.path, found, words));
        false
    }

    fn limits(&mut self, schema: &Structural, value: &Value, at: &Place) {
        let limits = &schema.limits;
        if !limits.enum_values.is_empty() && !limits.enum_values.contains(value) {
            let shown = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
            let all: Vec<String> = limits.enum_values.iter().map(shown).collect();
            self.push(Error::not_supported(&at.path, value.clone(), &all));
        }
        match value {
            Value::String(text) => self.string(schema, text, at),
            Value::Number(n) => self.number(schema, n.as_f64().unwrap_or(0.0), value, at),
            Value::Array(list) => {
                let count = list.len() as u64;
                if let Some(min) = limits.min_items.filter(|min| count < *min) {
                    self.invalid(at, &count.into(), &format!("should have at least {min} items"));
                }
                if let Some(max) = limits.max_items.filter(|max| count > *max) {
                    self.push(Error::too_many(
                        &at.path,
                        list.len(),
                        usize::try_from(max).unwrap_or(usize::MAX),
                    ));
                }
            }
            Value::Object(map) => {
                let count = map.len() as u64;
                if let Some(min) = limits.min_properties.filter(|min| count < *min) {
                    self.invalid(at, &count.into(), &format!("should have at least {min} properties"));
                }
                if let Some(max) = limits.max_properties.filter(|max| count > *max) {
                    self.push(Error::too_many(
                        &at.path,
                        map.len(),
                        usize::try_from(max).unwrap_or(usize::MAX),
                    ));
                }
            }
            _ => {}
        }
    }

    fn string(&mut self, schema: &Structural, text: &str, at: &Place) {
        let limits = &schema.limits;
        let count = text.chars().count() as u64;
        let value = Value::from(text);
        if let Some(min) = limits.min_length.filter(|min| count < *min) {
            self.invalid(at, &value, &format!("should be at least {min} chars long"));
        }
        if let Some(max) = limits.max_length.filter(|max| count > *max) {
            self.push(Error::too_long(&at.path, usize::try_from(max).unwrap_or(usize::MAX)));
        }
        if let Some(pattern) = limits.pattern.as_ref().filter(|p| !p.is_match(text)) {
            self.invalid(at, &value, &format!("should match '{}'", pattern.as_str()));
        }
    }

    fn number(&mut self, schema: &Structural, n: f64, value: &Value, at: &Place) {
        let limits = &schema.limits;
        if let Some(min) = limits.minimum {
            if limits.exclusive_minimum && n <= min {
                self.invalid(at, value, &format!("should be greater than {min}"));
            } else if n < min {
                self.invalid(at, value, &format!("should be greater than or equal to {min}"));
            }
        }
        if let Some(max) = limits.maximum {
            if limits.exclusive_maximum && n >= max {
                self.invalid(at, value, &format!("should be less than {max}"));
            } else if n > max {
                self.invalid(at, value, &format!("should be less than or equal to {max}"));
            }
        }
        if let Some(of) = limits.multiple_of.filter(|of| *of > 0.0 && (n / of).fract() != 0.0) {
            self.invalid(at, value, &format!("should be a multiple of {of}"));
        }
        let bits = match (schema.kind, schema.format.as_str()) {
            (Some(JsonType::Integer), "int32") if n < f64::from(i32::MIN) || n > f64::from(i32::MAX) => {
                "int32"
            }
            _ => return,
        };
        self.invalid(at, value, &format!("must be of type {bits}: {value}"));
    }

    fn object(&mut self, schema: &Structural, map: &Map<String, Value>, old: Option<&Value>, at: &Place) {
        for name in &schema.limits.required {
            if !map.contains_key(name) {
                self.push(Error::required(&at.child(name).path, ""));
            }
        }
        if schema.embedded {
            for name in ["apiVersion", "kind"] {
                if map.get(name).and_then(Value::as_str).is_none_or(str::is_empty) {
                    self.push(Error::required(&at.child(name).path, "must not be empty"));
                }
            }
            self.embedded_metadata(map.get("metadata"), &at.child("metadata"));
        }
        for (key, member) in map {
            let Some(inner) = schema.member(key) else { continue };
            self.value(inner, member, old.and_then(|o| o.get(key)), &at.child(key));
        }
        debug_assert!(schema.properties.is_empty() || matches!(schema.additional, Additional::None));
    }

    /// What must hold of the metadata of an object within an object, whatever its kind.
    fn embedded_metadata(&mut self, metadata: Option<&Value>, at: &Place) {
        let Some(metadata) = metadata else { return };
        for (name, wrong) in [
            ("name", validation::path_segment as fn(&str) -> Vec<String>),
            ("generateName", validation::path_segment),
            ("namespace", validation::dns1123_label),
        ] {
            let Some(text) = metadata.get(name).and_then(Value::as_str).filter(|t| !t.is_empty()) else {
                continue;
            };
            for words in wrong(text) {
                self.push(Error::invalid(&at.child(name).path, text, words));
            }
        }
        let labels = validation::labels(metadata.get("labels"), &at.child("labels").path);
        let annotations = validation::annotations(metadata.get("annotations"), &at.child("annotations").path);
        labels.into_iter().chain(annotations).for_each(|error| self.push(error));
    }

    fn list(&mut self, schema: &Structural, list: &[Value], old: Option<&Value>, at: &Place) {
        let Some(items) = &schema.items else { return };
        let before = old.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let mut seen: BTreeMap<String, ()> = BTreeMap::new();
        let key_of = |item: &Value| item_key(schema, item);
        let known: BTreeMap<String, &Value> = match schema.list_type {
            Some(ListType::Map | ListType::Set) => {
                before.iter().map(|v| (key_of(v).to_string(), v)).collect()
            }
            _ => BTreeMap::new(),
        };
        for (i, item) in list.iter().enumerate() {
            let at = at.index(i);
            let mut was = None;
            if matches!(schema.list_type, Some(ListType::Map | ListType::Set)) {
                let key = key_of(item);
                let text = key.to_string();
                was = known.get(&text).copied();
                if seen.insert(text, ()).is_some() {
                    self.push(Error::duplicate(&at.path, key));
                }
            }
            self.value(items, item, was, &at);
        }
    }

    fn junctors(&mut self, schema: &Structural, value: &Value, at: &Place) {
        let limits = &schema.limits;
        if limits.all_of.is_empty()
            && limits.any_of.is_empty()
            && limits.one_of.is_empty()
            && limits.not.is_none()
        {
            return;
        }
        let errors_of = |part: &Structural| {
            let mut check = Check { errors: Vec::new() };
            check.value(part, value, None, &Place { path: at.path.clone(), root: at.root });
            check.errors
        };
        let name = field::go_quote(&at.name());
        let mut say = |words: String| self.push(Error::invalid(&field::root(), "", words));
        let all: Vec<Error> = limits.all_of.iter().flat_map(errors_of).collect();
        if !all.is_empty() {
            say(format!("{name} must validate all the schemas (allOf)"));
        }
        let any: Vec<Vec<Error>> = limits.any_of.iter().map(errors_of).collect();
        let mut best = Vec::new();
        if !any.is_empty() && any.iter().all(|e| !e.is_empty()) {
            say(format!("{name} must validate at least one schema (anyOf)"));
            best = any.into_iter().min_by_key(Vec::len).unwrap_or_default();
        }
        if !limits.one_of.is_empty() {
            let valid = limits.one_of.iter().filter(|s| errors_of(s).is_empty()).count();
            if valid != 1 {
                let found =
                    if valid == 0 { "none valid".into() } else { format!("{valid} valid alternatives") };
                say(format!("{name} must validate one and only one schema (oneOf). Found {found}"));
            }
        }
        if limits.not.as_deref().is_some_and(|s| errors_of(s).is_empty()) {
            say(format!("{name} must not validate the schema (not)"));
        }
        for error in all.into_iter().chain(best) {
            self.push(error);
        }
    }
}

/// What tells the items of a set or a map apart.
pub fn item_key(schema: &Structural, item: &Value) -> Value {
    if schema.list_type != Some(ListType::Map) {
        return item.clone();
    }
    let parts = schema.list_map_keys.iter().filter_map(|k| {
        let default = || schema.items.as_ref().and_then(|i| i.properties.get(k)?.default.clone());
        Some((k.clone(), item.get(k).cloned().or_else(default)?))
    });
    Value::Object(parts.collect())
}

fn type_word(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
