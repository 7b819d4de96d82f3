//! What the topology manager can be told besides its policy: the kubelet's options.

use std::collections::BTreeMap;

use super::hints::MOST_NODES;
use crate::tuning::options::{Gates, Level, boolean, pairs};

const CLOSEST: &str = "prefer-closest-numa-nodes";
const MOST: &str = "max-allowable-numa-nodes";

/// What an operator chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    given: BTreeMap<String, String>,
    /// Of as many memory nodes those that are near each other.
    pub closest: bool,
    /// The most memory nodes of a machine that policies are for; at least [`MOST_NODES`].
    pub most: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { given: BTreeMap::new(), closest: false, most: MOST_NODES }
    }
}

impl Options {
    /// Reads `prefer-closest-numa-nodes=true,max-allowable-numa-nodes=16`.
    ///
    /// # Errors
    /// In the kubelet's words: which option is unknown, or has no value that can be read.
    pub fn parse(text: &str, gates: &Gates) -> Result<Self, String> {
        let mut all = Self { given: pairs(text)?, ..Self::default() };
        for (name, value) in &all.given {
            let known = [CLOSEST, MOST].contains(&name.as_str()).then_some(Level::Stable);
            gates.allow("Topology", name, known)?;
            if name == CLOSEST {
                all.closest =
                    boolean(value).map_err(|why| format!("bad value for option {name:?}: {why}"))?;
            } else {
                all.most = value.parse().map_err(|why| {
                    format!("unable to convert policy option to integer {name:?}: {value:?}: {why}")
                })?;
                if all.most < MOST_NODES {
                    return Err(format!(
                        "the minimum value of {name:?} should not be less than {MOST_NODES}"
                    ));
                }
            }
        }
        Ok(all)
    }

    /// As they were given.
    pub fn words(&self) -> &BTreeMap<String, String> {
        &self.given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_unknown_ones_refused() {
        let gates = Gates::default();
        let parsed = Options::parse("prefer-closest-numa-nodes=true,max-allowable-numa-nodes=16", &gates);
        assert!(parsed.is_ok_and(|options| options.closest && options.most == 16));
        let words = |text: &str| Options::parse(text, &gates).expect_err(text);
        assert_eq!(words("near=true"), "unknown Topology Manager Policy option: \"near\"");
        assert_eq!(
            words("max-allowable-numa-nodes=7"),
            "the minimum value of \"max-allowable-numa-nodes\" should not be less than 8"
        );
        assert!(
            words("max-allowable-numa-nodes=many").starts_with("unable to convert policy option to integer")
        );
        assert!(words("prefer-closest-numa-nodes=").starts_with("bad value for option"));
    }
}
