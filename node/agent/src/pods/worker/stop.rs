//! Ending containers: the `preStop` hook first, and what is left of the grace for the container itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container as Spec, Pod};

use super::Worker;
use crate::context::Context;
use crate::hooks;
use crate::pods::state::{init_containers, main_containers};
use crate::pods::steps::container::words;
use crate::probes::check::Target;

/// What a container has left after a hook that used up the grace, in seconds.
const LEAST: i64 = 2;

impl Worker {
    /// Ends containers (id, name, why), all at once.
    pub(super) async fn stop(
        &mut self,
        containers: Vec<(String, String, String)>,
        grace: i64,
    ) -> anyhow::Result<()> {
        let ip = self.state.sandbox().and_then(|s| s.ips.first()).cloned().unwrap_or_default();
        let mut stops = Vec::new();
        for (id, name, why) in containers {
            if !why.is_empty() {
                self.context.recorder.pod(&self.pod, Some(&name), false, "Killing", why);
            }
            let all = init_containers(&self.pod).iter().chain(main_containers(&self.pod));
            let spec = all.into_iter().find(|spec| spec.name == name);
            stops.push(stop(self.context.clone(), &self.pod, spec, id, ip.clone(), grace));
        }
        for result in futures::future::join_all(stops).await {
            result.map_err(|e| anyhow::anyhow!("stop a container: {}", words(&e)))?;
        }
        Ok(())
    }
}

async fn stop(
    context: Arc<Context>,
    pod: &Pod,
    spec: Option<&Spec>,
    id: String,
    ip: String,
    grace: i64,
) -> Result<(), tonic::Status> {
    let mut left = grace;
    if let Some((spec, hook)) = spec.and_then(|s| Some((s, s.lifecycle.as_ref()?.pre_stop.as_ref()?))) {
        let began = Instant::now();
        let target = Target { spec, id: &id, ip: &ip, runtime: &context.runtime };
        let limit = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
        if let Err(why) = hooks::run(hook, &target, limit).await {
            let message = format!("PreStopHook failed: {why}");
            context.recorder.pod(pod, Some(&spec.name), true, "FailedPreStopHook", message);
        }
        let took = i64::try_from(began.elapsed().as_secs()).unwrap_or(i64::MAX);
        left = grace.saturating_sub(took).max(LEAST.min(grace));
    }
    context.runtime.stop_container(&id, left).await
}
