//! Rules that several kinds share, in Kubernetes' words: numbers, ports, names, addresses, percentages, selectors.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation;
use serde_json::Value;

use crate::value::{at, items, present, text};

/// The words for a number below 0.
pub const NEGATIVE: &str = "must be greater than or equal to 0";
/// The words for a field that may never change.
pub const IMMUTABLE: &str = "field is immutable";
const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";
const IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";

/// An error for each of the words about a value.
pub fn words(errors: &mut Vec<Error>, path: &Path, value: &str, words: Vec<String>) {
    errors.extend(words.into_iter().map(|w| Error::invalid(path, value, w)));
}

/// A number that may not be negative; absent is fine.
pub fn non_negative(errors: &mut Vec<Error>, path: &Path, value: &Value) {
    if let Some(n) = value.as_i64()
        && n < 0
    {
        errors.push(Error::invalid(path, n, NEGATIVE));
    }
}

/// A port number, 1 to 65535.
pub fn port(errors: &mut Vec<Error>, path: &Path, value: i64) {
    if !(1..=65535).contains(&value) {
        errors.push(Error::invalid(path, value, PORT_RANGE));
    }
}

/// A port number or the name of a port.
pub fn port_or_name(errors: &mut Vec<Error>, path: &Path, value: &Value) {
    match value {
        Value::String(name) => words(errors, path, name, port_name(name)),
        other => port(errors, path, other.as_i64().unwrap_or_default()),
    }
}

/// What is wrong with the name of a port (IANA_SVC_NAME).
pub fn port_name(name: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if name.len() > 15 {
        wrong.push("must be no more than 15 characters".to_string());
    }
    if !name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-') || name.is_empty() {
        wrong.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !name.bytes().any(|c| c.is_ascii_lowercase()) {
        wrong.push("must contain at least one letter (a-z)".into());
    }
    if name.contains("--") {
        wrong.push("must not contain consecutive hyphens".into());
    }
    if name.starts_with('-') || name.ends_with('-') {
        wrong.push("must not begin or end with a hyphen".into());
    }
    wrong
}

/// A value that must be one of a list. `required` says whether an empty one is an error.
pub fn one_of(errors: &mut Vec<Error>, path: &Path, value: &str, supported: &[&str], required: bool) {
    if value.is_empty() {
        if required {
            errors.push(Error::required(path, ""));
        }
    } else if !supported.contains(&value) {
        errors.push(Error::not_supported(path, value, supported));
    }
}

/// An IP address.
pub fn ip(errors: &mut Vec<Error>, path: &Path, value: &str) -> Option<IpAddr> {
    let parsed = value.parse().ok();
    if parsed.is_none() {
        errors.push(Error::invalid(path, value, IP));
    }
    parsed
}

/// An address range.
pub fn cidr(errors: &mut Vec<Error>, path: &Path, value: &str) {
    if Cidr::parse(value).is_none() {
        errors.push(Error::invalid(path, value, CIDR));
    }
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// First address.
    pub base: IpAddr,
    /// Bits of the network part.
    pub bits: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text).ok_or_else(|| format!("{text:?} is not a range of addresses such as 10.9.8.0/24"))
    }
}

impl Cidr {
    /// Reads `10.0.0.0/8`; `None` for anything else.
    pub fn parse(value: &str) -> Option<Self> {
        let (base, bits) = value.split_once('/')?;
        let base: IpAddr = base.parse().ok()?;
        let bits: u8 = bits.parse().ok()?;
        let max = if base.is_ipv4() { 32 } else { 128 };
        (bits <= max).then_some(Cidr { base, bits })
    }

    /// Whether an address lies in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.base, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                u32::from(a) & mask == u32::from(b) & mask
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                u128::from(a) & mask == u128::from(b) & mask
            }
            _ => false,
        }
    }
}

