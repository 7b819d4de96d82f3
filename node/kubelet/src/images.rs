//! Images: pull policies, and back-off between attempts.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::cri::Cri;

const FIRST_DELAY: Duration = Duration::from_secs(10);
const LONGEST_DELAY: Duration = Duration::from_secs(300);

/// The images of a node.
pub struct Images {
    cri: Cri,
    failed: Mutex<HashMap<String, Failure>>,
}

struct Failure {
    until: Instant,
    delay: Duration,
    message: String,
}

/// What came of asking for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was here.
    Present,
    /// It was fetched.
    Pulled { took: Duration },
    /// It could not be had: the waiting reason and message of the container.
    Waiting { reason: &'static str, message: String, retry_in: Duration },
}

/// The default of `imagePullPolicy`: Always for `:latest` or no tag, else IfNotPresent.
pub fn default_policy(image: &str) -> &'static str {
    let last = image.rsplit('/').next().unwrap_or_default();
    let tagged = image.contains('@') || last.split_once(':').is_some_and(|(_, tag)| tag != "latest");
    if tagged { "IfNotPresent" } else { "Always" }
}

impl Images {
    pub fn new(cri: Cri) -> Self {
        Self { cri, failed: Mutex::default() }
    }

    /// Makes sure that an image is here. `pulling` is called before a fetch.
    pub async fn ensure(&self, pod: &str, image: &str, policy: &str, pulling: impl FnOnce()) -> Outcome {
        let present = match self.cri.image(image).await {
            Ok(present) => present.is_some(),
            Err(status) => {
                let message = format!("ask the runtime for {image:?}: {}", status.message());
                return Outcome::Waiting {
                    reason: "ImageInspectError",
                    message,
                    retry_in: Duration::from_secs(2),
                };
            }
        };
        match policy {
            "Never" if !present => {
                let message = format!("Container image {image:?} is not present with pull policy of Never");
                return Outcome::Waiting { reason: "ErrImageNeverPull", message, retry_in: FIRST_DELAY };
            }
            "Never" | "IfNotPresent" if present => return Outcome::Present,
            _ => {}
        }
        let key = format!("{pod} {image}");
        if let Some(waiting) = self.backing_off(&key, image) {
            return waiting;
        }
        pulling();
        let started = Instant::now();
        match self.cri.pull(image).await {
            Ok(_) => {
                self.failed.lock().remove(&key);
                Outcome::Pulled { took: started.elapsed() }
            }
            Err(status) => self.failed(key, status.message().to_owned()),
        }
    }

    fn backing_off(&self, key: &str, image: &str) -> Option<Outcome> {
        let failed = self.failed.lock();
        let failure = failed.get(key)?;
        let retry_in = failure.until.checked_duration_since(Instant::now())?;
        let message = format!("Back-off pulling image {image:?}: ErrImagePull: {}", failure.message);
        Some(Outcome::Waiting { reason: "ImagePullBackOff", message, retry_in })
    }

    fn failed(&self, key: String, message: String) -> Outcome {
        let mut failed = self.failed.lock();
        // Entries of pods that are gone would stay for ever.
        let now = Instant::now();
        failed.retain(|_, failure| failure.until + LONGEST_DELAY > now);
        let delay = failed.get(&key).map_or(FIRST_DELAY, |before| (before.delay * 2).min(LONGEST_DELAY));
        failed.insert(key, Failure { until: now + delay, delay, message: message.clone() });
        // Soon, so that the status turns from the failure to the back-off, as users know it.
        Outcome::Waiting { reason: "ErrImagePull", message, retry_in: Duration::from_secs(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::default_policy;

    #[test]
    fn policies() {
        for (image, policy) in [
            ("hello", "Always"),
            ("hello:latest", "Always"),
            ("hello:v1", "IfNotPresent"),
            ("127.0.0.1:5000/hello", "Always"),
            ("hello@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(default_policy(image), policy, "{image}");
        }
    }
}
