//! What the static CPU manager policy can be told besides: the kubelet's options.

use std::collections::{BTreeMap, BTreeSet};

use crate::tuning::options::{Gates, Level, boolean, pairs};

/// One option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Choice {
    /// Whole cores, or the pod is refused.
    FullCores,
    /// As many of each memory node, where one alone does not do.
    AcrossNodes,
    /// Near is what is of the same socket.
    BySocket,
    /// One processor of a core before the next of the same.
    AcrossCores,
    /// Nobody runs on what is reserved.
    Strict,
    /// Of few last-level caches.
    ByCache,
}

use Choice::{AcrossCores, AcrossNodes, ByCache, BySocket, FullCores, Strict};

const ALL: [(&str, Level, Choice); 6] = [
    ("full-pcpus-only", Level::Stable, FullCores),
    ("distribute-cpus-across-numa", Level::Beta, AcrossNodes),
    ("align-by-socket", Level::Alpha, BySocket),
    ("distribute-cpus-across-cores", Level::Alpha, AcrossCores),
    ("strict-cpu-reservation", Level::Stable, Strict),
    ("prefer-align-cpus-by-uncorecache", Level::Stable, ByCache),
];

/// Those that contradict each other.
const APART: [(Choice, Choice); 4] =
    [(FullCores, AcrossCores), (AcrossNodes, AcrossCores), (ByCache, AcrossCores), (ByCache, AcrossNodes)];

/// What an operator chose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    given: BTreeMap<String, String>,
    on: BTreeSet<Choice>,
}

fn word(choice: Choice) -> &'static str {
    ALL.iter().find(|(_, _, one)| *one == choice).map_or("", |(word, ..)| word)
}

impl Options {
    /// Reads `full-pcpus-only=true,...`.
    ///
    /// # Errors
    /// In the kubelet's words: which option is unknown or hidden, has no value that can be read, or contradicts another.
    pub fn parse(text: &str, gates: &Gates) -> Result<Self, String> {
        let given = pairs(text)?;
        let mut on = BTreeSet::new();
        for (name, value) in &given {
            let known = ALL.iter().find(|(word, ..)| word == name);
            gates.allow("CPU", name, known.map(|(_, level, _)| *level))?;
            let value = boolean(value).map_err(|why| format!("bad value for option {name:?}: {why}"))?;
            on.extend(known.filter(|_| value).map(|(.., choice)| *choice));
        }
        match APART.iter().find(|(one, other)| on.contains(one) && on.contains(other)) {
            Some((one, other)) => Err(format!(
                "static policy options {} and {} can not be used at the same time",
                word(*one),
                word(*other)
            )),
            None => Ok(Self { given, on }),
        }
    }

    /// These.
    pub fn of(choices: impl IntoIterator<Item = Choice>) -> Self {
        let on: BTreeSet<Choice> = choices.into_iter().collect();
        Self { given: on.iter().map(|one| (word(*one).to_owned(), "true".to_owned())).collect(), on }
    }

    /// Whether one was chosen.
    pub fn has(&self, choice: Choice) -> bool {
        self.on.contains(&choice)
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
    fn what_is_unknown_hidden_or_contradictory_is_refused() {
        let gates = Gates::default();
        let parsed = Options::parse("full-pcpus-only=true,strict-cpu-reservation=false", &gates);
        let parsed = parsed.expect("options");
        assert!(parsed.has(FullCores) && !parsed.has(Strict));
        assert_eq!(parsed.words()["strict-cpu-reservation"], "false");
        let words = |text: &str| Options::parse(text, &gates).expect_err(text);
        assert_eq!(words("fast=true"), "unknown CPU Manager Policy option: \"fast\"");
        assert_eq!(
            words("align-by-socket=true"),
            "CPU Manager Policy Alpha-level Options not enabled, but option \"align-by-socket\" provided"
        );
        assert_eq!(
            words("full-pcpus-only=maybe"),
            "bad value for option \"full-pcpus-only\": strconv.ParseBool: parsing \"maybe\": invalid syntax"
        );
        assert_eq!(
            words("prefer-align-cpus-by-uncorecache=true,distribute-cpus-across-numa=true"),
            "static policy options prefer-align-cpus-by-uncorecache and distribute-cpus-across-numa can not be used at \
             the same time"
        );
        let alpha = Gates::parse("CPUManagerPolicyAlphaOptions=true").expect("a gate");
        assert!(Options::parse("align-by-socket=true", &alpha).is_ok_and(|options| options.has(BySocket)));
    }
}
