//! The simple JSONPath of printer columns, scale paths and selectable fields: `.a.b`, `['a']`, `[0]`, `[*]`, `[?(@.a=="b")]`.

use serde_json::Value;

/// The most steps of a path, and the most values that it leads to.
const MAX_STEPS: usize = 32;
const MAX_FOUND: usize = 64;

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    /// Items whose value at a path equals (or, `false`, does not equal) a literal.
    Filter(Vec<String>, bool, Value),
}

impl Step {
    fn field(&self) -> Option<&str> {
        match self {
            Step::Field(name) => Some(name),
            _ => None,
        }
    }
}

/// A path that was read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct JsonPath(Vec<Step>);

impl JsonPath {
    /// Reads a path; the error says what is not understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut steps = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            if steps.len() >= MAX_STEPS {
                return Err(format!("more than {MAX_STEPS} steps"));
            }
            if let Some(tail) = rest.strip_prefix('.') {
                let (name, tail) = field(tail)?;
                steps.push(if name == "*" { Step::All } else { Step::Field(name) });
                rest = tail;
            } else if let Some(tail) = rest.strip_prefix('[') {
                let (inner, tail) = bracket(tail)?;
                steps.push(inside(inner)?);
                rest = tail;
            } else {
                return Err(format!("unexpected {rest:?}: a path starts with a dot"));
            }
        }
        Ok(Self(steps))
    }

    /// What the path leads to.
    pub fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![value];
        for step in &self.0 {
            let mut next = Vec::new();
            for value in found {
                apply(step, value, &mut next);
                next.truncate(MAX_FOUND);
            }
            found = next;
        }
        found
    }

    /// The fields of a path that has nothing but fields.
    pub fn fields(&self) -> Option<Vec<&str>> {
        self.0.iter().map(Step::field).collect()
    }

    /// Such a path as a JSON pointer.
    pub fn pointer(&self) -> Option<String> {
        let escaped = |name: &str| format!("/{}", name.replace('~', "~0").replace('/', "~1"));
        Some(self.fields()?.into_iter().map(escaped).collect())
    }
}

fn apply<'a>(step: &Step, value: &'a Value, out: &mut Vec<&'a Value>) {
    match (step, value) {
        (Step::Field(name), Value::Object(map)) => out.extend(map.get(name)),
        (Step::Index(i), Value::Array(list)) => {
            let at = usize::try_from(*i).ok().or_else(|| list.len().checked_sub(usize::try_from(-i).ok()?));
            out.extend(at.and_then(|at| list.get(at)));
        }
        (Step::All, Value::Array(list)) => out.extend(list),
        (Step::All, Value::Object(map)) => out.extend(map.values()),
        (Step::Filter(path, equal, wanted), Value::Array(list)) => {
            let at = |item: &'a Value| path.iter().try_fold(item, |v, name| v.get(name));
            out.extend(list.iter().filter(|item| (at(item) == Some(wanted)) == *equal));
        }
        _ => {}
    }
}

/// A name up to the next `.` or `[`; a backslash takes what follows as it is.
fn field(text: &str) -> Result<(String, &str), String> {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '.' | '[' => return Ok((name, text.get(i..).unwrap_or_default())),
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            c => name.push(c),
        }
    }
    if name.is_empty() { Err("a dot without a field name behind it".into()) } else { Ok((name, "")) }
}

/// What stands in brackets, up to the bracket that closes them outside of quotes and inner brackets.
fn bracket(text: &str) -> Result<(&str, &str), String> {
    let (mut quote, mut depth) = (None, 0);
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[' | '(') => depth += 1,
            (None, ')') => depth -= 1,
            (None, ']') if depth > 0 => depth -= 1,
            (None, ']') => {
                return Ok((text.get(..i).unwrap_or_default(), text.get(i + 1..).unwrap_or_default()));
            }
            _ => {}
        }
    }
    Err("a bracket is not closed".into())
}

fn inside(text: &str) -> Result<Step, String> {
    let text = text.trim();
    if text == "*" {
        return Ok(Step::All);
    }
    if let Some(name) = quoted(text) {
        return Ok(Step::Field(name));
    }
    if let Ok(index) = text.parse() {
        return Ok(Step::Index(index));
    }
    let filter = text.strip_prefix("?(").and_then(|t| t.strip_suffix(')'));
    let Some(filter) = filter else { return Err(format!("[{text}] is not understood")) };
    let (left, equal, right) = match (filter.split_once("=="), filter.split_once("!=")) {
        (Some((l, r)), _) => (l.trim(), true, r.trim()),
        (None, Some((l, r))) => (l.trim(), false, r.trim()),
        _ => return Err(format!("the filter {filter:?} compares nothing with == or !=")),
    };
    let path = left.strip_prefix('@').ok_or_else(|| format!("{left:?} does not start with @"))?;
    let path = JsonPath::parse(path)?;
    let path = path.fields().ok_or_else(|| format!("{left:?} is more than fields"))?;
    let wanted = match quoted(right) {
        Some(text) => text.into(),
        None => serde_json::from_str(right).map_err(|_| format!("{right:?} is no literal"))?,
    };
    Ok(Step::Filter(path.into_iter().map(str::to_owned).collect(), equal, wanted))
}

fn quoted(text: &str) -> Option<String> {
    let inner = |q: char| text.strip_prefix(q).and_then(|t| t.strip_suffix(q));
    inner('\'').or_else(|| inner('"')).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_as_columns_have_them() {
        let object = json!({
            "spec": {"n": 3, "a.b": "dot", "list": [{"x": 1}, {"x": 2}]},
            "status": {"conditions": [{"type": "A", "status": "no"}, {"type": "Ready", "status": "yes"}]},
        });
        let table = [
            (".spec.n", vec![json!(3)]),
            (".spec.a\\.b", vec![json!("dot")]),
            (".spec['a.b']", vec![json!("dot")]),
            (".spec.list[1].x", vec![json!(2)]),
            (".spec.list[-1].x", vec![json!(2)]),
            (".spec.list[*].x", vec![json!(1), json!(2)]),
            (".status.conditions[?(@.type==\"Ready\")].status", vec![json!("yes")]),
            (".status.conditions[?(@.type=='Ready')].status", vec![json!("yes")]),
            (".status.nothing.at.all", vec![]),
        ];
        for (path, expected) in table {
            let found: Vec<Value> =
                JsonPath::parse(path).unwrap().find(&object).into_iter().cloned().collect();
            assert_eq!(found, expected, "{path}");
        }
        for path in ["spec", ".", ".a[", ".a[x]", ".a[?(x)]"] {
            assert!(JsonPath::parse(path).is_err(), "{path}");
        }
        assert_eq!(JsonPath::parse(".spec.replicas").unwrap().pointer().unwrap(), "/spec/replicas");
    }
}
