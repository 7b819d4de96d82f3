//! Crash back-off: 10 s doubling to 5 min, forgotten after a container ran for 10 min.

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::state::Container;

const FIRST_SECONDS: i64 = 10;
const MAX_SECONDS: i64 = 300;

/// The back-off of one container of one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// How long the next restart waits, counted from the end of the container. Seconds.
    pub seconds: i64,
}

impl Backoff {
    /// What holds for a container that ended, given what held before. `None`: restart at once.
    ///
    /// Without memory (the agent is new) the attempt stands in for it, so that a restart of the agent does not
    /// make a crashing container run hot.
    pub fn after(before: Option<Backoff>, ended: &Container) -> Option<Backoff> {
        let ran_ns = ended.finished_at.saturating_sub(ended.started_at);
        if ended.started_at > 0 && ran_ns >= 2 * MAX_SECONDS * 1_000_000_000 {
            return None;
        }
        match before {
            Some(backoff) => Some(backoff),
            None if ended.attempt == 0 => None,
            None => {
                let doublings = ended.attempt.saturating_sub(1).min(5);
                Some(Backoff { seconds: (FIRST_SECONDS << doublings).min(MAX_SECONDS) })
            }
        }
    }

    /// The back-off that the next crash meets.
    pub fn next(before: Option<Backoff>) -> Backoff {
        match before {
            None => Backoff { seconds: FIRST_SECONDS },
            Some(backoff) => Backoff { seconds: (backoff.seconds * 2).min(MAX_SECONDS) },
        }
    }

    /// When a container that ended may start again.
    pub fn until(self, ended: &Container) -> Timestamp {
        let end = Timestamp::from_nanosecond(i128::from(ended.finished_at)).unwrap_or(Timestamp::UNIX_EPOCH);
        end.saturating_add(SignedDuration::from_secs(self.seconds)).unwrap_or(Timestamp::MAX)
    }

    /// As Kubernetes writes it: `10s`, `1m20s`, `5m0s`.
    pub fn words(self) -> String {
        let (minutes, seconds) = (self.seconds / 60, self.seconds % 60);
        if minutes > 0 { format!("{minutes}m{seconds}s") } else { format!("{seconds}s") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_five_minutes() {
        let mut backoff = None;
        let mut seen = Vec::new();
        for _ in 0..7 {
            let next = Backoff::next(backoff);
            seen.push(next.words());
            backoff = Some(next);
        }
        assert_eq!(seen, ["10s", "20s", "40s", "1m20s", "2m40s", "5m0s", "5m0s"]);
    }

    #[test]
    fn a_long_run_forgets() {
        let long =
            Container { attempt: 4, started_at: 1, finished_at: 601_000_000_000, ..Default::default() };
        assert_eq!(Backoff::after(Some(Backoff { seconds: 160 }), &long), None);
    }

    #[test]
    fn a_new_agent_goes_by_the_attempt() {
        let crashed = |attempt| Container { attempt, ..Default::default() };
        assert_eq!(Backoff::after(None, &crashed(0)), None);
        assert_eq!(Backoff::after(None, &crashed(2)), Some(Backoff { seconds: 20 }));
        assert_eq!(Backoff::after(None, &crashed(4_000_000_000)), Some(Backoff { seconds: 300 }));
    }
}
