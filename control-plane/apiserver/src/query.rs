//! Query parameters, and the options that verbs read from them.

use crate::request::FieldValidation;

/// Decoded query parameters, in order; a name may occur more than once.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

/// Most parameters that are read; what follows is ignored.
const MAX_PARAMETERS: usize = 256;

impl Query {
    /// Takes a raw query apart. What does not decode is left out.
    pub fn parse(raw: Option<&str>) -> Self {
        let pairs = raw.unwrap_or("").split('&').filter(|p| !p.is_empty()).take(MAX_PARAMETERS);
        let decoded = pairs.filter_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((percent_decode(name, true)?, percent_decode(value, true)?))
        });
        Self(decoded.collect())
    }

    /// The first value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The first value of a parameter, if it is not empty.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|v| !v.is_empty())
    }

    /// Every value of a parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// A boolean as Kubernetes reads it: absent, `false` and `0` are false, everything else is true.
    pub fn flag(&self, name: &str) -> bool {
        self.tristate(name).unwrap_or(false)
    }

    /// A boolean that may be absent.
    pub fn tristate(&self, name: &str) -> Option<bool> {
        self.get(name).map(|v| !(v.eq_ignore_ascii_case("false") || v == "0"))
    }
}

/// Percent-decodes; `plus` turns `+` into a space. `None` if the result is not UTF-8.
pub fn percent_decode(text: &str, plus: bool) -> Option<String> {
    let bytes = text.as_bytes();
    if !bytes.iter().any(|b| *b == b'%' || (plus && *b == b'+')) {
        return Some(text.to_owned());
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'%' => {
                let hex = bytes.get(at + 1..at + 3).and_then(|h| std::str::from_utf8(h).ok());
                out.push(u8::from_str_radix(hex?, 16).ok()?);
                at += 2;
            }
            b'+' if plus => out.push(b' '),
            other => out.push(*other),
        }
        at += 1;
    }
    String::from_utf8(out).ok()
}

/// What every write reads from its query.
#[derive(Clone, Debug, Default)]
pub(crate) struct WriteOptions {
    pub dry_run: Vec<String>,
    pub field_validation: Option<String>,
    pub field_manager: Option<String>,
    pub force: Option<bool>,
}

impl WriteOptions {
    pub fn of(query: &Query) -> Self {
        Self {
            dry_run: query.all("dryRun").filter(|v| !v.is_empty()).map(str::to_owned).collect(),
            field_validation: query.text("fieldValidation").map(str::to_owned),
            field_manager: query.text("fieldManager").map(str::to_owned),
            force: query.tristate("force"),
        }
    }

    pub fn validation(&self) -> FieldValidation {
        match self.field_validation.as_deref() {
            Some("Strict") => FieldValidation::Strict,
            Some("Ignore") => FieldValidation::Ignore,
            _ => FieldValidation::Warn,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters() {
        let q = Query::parse(Some(
            "watch=true&labelSelector=a%20in%20%28b%29&x=1+2&flag&empty=&bad=%zz&no=false&l=a&l=b",
        ));
        assert!(q.flag("watch") && q.flag("flag") && !q.flag("no") && !q.flag("absent"));
        assert_eq!(q.get("labelSelector"), Some("a in (b)"));
        assert_eq!(q.get("x"), Some("1 2"));
        assert_eq!(q.text("empty"), None);
        assert_eq!(q.get("bad"), None);
        assert_eq!(q.all("l").collect::<Vec<_>>(), ["a", "b"]);
    }
}
