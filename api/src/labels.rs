//! Label selectors: the query form (`a=b,c in (d,e),!f`) and the object form (`matchLabels`, `matchExpressions`).

mod parse;

use std::fmt;

use serde_json::{Map, Value};

use crate::field::{self, Error, Path};
use crate::meta::validation;
use crate::status::Status;

/// The longest selector that is read, in bytes.
pub const MAX_BYTES: usize = 64 * 1024;

/// How a requirement compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Equals,
    DoubleEquals,
    NotEquals,
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

/// Conditions on labels, all of which must hold. [`Selector::everything`] has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl Requirement {
    /// Checks key, operator and values against each other, as Kubernetes does.
    pub fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Self, String> {
        let mut errors = key_errors(key);
        let path = Path::new("values");
        let list = || Value::from(values.clone());
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                errors.push(Error::invalid(
                    &path,
                    list(),
                    "for 'in', 'notin' operators, values set can't be empty",
                ));
            }
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals if values.len() != 1 => {
                errors.push(Error::invalid(
                    &path,
                    list(),
                    "exact-match compatibility requires one single value",
                ));
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                errors.push(Error::invalid(
                    &path,
                    list(),
                    "values set must be empty for exists and does not exist",
                ));
            }
            Operator::GreaterThan | Operator::LessThan => {
                if values.len() != 1 {
                    let words = "for 'Gt', 'Lt' operators, exactly one value is required";
                    errors.push(Error::invalid(&path, list(), words));
                }
                for (i, value) in values.iter().enumerate().filter(|(_, v)| v.parse::<i64>().is_err()) {
                    let words = "for 'Gt', 'Lt' operators, the value must be an integer";
                    errors.push(Error::invalid(&path.index(i), value.as_str(), words));
                }
            }
            _ => {}
        }
        for (i, value) in values.iter().enumerate() {
            let wrong = validation::label_value(value);
            if !wrong.is_empty() {
                errors.push(Error::invalid(&path.index(i).key(key), value.as_str(), wrong.join("; ")));
            }
        }
        if !errors.is_empty() {
            return Err(field::aggregate(&errors));
        }
        values.sort();
        values.dedup();
        Ok(Requirement { key: key.into(), operator, values })
    }

    /// The label key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The operator.
    pub fn operator(&self) -> Operator {
        self.operator
    }

    /// The values, sorted.
    pub fn values(&self) -> &[String] {
        &self.values
    }

    /// Whether a label with this value (`None`: no such label) meets the requirement.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let among = |v: &str| self.values.iter().any(|x| x == v);
        let compare = |v: &str, wanted: std::cmp::Ordering| {
            let limit = self.values.first().and_then(|l| l.parse::<i64>().ok());
            matches!((v.parse::<i64>(), limit), (Ok(v), Some(limit)) if v.cmp(&limit) == wanted)
        };
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => value.is_some_and(among),
            Operator::NotIn | Operator::NotEquals => !value.is_some_and(among),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => value.is_some_and(|v| compare(v, std::cmp::Ordering::Greater)),
            Operator::LessThan => value.is_some_and(|v| compare(v, std::cmp::Ordering::Less)),
        }
    }
}

fn key_errors(key: &str) -> Vec<Error> {
    let wrong = validation::label_key(key);
    if wrong.is_empty() { Vec::new() } else { vec![Error::invalid(&Path::new("key"), key, wrong.join("; "))] }
}

impl Selector {
    /// Matches every object.
    pub fn everything() -> Self {
        Selector::default()
    }

    /// Matches no object.
    pub fn nothing() -> Self {
        Selector { requirements: Vec::new(), nothing: true }
    }

    /// Reads the query form. The error is a 400 in Kubernetes' words.
    pub fn parse(text: &str) -> Result<Self, Status> {
        if text.len() > MAX_BYTES {
            return Err(Status::bad_request(format!("label selector is longer than {MAX_BYTES} bytes")));
        }
        let mut requirements = parse::parse(text).map_err(Status::bad_request)?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Selector { requirements, nothing: false })
    }

    /// Reads a `LabelSelector` object. Null matches nothing, `{}` matches everything.
    pub fn from_label_selector(selector: &Value) -> Result<Self, Status> {
        let Some(object) = selector.as_object() else { return Ok(Selector::nothing()) };
        let mut requirements = Vec::new();
        for (key, value) in object.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_string();
            requirements.push(Requirement::new(key, Operator::In, vec![value]).map_err(Status::bad_request)?);
        }
        for e in object.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let text = |key: &str| e.get(key).and_then(Value::as_str).unwrap_or_default();
            let operator = match text("operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    let words = format!("{} is not a valid label selector operator", field::go_quote(other));
                    return Err(Status::bad_request(words));
                }
            };
            let values = e.get("values").and_then(Value::as_array).into_iter().flatten();
            let values = values.filter_map(Value::as_str).map(String::from).collect();
            requirements.push(Requirement::new(text("key"), operator, values).map_err(Status::bad_request)?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Selector { requirements, nothing: false })
    }

    /// Reads a plain map (`spec.selector` of a Service): every pair must match. No pairs match everything.
    pub fn from_map(map: &Map<String, Value>) -> Self {
        let requirement = |(key, value): (&String, &Value)| Requirement {
            key: key.clone(),
            operator: Operator::Equals,
            values: vec![value.as_str().unwrap_or_default().to_string()],
        };
        Selector { requirements: map.iter().map(requirement).collect(), nothing: false }
    }

    /// Whether there is no condition at all.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// The conditions.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether labels, looked up by `label`, meet all conditions.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(label(&r.key)))
    }

    /// Whether the labels of an object meet all conditions.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches(|key| crate::meta::label(object, key))
    }

    /// Whether a map of labels meets all conditions.
    pub fn matches_map(&self, labels: &Map<String, Value>) -> bool {
        self.matches(|key| labels.get(key).and_then(Value::as_str))
    }
}

/// The query form: `a=b,c in (d,e),!f`.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{r}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Exists => write!(f, "{key}"),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

#[cfg(test)]
mod tests;
