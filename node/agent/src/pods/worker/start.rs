//! Starting a container of the pod, and what is remembered when that fails.

use super::step::attend;
use super::{Wanted, Worker};
use crate::images;
use crate::pods::state::{Phase, Waiting, find_container};
use crate::pods::steps::container;

impl Worker {
    /// Starts a container; what keeps it from starting is remembered and shown.
    pub(super) async fn start(&mut self, name: &str, attempt: u32) -> anyhow::Result<()> {
        let Some(spec) = find_container(&self.pod, name) else { return Ok(()) };
        // What this turn changed (a sandbox) must be seen by the config.
        let (context, pod, state) = (self.context.clone(), self.pod.clone(), self.state.clone());
        let before = self.memory.waiting.get(name).cloned();
        if let Some(before) = &before
            && matches!(before.reason.as_str(), "ErrImagePull" | "ImagePullBackOff")
        {
            tracing::debug!(pod = %self.name(), container = name, "pulling again");
        }
        let seen = self.memory.images.remove(name);
        let step = Box::pin(container::start(&context, &pod, &state, &spec, attempt, seen));
        self.starting = Some((name.to_owned(), attempt));
        let (wake, wanted) = (self.wake.clone(), self.wanted.clone());
        let started = attend(step, self, &wake, wanted, Wanted::ends).await;
        self.starting = None;
        match started {
            None | Some(Ok(container::Outcome::Started)) => {
                self.memory.waiting.remove(name);
            }
            Some(Ok(container::Outcome::NeedsLinux)) => {
                self.memory.waiting.remove(name);
                self.memory.needs_linux = true;
            }
            Some(Err(failure)) if matches!(failure.reason, "RunContainerError" | "PostStartHookError") => {
                // The runtime keeps it as exited: the crash back-off takes over from here.
                self.memory.waiting.remove(name);
                tracing::warn!(pod = %self.name(), container = name, "{}", failure.message);
                self.look().await?;
                let exited = self.state.newest(name).is_some_and(|c| c.phase == Phase::Exited);
                if !exited {
                    let waiting = Self::waiting(
                        before.as_ref(),
                        failure.reason,
                        failure.message,
                        images::backoff_seconds,
                    );
                    self.memory.waiting.insert(name.to_owned(), waiting);
                }
            }
            Some(Err(failure)) => self.failed(name, before.as_ref(), failure).await?,
        }
        Ok(())
    }

    async fn failed(
        &mut self,
        name: &str,
        before: Option<&Waiting>,
        failure: container::Failure,
    ) -> anyhow::Result<()> {
        let seconds: fn(u32) -> i64 = match failure.reason {
            "ErrImagePull" | "CreateContainerError" => images::backoff_seconds,
            // What is missing may come at any time.
            _ => |n| (1_i64 << n.min(5)).min(20),
        };
        let waiting = Self::waiting(before, failure.reason, failure.message, seconds);
        let pull = failure.reason == "ErrImagePull";
        self.memory.waiting.insert(name.to_owned(), waiting.clone());
        if pull {
            // Both words are seen: first what went wrong, then that it will be tried again.
            self.write_status().await?;
            let image = self.image_of(name);
            let words = format!("Back-off pulling image \"{image}\"");
            self.context.recorder.pod(&self.pod, Some(name), false, "BackOff", words.clone());
            self.context.recorder.pod(&self.pod, Some(name), true, "Failed", "Error: ImagePullBackOff");
            let message = format!("{words}: ErrImagePull: {}", waiting.message);
            let held = Waiting { reason: "ImagePullBackOff".into(), message, ..waiting };
            self.memory.waiting.insert(name.to_owned(), held);
        }
        Ok(())
    }

    fn image_of(&self, name: &str) -> String {
        find_container(&self.pod, name).and_then(|c| c.image).unwrap_or_default()
    }
}