/// An address that endpoints may have: not unspecified, loopback, link-local or link-local multicast. `allowed` are ranges
/// that a cluster's own pods come from, which may be loopback.
pub fn non_special_ip(errors: &mut Vec<Error>, path: &Path, value: &str, allowed: &[Cidr]) {
    let Ok(address) = value.parse::<IpAddr>() else {
        errors.push(Error::invalid(path, value, IP));
        return;
    };
    if allowed.iter().any(|range| range.contains(address)) {
        return;
    }
    let mut wrong = |words: &str| errors.push(Error::invalid(path, value, words));
    if address.is_unspecified() {
        wrong("may not be unspecified (0.0.0.0 or ::)");
    }
    if address.is_loopback() {
        wrong("may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    let (unicast, multicast) = match address {
        IpAddr::V4(a) => (a.is_link_local(), a.octets().starts_with(&[224, 0, 0])),
        IpAddr::V6(a) => (a.segments()[0] & 0xffc0 == 0xfe80, a.segments()[0] & 0xff0f == 0xff02),
    };
    if unicast {
        wrong("may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if multicast {
        wrong("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

/// A number that may not be negative, or a percentage.
pub fn int_or_percent(errors: &mut Vec<Error>, path: &Path, value: &Value) {
    match value {
        Value::String(s) => {
            if percent(value).is_none() {
                errors.push(Error::invalid(path, s.as_str(), PERCENT));
            }
        }
        other => non_negative(errors, path, other),
    }
}

/// The number before a `%`.
pub fn percent(value: &Value) -> Option<i64> {
    let digits = value.as_str()?.strip_suffix('%')?;
    (!digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit())).then_some(())?;
    digits.parse().ok()
}

/// A percentage may not be above 100; numbers are fine.
pub fn at_most_100_percent(errors: &mut Vec<Error>, path: &Path, value: &Value) {
    if percent(value).is_some_and(|p| p > 100) {
        errors.push(Error::invalid(path, value.clone(), "must not be greater than 100%"));
    }
}

/// A field that may not change.
pub fn immutable(errors: &mut Vec<Error>, path: &Path, new: &Value, old: &Value) {
    if !crate::value::same(new, old) {
        errors.push(Error::invalid(path, new.clone(), IMMUTABLE));
    }
}

/// Errors of a label selector object.
pub fn label_selector(errors: &mut Vec<Error>, path: &Path, selector: &Value) {
    errors.extend(validation::labels(selector.get("matchLabels"), &path.child("matchLabels")));
    for (i, requirement) in items(selector, "/matchExpressions").iter().enumerate() {
        let path = path.child("matchExpressions").index(i);
        let operator = text(requirement, "/operator");
        let values = items(requirement, "/values");
        match operator {
            "In" | "NotIn" if values.is_empty() => errors.push(Error::required(
                &path.child("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "In" | "NotIn" => {}
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(Error::forbidden(
                &path.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "Exists" | "DoesNotExist" => {}
            other => {
                errors.push(Error::invalid(&path.child("operator"), other, "not a valid selector operator"))
            }
        }
        let key = text(requirement, "/key");
        words(errors, &path.child("key"), key, validation::label_key(key));
        for (j, value) in values.iter().enumerate() {
            let value = value.as_str().unwrap_or_default();
            words(errors, &path.child("values").index(j), value, validation::label_value(value));
        }
    }
}

/// Whether a label selector object is usable: known operators with fitting values.
pub fn selector_is_valid(selector: &Value) -> bool {
    let mut errors = Vec::new();
    label_selector(&mut errors, &Path::default(), selector);
    errors.is_empty()
}

/// Whether a label selector object selects nothing in particular.
pub fn selector_is_empty(selector: &Value) -> bool {
    at(selector, "/matchLabels").as_object().is_none_or(|m| m.is_empty())
        && items(selector, "/matchExpressions").is_empty()
}

/// Whether labels fulfil a label selector object. An invalid selector matches nothing.
pub fn selector_matches(selector: &Value, labels: &Value) -> bool {
    let label = |key: &str| labels.get(key).and_then(Value::as_str);
    let map = at(selector, "/matchLabels").as_object();
    if map.into_iter().flatten().any(|(k, v)| label(k) != v.as_str()) {
        return false;
    }
    items(selector, "/matchExpressions").iter().all(|requirement| {
        let value = label(text(requirement, "/key"));
        let listed =
            items(requirement, "/values").iter().any(|v| v.as_str().is_some() && v.as_str() == value);
        match text(requirement, "/operator") {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    })
}

/// A reference to a key of a ConfigMap or Secret.
pub fn key_reference(errors: &mut Vec<Error>, path: &Path, reference: &Value) {
    if text(reference, "/name").is_empty() && !present(reference, "/name") {
        errors.push(Error::required(&path.child("name"), ""));
    }
    match text(reference, "/key") {
        "" => errors.push(Error::required(&path.child("key"), "")),
        key => words(errors, &path.child("key"), key, validation::config_map_key(key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ranges() {
        let range = Cidr::parse("127.96.0.0/12").unwrap();
        assert!(range.contains("127.111.255.255".parse().unwrap()));
        assert!(!range.contains("127.112.0.0".parse().unwrap()));
        assert!(Cidr::parse("0.0.0.0/0").unwrap().contains("1.2.3.4".parse().unwrap()));
        for bad in ["1.2.3.4", "1.2.3.4/33", "x/8", "::/129", ""] {
            assert!(Cidr::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn selectors() {
        let labels = json!({"a": "b"});
        let table = [
            (json!({"matchLabels": {"a": "b"}}), true),
            (json!({"matchLabels": {"a": "c"}}), false),
            (json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["b", "c"]}]}), true),
            (json!({"matchExpressions": [{"key": "z", "operator": "NotIn", "values": ["b"]}]}), true),
            (json!({"matchExpressions": [{"key": "z", "operator": "Exists"}]}), false),
            (json!({"matchExpressions": [{"key": "z", "operator": "DoesNotExist"}]}), true),
            (json!({}), true),
        ];
        for (selector, expected) in table {
            assert_eq!(selector_matches(&selector, &labels), expected, "{selector}");
        }
    }

    #[test]
    fn port_names() {
        assert!(port_name("http-1").is_empty());
        assert_eq!(port_name("UPPER_").len(), 2);
        assert_eq!(port_name("a--b"), ["must not contain consecutive hyphens"]);
    }
}
