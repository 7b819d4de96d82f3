//! Field paths and field errors, in Kubernetes' words: `spec.ports[0].name: Invalid value: "x": must be ...`.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

/// Where in an object something is: `spec.containers[0].name`, `data[a key]`.
///
/// Cheap to extend and to clone; the text is made only when an error needs it.
#[derive(Clone, Default)]
pub struct Path(Option<Arc<Node>>);

struct Node {
    parent: Option<Arc<Node>>,
    step: Step,
}

enum Step {
    Child(Cow<'static, str>),
    Index(usize),
    Key(String),
}

/// The empty path, from which all others are made.
pub fn root() -> Path {
    Path(None)
}

impl Path {
    /// A path of one field: `Path::new("spec")`.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        root().child(name)
    }

    /// `self.name`
    pub fn child(&self, name: impl Into<Cow<'static, str>>) -> Self {
        self.step(Step::Child(name.into()))
    }

    /// `self[index]`
    pub fn index(&self, index: usize) -> Self {
        self.step(Step::Index(index))
    }

    /// `self[key]`
    pub fn key(&self, key: impl Into<String>) -> Self {
        self.step(Step::Key(key.into()))
    }

    fn step(&self, step: Step) -> Self {
        Path(Some(Arc::new(Node { parent: self.0.clone(), step })))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut nodes = Vec::new();
        let mut at = self.0.as_deref();
        while let Some(node) = at {
            nodes.push(node);
            at = node.parent.as_deref();
        }
        if nodes.is_empty() {
            return f.write_str("<nil>");
        }
        for (i, node) in nodes.iter().rev().enumerate() {
            match &node.step {
                Step::Child(name) if i == 0 => f.write_str(name)?,
                Step::Child(name) => write!(f, ".{name}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => write!(f, "[{key}]")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Path({self})")
    }
}

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorType {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    Internal,
    TypeInvalid,
}

impl ErrorType {
    /// The `reason` of a cause in a Status: `FieldValueRequired`.
    pub fn reason(self) -> &'static str {
        match self {
            ErrorType::NotFound => "FieldValueNotFound",
            ErrorType::Required => "FieldValueRequired",
            ErrorType::Duplicate => "FieldValueDuplicate",
            ErrorType::Invalid => "FieldValueInvalid",
            ErrorType::NotSupported => "FieldValueNotSupported",
            ErrorType::Forbidden => "FieldValueForbidden",
            ErrorType::TooLong => "FieldValueTooLong",
            ErrorType::TooMany => "FieldValueTooMany",
            ErrorType::Internal => "InternalError",
            ErrorType::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn words(self) -> &'static str {
        match self {
            ErrorType::NotFound => "Not found",
            ErrorType::Required => "Required value",
            ErrorType::Duplicate => "Duplicate value",
            ErrorType::Invalid | ErrorType::TypeInvalid => "Invalid value",
            ErrorType::NotSupported => "Unsupported value",
            ErrorType::Forbidden => "Forbidden",
            ErrorType::TooLong => "Too long",
            ErrorType::TooMany => "Too many",
            ErrorType::Internal => "Internal error",
        }
    }
}

/// One thing wrong with one field. Displays as `path: Words: value: detail`.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    /// The path as text.
    pub path: String,
    /// What kind of error.
    pub kind: ErrorType,
    /// The offending value; shown for the kinds that show one.
    pub bad_value: Value,
    /// More words; empty for none.
    pub detail: String,
    /// How the offending value is shown, where that is not as it was sent.
    pub shown: Option<String>,
}

impl Error {
    fn new(kind: ErrorType, path: &Path, bad_value: Value, detail: impl Into<String>) -> Self {
        Error { path: path.to_string(), kind, bad_value, detail: detail.into(), shown: None }
    }

    /// The same, with the offending value shown like this.
    #[must_use]
    pub fn shown_as(mut self, text: String) -> Self {
        self.shown = Some(text);
        self
    }

    /// A value must be given and is not. `detail` may be empty.
    pub fn required(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorType::Required, path, Value::Null, detail)
    }

