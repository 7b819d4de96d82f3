//! Options of the managers' policies: how settled each is, and which of them may be used. Rules and words are the kubelet's.

use std::collections::BTreeMap;

/// How settled an option is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Hidden unless its group is asked for.
    Alpha,
    /// There unless its group is turned off.
    Beta,
    /// Always there.
    Stable,
}

/// Groups of options that can be turned on and off, and whether they are on.
const GATES: [(&str, bool); 4] = [
    ("CPUManagerPolicyAlphaOptions", false),
    ("CPUManagerPolicyBetaOptions", true),
    ("TopologyManagerPolicyAlphaOptions", false),
    ("TopologyManagerPolicyBetaOptions", true),
];

/// `--feature-gates`: of all of Kubernetes' gates those that say which options may be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gates(BTreeMap<String, bool>);

impl Gates {
    /// Reads `CPUManagerPolicyAlphaOptions=true,...`.
    ///
    /// # Errors
    /// What is wrong with the text, or which gate is none of this node's.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut all = BTreeMap::new();
        for (name, value) in pairs(text)? {
            if !GATES.iter().any(|(known, _)| *known == name) {
                return Err(format!("unrecognized feature gate: {name}"));
            }
            let on = boolean(&value).map_err(|why| format!("invalid value of {name}={value}, err: {why}"))?;
            all.insert(name, on);
        }
        Ok(Self(all))
    }

    /// Those that were set.
    pub fn words(&self) -> &BTreeMap<String, bool> {
        &self.0
    }

    fn is_on(&self, name: &str) -> bool {
        let known = || GATES.iter().any(|(gate, on)| *gate == name && *on);
        self.0.get(name).copied().unwrap_or_else(known)
    }

    /// Whether an option of a manager (`CPU`, `Topology`) may be used; `level`: `None` where it has no such option.
    ///
    /// # Errors
    /// That it may not.
    pub fn allow(&self, manager: &str, option: &str, level: Option<Level>) -> Result<(), String> {
        let group = match level {
            None => return Err(format!("unknown {manager} Manager Policy option: {option:?}")),
            Some(Level::Stable) => return Ok(()),
            Some(Level::Alpha) => "Alpha",
            Some(Level::Beta) => "Beta",
        };
        match self.is_on(&format!("{manager}ManagerPolicy{group}Options")) {
            true => Ok(()),
            false => Err(format!(
                "{manager} Manager Policy {group}-level Options not enabled, but option {option:?} provided"
            )),
        }
    }
}

/// Reads `a=1,b=2`; the last one of a name counts.
///
/// # Errors
/// What is no such pair.
pub fn pairs(text: &str) -> Result<BTreeMap<String, String>, String> {
    let pair = |text: &str| {
        let (name, value) =
            text.split_once('=').ok_or_else(|| format!("malformed pair, expect string=string: {text:?}"))?;
        Ok((name.trim().to_owned(), value.trim().to_owned()))
    };
    text.split(',').filter(|part| !part.trim().is_empty()).map(pair).collect()
}

/// Go's words for yes and no.
///
/// # Errors
/// Go's words for anything else.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(format!("strconv.ParseBool: parsing {text:?}: invalid syntax")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_options_are_turned_on_and_off() {
        let gates = Gates::parse("").expect("nothing");
        assert_eq!(gates.allow("CPU", "a", Some(Level::Stable)), Ok(()));
        assert_eq!(gates.allow("Topology", "a", Some(Level::Beta)), Ok(()));
        let words = "CPU Manager Policy Alpha-level Options not enabled, but option \"a\" provided";
        assert_eq!(gates.allow("CPU", "a", Some(Level::Alpha)), Err(words.into()));
        assert_eq!(gates.allow("CPU", "a", None), Err("unknown CPU Manager Policy option: \"a\"".into()));
        let gates =
            Gates::parse("CPUManagerPolicyAlphaOptions=true,CPUManagerPolicyBetaOptions=0").expect("two");
        assert_eq!(gates.allow("CPU", "a", Some(Level::Alpha)), Ok(()));
        assert!(gates.allow("CPU", "a", Some(Level::Beta)).is_err());
        assert!(gates.allow("Topology", "a", Some(Level::Alpha)).is_err());
        assert_eq!(Gates::parse("Nothing=true"), Err("unrecognized feature gate: Nothing".into()));
        assert!(Gates::parse("CPUManagerPolicyBetaOptions=maybe").is_err() && Gates::parse("x").is_err());
    }
}
