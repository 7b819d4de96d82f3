//! Steps of a worker that may take long: what changes meanwhile is told, and a step ends early when the pod is to end.

use std::future::Future;
use std::pin::pin;

use tokio::sync::{Notify, watch};

use super::{RETRY, SLOW, Wanted, Worker};
use crate::pods::state::Fate;

impl Wanted {
    /// The pod is not to run any longer.
    pub(super) fn ends(&self) -> bool {
        self.fate != Fate::Runs || self.failed.is_some()
    }
}

/// Says how things are.
pub(super) trait Tell {
    /// Once more. False: it is not told yet.
    fn tell(&mut self) -> impl Future<Output = bool> + Send;
}

impl Tell for Worker {
    async fn tell(&mut self) -> bool {
        let told = async {
            self.look().await?;
            self.write_status().await
        };
        let told = told.await.inspect_err(|error| {
            tracing::debug!(pod = %self.name(), error = format!("{error:#}"), "its status is not written yet");
        });
        told.is_ok()
    }
}

/// Does a step, and tells how things are where it takes long: once, and whenever the pod is woken; what could not be told is
/// told later. `None`: it was broken off, because `ends` says so of what is wanted now.
pub(super) async fn attend<T>(
    step: impl Future<Output = T>,
    tells: &mut impl Tell,
    wake: &Notify,
    mut wanted: watch::Receiver<Wanted>,
    mut ends: impl FnMut(&Wanted) -> bool,
) -> Option<T> {
    let mut step = pin!(step);
    if let Ok(done) = tokio::time::timeout(SLOW, &mut step).await {
        return Some(done);
    }
    loop {
        let told = tokio::select! {
            done = &mut step => return Some(done),
            _ = wanted.wait_for(&mut ends) => return None,
            told = Box::pin(tells.tell()) => told,
        };
        tokio::select! {
            done = &mut step => return Some(done),
            _ = wanted.wait_for(&mut ends) => return None,
            () = wake.notified() => {}
            () = tokio::time::sleep(RETRY), if !told => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use k8s_openapi::api::core::v1::Pod;
    use tokio::sync::{mpsc, oneshot};

    use super::*;
    use crate::pods::state::Failed;

    const SOON: Duration = Duration::from_secs(10);

    impl Tell for mpsc::UnboundedSender<()> {
        async fn tell(&mut self) -> bool {
            self.send(()).is_ok()
        }
    }

    /// Nobody answers.
    struct Silence;

    impl Tell for Silence {
        async fn tell(&mut self) -> bool {
            std::future::pending().await
        }
    }

    /// Is heard when it has failed so many times.
    struct Deaf(u32, mpsc::UnboundedSender<()>);

    impl Tell for Deaf {
        async fn tell(&mut self) -> bool {
            match self.0.checked_sub(1) {
                Some(left) => {
                    self.0 = left;
                    false
                }
                None => self.1.send(()).is_ok(),
            }
        }
    }

    #[tokio::test]
    async fn what_could_not_be_told_is_told_later() {
        let (_source, wanted) = watch::channel(Wanted::new(Pod::default(), Fate::Runs));
        let (told, mut heard) = mpsc::unbounded_channel();
        // Nothing wakes the pod.
        let step = tokio::spawn(async move {
            let (never, wake, mut tells) = (std::future::pending::<()>(), Notify::new(), Deaf(2, told));
            attend(never, &mut tells, &wake, wanted, Wanted::ends).await
        });
        let next = tokio::time::timeout(SOON, heard.recv()).await;
        assert!(next.is_ok_and(|told| told.is_some()), "it is told again and again");
        step.abort();
    }

    #[tokio::test]
    async fn what_changes_during_a_step_is_told() {
        let (_source, wanted) = watch::channel(Wanted::new(Pod::default(), Fate::Runs));
        let (wake, (mut told, mut heard)) = (Arc::new(Notify::new()), mpsc::unbounded_channel());
        let (finish, finished) = oneshot::channel();
        let other = wake.clone();
        let step =
            tokio::spawn(async move { attend(finished, &mut told, &other, wanted, Wanted::ends).await });
        for _ in 0..3 {
            let next = tokio::time::timeout(SOON, heard.recv()).await;
            assert!(next.is_ok_and(|told| told.is_some()), "the step is told of");
            wake.notify_one();
        }
        finish.send(7).expect("the step goes on");
        assert_eq!(step.await.expect("no panic"), Some(Ok(7)));
    }

    #[tokio::test]
    async fn a_step_ends_with_its_pod() {
        let evicted = |wanted: &mut Wanted| wanted.failed = Some(Failed::default());
        let deleted = |wanted: &mut Wanted| wanted.fate = Fate::Leaves;
        for ends in [&evicted as &dyn Fn(&mut Wanted), &deleted] {
            let (source, wanted) = watch::channel(Wanted::new(Pod::default(), Fate::Runs));
            source.send_modify(ends);
            // A step that never ends, and a server of the API that does not answer.
            let (never, wake, mut silence) = (std::future::pending::<()>(), Notify::new(), Silence);
            let step = attend(never, &mut silence, &wake, wanted, Wanted::ends);
            assert_eq!(tokio::time::timeout(SOON, step).await, Ok(None));
        }
    }
}
