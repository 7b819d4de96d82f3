//! Which revision is how old: marks taken now and then, so that history can be forgotten by its age.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Marks kept of one age.
const MARKS: u32 = 30;

/// Marks of revisions.
pub(super) struct Age {
    most: Option<Duration>,
    /// What the revision was when, oldest first.
    marks: VecDeque<(Instant, u64)>,
}

impl Age {
    pub fn new(most: Option<Duration>) -> Self {
        Self { most, marks: VecDeque::new() }
    }

    /// Notes the revision of now; returns the newest one that is too old to be kept for anything but the current state.
    pub fn old(&mut self, revision: u64) -> Option<u64> {
        let most = self.most?;
        let now = Instant::now();
        if self.marks.back().is_none_or(|(at, _)| now.duration_since(*at) >= most / MARKS) {
            self.marks.push_back((now, revision));
        }
        let mut old = None;
        while let Some((_, revision)) = self.marks.pop_front_if(|(at, _)| now.duration_since(*at) >= most) {
            old = Some(revision);
        }
        if let Some(revision) = old {
            // A member that leads no more, or fails, tries again with the next mark.
            self.marks.push_front((now.checked_sub(most).unwrap_or(now), revision));
            if self.marks.len() > 1 {
                self.marks.pop_front();
            }
        }
        old
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_older_than_asked_is_old() {
        let mut age = Age::new(Some(Duration::from_secs(60)));
        let mut revision = 0;
        let mut olds = Vec::new();
        for _ in 0..240 {
            revision += 1;
            olds.extend(age.old(revision));
            tokio::time::advance(Duration::from_millis(500)).await;
        }
        let last = olds.last().copied().unwrap();
        assert!((110..=125).contains(&last), "after 120 s, a revision each 0.5 s: {last}");
        assert!(olds.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(Age::new(None).old(7), None);
    }
}
