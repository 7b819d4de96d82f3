//! YAML in and out, with the rules that manifests rely on: `0644` is octal, `yes` is a string's business of the writer, and
//! documents are bounded. `serde_yaml` here is serde-saphyr under the name that everyone looks for.

use serde_json::Value;
use serde_yaml::{Options, SerializerOptions};

/// The most bytes of one input.
pub const MAX_BYTES: usize = 16 << 20;
/// The most documents of one input.
pub const MAX_DOCUMENTS: usize = 4096;
const MAX_NODES: usize = 2_000_000;
const MAX_DEPTH: usize = 120;

/// Why a text is not YAML that can be used.
#[derive(Debug, thiserror::Error)]
#[error("yaml: {0}")]
pub struct Error(String);

/// One document and the keys that it sets twice.
#[derive(Debug)]
pub struct Document {
    /// The document; of keys set twice, the last.
    pub value: Value,
    /// At most one entry, in the words of a strict decoder: `yaml: unmarshal errors:\n  line 8: key "a" already set in map`.
    pub duplicates: Vec<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum Duplicates {
    Refuse,
    LastWins,
}

fn options(duplicates: Duplicates) -> Options {
    let mut options = Options::default();
    options.legacy_octal_numbers = true;
    options.with_snippet = false;
    options.duplicate_keys = match duplicates {
        Duplicates::Refuse => serde_yaml::DuplicateKeyPolicy::Error,
        Duplicates::LastWins => serde_yaml::DuplicateKeyPolicy::LastWins,
    };
    let mut budget = serde_yaml::Budget::default();
    budget.max_depth = MAX_DEPTH;
    budget.max_nodes = MAX_NODES;
    budget.max_events = 2 * MAX_NODES;
    budget.max_documents = MAX_DOCUMENTS;
    budget.max_total_scalar_bytes = MAX_BYTES;
    options.budget = Some(budget);
    options
}

/// All documents of a text as JSON. Empty documents are left out; a key set twice is an error.
pub fn to_json_documents(text: &str) -> Result<Vec<Value>, Error> {
    bounded(text.as_bytes())?;
    let documents: Vec<Value> =
        serde_yaml::from_multiple_with_options(text, options(Duplicates::Refuse)).map_err(explain)?;
    Ok(documents.into_iter().filter(|d| !d.is_null()).map(whole_numbers).collect())
}

/// The first document of a body, and the keys that it sets twice.
pub fn one_document(body: &[u8]) -> Result<Document, Error> {
    bounded(body)?;
    let text = std::str::from_utf8(body).map_err(|e| Error(e.to_string()))?;
    match first(text, Duplicates::Refuse) {
        Ok(value) => Ok(Document { value, duplicates: Vec::new() }),
        Err(refused) => {
            let value = first(text, Duplicates::LastWins).map_err(explain)?;
            Ok(Document { value, duplicates: vec![duplicate_words(text, &refused)] })
        }
    }
}

fn first(text: &str, duplicates: Duplicates) -> Result<Value, serde_yaml::Error> {
    let documents: Vec<Value> = serde_yaml::from_multiple_with_options(text, options(duplicates))?;
    Ok(documents.into_iter().next().map(whole_numbers).unwrap_or_default())
}

// `1.0` and `1e3` are whole numbers in JSON as Go writes it, and fit integer fields.
fn whole_numbers(value: Value) -> Value {
    match value {
        Value::Number(n) => match n.as_f64().filter(|f| n.is_f64() && f.fract() == 0.0 && f.abs() < 1e15) {
            Some(f) => Value::from(f as i64),
            None => Value::Number(n),
        },
        Value::Array(list) => list.into_iter().map(whole_numbers).collect(),
        Value::Object(map) => map.into_iter().map(|(k, v)| (k, whole_numbers(v))).collect(),
        other => other,
    }
}

/// A value as YAML.
pub fn to_string(value: &Value) -> Result<String, Error> {
    // Long lines stay whole, as kubectl writes them.
    let mut options = SerializerOptions::default();
    options.folded_wrap_chars = usize::MAX;
    serde_yaml::to_string_with_options(value, options).map_err(|e| Error(e.to_string()))
}

fn bounded(body: &[u8]) -> Result<(), Error> {
    if body.len() > MAX_BYTES {
        Err(Error(format!("the input is longer than {MAX_BYTES} bytes")))
    } else {
        Ok(())
    }
}

fn explain(error: serde_yaml::Error) -> Error {
    Error(match error.location() {
        Some(at) => {
            let text = error.without_snippet().to_string();
            let words = text.rsplit_once(" at line ").map_or(text.as_str(), |(words, _)| words);
            format!("line {}: {words}", at.line())
        }
        None => error.without_snippet().to_string(),
    })
}

fn duplicate_words(text: &str, error: &serde_yaml::Error) -> String {
    let line = error.location().map_or(0, |l| l.line());
    let at = usize::try_from(line).unwrap_or(0).saturating_sub(1);
    let source = text.lines().nth(at).unwrap_or_default().trim_start().trim_start_matches("- ");
    let key = source.split(':').next().unwrap_or_default().trim().trim_matches(['"', '\'']);
    format!("yaml: unmarshal errors:\n  line {line}: key {} already set in map", crate::field::go_quote(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn manifests_read_as_people_mean_them() {
        let text = "a: 0644\nb: yes\nc: \"yes\"\nd: 1.5\ne: ~\n---\n---\n- x\n- y: [1, 2]\n";
        let documents = to_json_documents(text).unwrap();
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[0]["a"], json!(420));
        assert_eq!(documents[0]["b"], json!(true));
        assert_eq!(documents[0]["c"], json!("yes"));
        assert_eq!(to_json_documents("[1e3, 1.0, 0.5]").unwrap(), [json!([1000, 1, 0.5])]);
        assert_eq!(documents[0]["e"], Value::Null);
        assert_eq!(documents[1], json!(["x", {"y": [1, 2]}]));
    }

    #[test]
    fn duplicates_are_reported() {
        let text = "kind: ConfigMap\ndata:\n  a: b\n  a: c\n";
        assert!(to_json_documents(text).is_err());
        let document = one_document(text.as_bytes()).unwrap();
        assert_eq!(document.value["data"]["a"], json!("c"));
        assert_eq!(document.duplicates, ["yaml: unmarshal errors:\n  line 4: key \"a\" already set in map"]);
    }

    #[test]
    fn writes_strings_that_read_back() {
        for s in
            ["yes", "0644", "1e3", "null", "~", "a: b", "- x", "", "multi\nline\n", " lead", "#c", "true"]
        {
            let value = json!({"k": s, "l": [s]});
            let text = to_string(&value).unwrap();
            assert_eq!(to_json_documents(&text).unwrap(), [value], "{text}");
        }
    }

    #[test]
    fn errors_say_where() {
        let error = to_json_documents("a: 1\nb: {c\n").unwrap_err().to_string();
        assert_eq!(error, "yaml: line 2: unclosed bracket '{'");
    }

    proptest::proptest! {
        #[test]
        fn any_string_reads_back(s in "\\PC{0,120}|[ \n\t:#-]{0,12}|[0-9._eExobYNn~+-]{0,8}|(word ){20,30}") {
            let value = json!({"k": s, "l": [s, {"m": s}], s.clone(): 1});
            let text = to_string(&value).unwrap();
            proptest::prop_assert_eq!(to_json_documents(&text).unwrap(), [value], "{}", text);
        }
    }

    #[test]
    fn bounds() {
        assert!(to_json_documents(&"[".repeat(1000)).is_err());
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n";
        assert!(to_json_documents(bomb).is_err());
        assert!(to_json_documents("{a").is_err());
    }
}
