//! Field selectors: `metadata.name=x,spec.nodeName!=y`.

use std::fmt;

use crate::status::Status;

/// The longest selector that is read, in bytes.
pub const MAX_BYTES: usize = 64 * 1024;

/// One condition on one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The path: `spec.nodeName`.
    pub field: String,
    /// The value to compare with, unescaped.
    pub value: String,
    /// `=` and `==` when true, `!=` when false.
    pub equals: bool,
}

/// Conditions on fields, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

impl Selector {
    /// Reads the query form. The error is a 400 in Kubernetes' words.
    pub fn parse(text: &str) -> Result<Self, Status> {
        if text.len() > MAX_BYTES {
            return Err(Status::bad_request(format!("field selector is longer than {MAX_BYTES} bytes")));
        }
        let mut requirements = Vec::new();
        for term in split_terms(text).into_iter().filter(|t| !t.is_empty()) {
            let Some((field, equals, value)) = split_term(term) else {
                return Err(Status::bad_request(format!(
                    "invalid selector: '{text}'; can't understand '{term}'"
                )));
            };
            let value = unescape(value).map_err(Status::bad_request)?;
            requirements.push(Requirement { field: field.into(), value, equals });
        }
        Ok(Selector { requirements })
    }

    /// The conditions, in the order given.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether there is no condition.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The value that the field must equal, where some condition says so.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.requirements.iter().find(|r| r.equals && r.field == field).map(|r| r.value.as_str())
    }

    /// Whether fields, looked up by `value`, meet all conditions. A field that is not set is the empty string.
    pub fn matches(&self, value: impl Fn(&str) -> Option<String>) -> bool {
        self.requirements.iter().all(|r| (value(&r.field).unwrap_or_default() == r.value) == r.equals)
    }
}

/// The query form, with values escaped.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let operator = if r.equals { "=" } else { "!=" };
            let value = r.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(f, "{comma}{}{operator}{value}", r.field)?;
        }
        Ok(())
    }
}

// Splits at commas that no backslash protects.
fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, b) in text.bytes().enumerate() {
        match b {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                terms.push(text.get(start..i).unwrap_or_default());
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(text.get(start..).unwrap_or_default());
    terms
}

fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    for (i, _) in term.char_indices() {
        let rest = term.get(i..)?;
        for (operator, equals) in [("!=", false), ("==", true), ("=", true)] {
            if let Some(value) = rest.strip_prefix(operator) {
                return Some((term.get(..i)?, equals, value));
            }
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => return Err(format!("invalid field selector: invalid escape sequence: \\{c}")),
                None => return Err("invalid field selector: invalid escape sequence: \\".into()),
            },
            ',' | '=' => return Err(format!("invalid field selector: unescaped character in value: {c}")),
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_and_matches() {
        let s = Selector::parse("metadata.name=x,spec.nodeName!=y,a==b\\,c").unwrap();
        assert_eq!(s.exact("metadata.name"), Some("x"));
        assert_eq!(s.exact("a"), Some("b,c"));
        let value = |f: &str| {
            Some(
                match f {
                    "metadata.name" => "x",
                    "a" => "b,c",
                    _ => "",
                }
                .to_string(),
            )
        };
        assert!(s.matches(value));
        assert!(!s.matches(|_| Some("y".into())));
        assert!(Selector::parse("").unwrap().is_everything());
    }

    #[test]
    fn errors_in_kubernetes_words() {
        let table = [
            ("metadata.name", "invalid selector: 'metadata.name'; can't understand 'metadata.name'"),
            (
                "metadata.name in (c1)",
                "invalid selector: 'metadata.name in (c1)'; can't understand 'metadata.name in (c1)'",
            ),
            ("metadata.name=a\\", "invalid field selector: invalid escape sequence: \\"),
            ("a=b=c", "invalid field selector: unescaped character in value: ="),
        ];
        for (text, words) in table {
            assert_eq!(Selector::parse(text).unwrap_err().message, words);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-c.,=!\\\\é ]{0,30}") {
            if let Ok(s) = Selector::parse(&text) {
                prop_assert_eq!(Selector::parse(&s.to_string()).unwrap(), s);
            }
        }
    }
}
