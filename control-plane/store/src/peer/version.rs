//! Which versions members speak: told with every call and every answer, so that members are upgraded one after the other.

use std::fmt;

use http::{HeaderMap, HeaderValue};

use crate::disk::{NEWEST, OLDEST};

/// Names the oldest and the newest version that the sender speaks, as `1-2`. Members of version 1 do not send it.
pub(crate) const HEADER: &str = "coracle-versions";

/// The versions that a member speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The oldest.
    pub oldest: u64,
    /// The newest.
    pub newest: u64,
}

impl Default for Versions {
    /// Those of this build.
    fn default() -> Self {
        Self { oldest: OLDEST, newest: NEWEST }
    }
}

impl Versions {
    /// What someone says of itself.
    pub(crate) fn read(headers: &HeaderMap) -> Self {
        let said = headers.get(HEADER).and_then(|value| value.to_str().ok());
        let said = said.and_then(|text| text.split_once('-'));
        let said = said.and_then(|(oldest, newest)| {
            Some(Self { oldest: oldest.parse().ok()?, newest: newest.parse().ok()? })
        });
        said.unwrap_or(Self { oldest: 1, newest: 1 })
    }

    /// What this member says of itself; nothing where it is of version 1.
    pub(crate) fn header(self) -> Option<HeaderValue> {
        if self.newest == 1 {
            return None;
        }
        HeaderValue::from_str(&format!("{}-{}", self.oldest, self.newest)).ok()
    }

    /// Says why two members cannot understand each other.
    pub(crate) fn check(self, other: Self) -> Result<(), String> {
        match self.oldest <= other.newest && other.oldest <= self.newest {
            true => Ok(()),
            false => Err(format!(
                "this member speaks {self}, the other one {other}: upgrade one version at a time"
            )),
        }
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.oldest == self.newest {
            true => write!(f, "version {}", self.newest),
            false => write!(f, "versions {} to {}", self.oldest, self.newest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_understand_each_other_and_others_do_not() {
        let of = |oldest, newest| Versions { oldest, newest };
        assert_eq!(Versions::read(&HeaderMap::new()), of(1, 1), "who says nothing is of version 1");
        for versions in [of(1, 2), of(3, 3)] {
            let headers =
                HeaderMap::from_iter(versions.header().map(|value| (HEADER.parse().unwrap(), value)));
            assert_eq!(Versions::read(&headers), versions);
        }
        assert!(of(1, 2).check(of(1, 1)).is_ok() && of(1, 2).check(of(2, 3)).is_ok());
        let refused = of(1, 2).check(of(3, 3)).unwrap_err();
        assert!(refused.contains("versions 1 to 2") && refused.contains("version 3"), "{refused}");
        assert!(of(3, 3).check(of(1, 2)).is_err());
    }
}