    /// The value breaks a rule that `detail` states.
    pub fn invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(ErrorType::Invalid, path, value.into(), detail)
    }

    /// The value is not one of `supported`, which are listed in the order given.
    pub fn not_supported<S: AsRef<str>>(path: &Path, value: impl Into<Value>, supported: &[S]) -> Self {
        let quoted: Vec<String> = supported.iter().map(|s| go_quote(s.as_ref())).collect();
        let detail = if quoted.is_empty() {
            String::new()
        } else {
            format!("supported values: {}", quoted.join(", "))
        };
        Self::new(ErrorType::NotSupported, path, value.into(), detail)
    }

    /// The value appears twice where it must be unique.
    pub fn duplicate(path: &Path, value: impl Into<Value>) -> Self {
        Self::new(ErrorType::Duplicate, path, value.into(), "")
    }

    /// The field may not be set, or not like this.
    pub fn forbidden(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorType::Forbidden, path, Value::Null, detail)
    }

    /// The value is longer than `max` bytes.
    pub fn too_long(path: &Path, max: usize) -> Self {
        let detail = if max == 1 {
            "may not be more than 1 byte".into()
        } else {
            format!("may not be more than {max} bytes")
        };
        Self::new(ErrorType::TooLong, path, Value::Null, detail)
    }

    /// The list has `actual` items where at most `max` are allowed.
    pub fn too_many(path: &Path, actual: usize, max: usize) -> Self {
        let items = if max == 1 { "item" } else { "items" };
        Self::new(ErrorType::TooMany, path, actual.into(), format!("must have at most {max} {items}"))
    }

    /// The value refers to something that does not exist.
    pub fn not_found(path: &Path, value: impl Into<Value>) -> Self {
        Self::new(ErrorType::NotFound, path, value.into(), "")
    }

    /// Checking the value failed for a reason of ours.
    pub fn internal(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorType::Internal, path, Value::Null, detail)
    }

    /// The value has the wrong JSON type.
    pub fn type_invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(ErrorType::TypeInvalid, path, value.into(), detail)
    }

    /// The error without its path: the `message` of a cause.
    pub fn body(&self) -> String {
        let words = self.kind.words();
        let mut text = match self.kind {
            ErrorType::Required | ErrorType::Forbidden | ErrorType::TooLong | ErrorType::Internal => {
                words.to_string()
            }
            _ => match (&self.shown, &self.bad_value) {
                (Some(text), _) => format!("{words}: {text}"),
                (None, Value::String(s)) => format!("{words}: {}", go_quote(s)),
                (None, other) => format!("{words}: {other}"),
            },
        };
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

impl std::error::Error for Error {}

/// Joins errors as Kubernetes' aggregate does: repeated messages once, several in brackets.
pub fn aggregate(errors: &[Error]) -> String {
    let mut seen: Vec<String> = Vec::new();
    for error in errors {
        let text = error.to_string();
        if !seen.contains(&text) {
            seen.push(text);
        }
    }
    match seen.len() {
        1 => seen.remove(0),
        _ => format!("[{}]", seen.join(", ")),
    }
}

/// A string in double quotes, escaped as Go's `%q` does.
pub fn go_quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0b' => out.push_str("\\v"),
            '\x0c' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_read_as_in_kubernetes() {
        let p = Path::new("spec").child("containers").index(0).child("resources").child("limits").key("a b");
        assert_eq!(p.to_string(), "spec.containers[0].resources.limits[a b]");
        assert_eq!(root().to_string(), "<nil>");
    }

    #[test]
    fn errors_read_as_in_kubernetes() {
        let p = Path::new("spec").child("x");
        let table = [
            (Error::required(&p, ""), "spec.x: Required value"),
            (Error::invalid(&p, "y\n", "bad"), "spec.x: Invalid value: \"y\\n\": bad"),
            (Error::invalid(&p, 5, "bad"), "spec.x: Invalid value: 5: bad"),
            (Error::invalid(&p, json!({"a": 1}), "bad"), "spec.x: Invalid value: {\"a\":1}: bad"),
            (Error::invalid(&p, Value::Null, "bad"), "spec.x: Invalid value: null: bad"),
            (
                Error::not_supported(&p, "Q", &["A", "B"]),
                "spec.x: Unsupported value: \"Q\": supported values: \"A\", \"B\"",
            ),
            (Error::duplicate(&p, "c"), "spec.x: Duplicate value: \"c\""),
            (Error::forbidden(&p, "no"), "spec.x: Forbidden: no"),
            (Error::type_invalid(&p, "string", "no number"), "spec.x: Invalid value: \"string\": no number"),
            (Error::too_long(&p, 128), "spec.x: Too long: may not be more than 128 bytes"),
            (Error::too_many(&p, 3, 2), "spec.x: Too many: 3: must have at most 2 items"),
        ];
        for (error, words) in table {
            assert_eq!(error.to_string(), words);
        }
    }

    #[test]
    fn aggregate_repeats_nothing() {
        let p = Path::new("a");
        let e = Error::required(&p, "");
        assert_eq!(aggregate(&[e.clone(), e.clone()]), "a: Required value");
        assert_eq!(aggregate(&[e, Error::forbidden(&p, "")]), "[a: Required value, a: Forbidden]");
    }
}
