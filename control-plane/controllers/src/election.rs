//! Which server runs the controllers, and which the scheduler: whoever holds the Lease of that name in `kube-system`, as in
//! Kubernetes. A holder that cannot renew it stops before another may take it.

use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::core::ObjectMeta;
use kube::{Api, Client};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A Lease that was not renewed for so long may be taken.
const LEASE: Duration = Duration::from_secs(10);
/// A holder that could not renew for so long stops.
const RENEW_DEADLINE: Duration = Duration::from_secs(7);
/// How often a holder renews, and others look.
const RETRY: Duration = Duration::from_secs(2);

/// Who asks for which Lease.
pub struct Candidate {
    /// Reaches the API as the component.
    pub client: Client,
    /// The name of the Lease.
    pub name: &'static str,
    /// This server. It is the same after a restart, and one process at a time bears it: its data directory is locked.
    pub identity: String,
}

/// What this server last saw of the Lease, and when by its own clock: clocks of others are not believed.
#[derive(Default)]
struct Seen {
    version: Option<String>,
    at: Option<Instant>,
}

/// What to do about a Lease.
#[derive(Debug, PartialEq)]
enum Step {
    /// Write it with this server as its holder.
    Hold,
    /// Leave it alone.
    Wait,
}

fn plan(spec: Option<&LeaseSpec>, me: &str, unchanged_for: Duration) -> Step {
    let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
    let seconds = spec.and_then(|spec| spec.lease_duration_seconds).and_then(|s| u64::try_from(s).ok());
    let lease = seconds.map_or(LEASE, Duration::from_secs);
    if holder.is_empty() || holder == me || unchanged_for >= lease { Step::Hold } else { Step::Wait }
}

impl Candidate {
    /// Runs `work` whenever this server holds the Lease, until `shutdown`. Work that fails takes nothing with it: it is
    /// begun again, here or by whoever is faster.
    pub async fn run<F>(self, shutdown: CancellationToken, work: impl Fn(CancellationToken) -> F)
    where
        F: Future<Output = anyhow::Result<()>>,
    {
        let leases = Api::<Lease>::namespaced(self.client.clone(), "kube-system");
        let mut seen = Seen::default();
        while !shutdown.is_cancelled() {
            if self.attempt(&leases, &mut seen).await {
                tracing::info!(lease = self.name, "leads");
                match self.lead(&leases, &mut seen, &shutdown, &work).await {
                    Ok(()) if shutdown.is_cancelled() => break,
                    Ok(()) => tracing::warn!(lease = self.name, "leads no more"),
                    Err(error) => tracing::error!(lease = self.name, error = format!("{error:#}"), "failed"),
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(RETRY) => {}
            }
        }
        self.release(&leases).await;
    }

    /// Works and renews, until the work ends or the Lease is lost.
    async fn lead<F>(
        &self,
        leases: &Api<Lease>,
        seen: &mut Seen,
        shutdown: &CancellationToken,
        work: impl Fn(CancellationToken) -> F,
    ) -> anyhow::Result<()>
    where
        F: Future<Output = anyhow::Result<()>>,
    {
        let term = shutdown.child_token();
        let renewing = async {
            let mut renewed = Instant::now();
            while renewed.elapsed() < RENEW_DEADLINE {
                tokio::time::sleep(RETRY).await;
                let attempt = self.attempt(leases, seen);
                let left = RENEW_DEADLINE.saturating_sub(renewed.elapsed());
                if matches!(tokio::time::timeout(left, attempt).await, Ok(true)) {
                    renewed = Instant::now();
                }
            }
        };
        let mut working = std::pin::pin!(work(term.clone()));
        tokio::select! {
            done = &mut working => done,
            () = renewing => {
                term.cancel();
                working.await
            }
        }
    }

    /// Takes or renews the Lease, if it is free or this server's. Whether this server holds it now.
    async fn attempt(&self, leases: &Api<Lease>, seen: &mut Seen) -> bool {
        let found = match leases.get_opt(self.name).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(lease = self.name, %error, "read the lease");
                return false;
            }
        };
        let version = found.as_ref().and_then(|lease| lease.metadata.resource_version.clone());
        if seen.at.is_none() || seen.version != version {
            *seen = Seen { version, at: Some(Instant::now()) };
        }
        let unchanged = seen.at.map_or(Duration::ZERO, |at| at.elapsed());
        let spec = found.as_ref().and_then(|lease| lease.spec.as_ref());
        if plan(spec, &self.identity, unchanged) == Step::Wait {
            return false;
        }
        let written = match &found {
            None => leases.create(&PostParams::default(), &self.lease(None, Timestamp::now())).await,
            Some(old) => {
                leases
                    .replace(self.name, &PostParams::default(), &self.lease(Some(old), Timestamp::now()))
                    .await
            }
        };
        // A conflict says that another was faster.
        written.is_ok()
    }

    fn lease(&self, old: Option<&Lease>, now: Timestamp) -> Lease {
        let before = old.and_then(|old| old.spec.clone()).unwrap_or_default();
        let mine = before.holder_identity.as_deref() == Some(&self.identity);
        let transitions = before.lease_transitions.unwrap_or_default();
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
            acquire_time: if mine { before.acquire_time } else { Some(MicroTime(now)) },
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(if mine || old.is_none() { transitions } else { transitions + 1 }),
            ..LeaseSpec::default()
        };
        let metadata = old.map_or_else(
            || ObjectMeta { name: Some(self.name.into()), ..ObjectMeta::default() },
            |old| old.metadata.clone(),
        );
        Lease { metadata, spec: Some(spec) }
    }

    /// Lets go of the Lease, so that nobody waits for its end.
    async fn release(&self, leases: &Api<Lease>) {
        let released = async {
            let mut lease = leases.get_opt(self.name).await.ok()??;
            let spec = lease.spec.as_mut()?;
            if spec.holder_identity.as_deref() != Some(&self.identity) {
                return None;
            }
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            leases.replace(self.name, &PostParams::default(), &lease).await.ok()
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), released).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_hold_a_lease() {
        let spec = |holder: &str| LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(10),
            ..LeaseSpec::default()
        };
        let (now, later) = (Duration::from_secs(9), Duration::from_secs(10));
        assert_eq!(plan(None, "a", Duration::ZERO), Step::Hold);
        assert_eq!(plan(Some(&spec("a")), "a", now), Step::Hold);
        assert_eq!(plan(Some(&spec("b")), "a", now), Step::Wait);
        assert_eq!(plan(Some(&spec("b")), "a", later), Step::Hold);
        assert_eq!(plan(Some(&spec("")), "a", Duration::ZERO), Step::Hold);
    }
}
