//! The phase of a pod.

use k8s_openapi::api::core::v1::{Container as Spec, ContainerStatus};

use crate::pods::plan::Input;
use crate::pods::state::{init_containers, is_sidecar, restart_policy};

/// Whether an init container no longer holds up the others.
pub fn init_done(spec: &Spec, status: &ContainerStatus) -> bool {
    let state = status.state.as_ref();
    if is_sidecar(spec) {
        return status.started == Some(true);
    }
    state.and_then(|s| s.terminated.as_ref()).is_some_and(|t| t.exit_code == 0)
}

/// `Pending`, `Running`, `Succeeded` or `Failed`, by the kubelet's rules.
pub fn phase(input: Input<'_>, inits: &[ContainerStatus], mains: &[ContainerStatus]) -> &'static str {
    let policy = restart_policy(input.pod);
    let (mut running, mut waiting, mut stopped, mut succeeded) = (0, 0, 0, 0);
    for status in mains {
        let state = status.state.as_ref();
        if state.is_some_and(|s| s.running.is_some()) {
            running += 1;
        } else if let Some(ended) = state.and_then(|s| s.terminated.as_ref()) {
            stopped += 1;
            succeeded += usize::from(ended.exit_code == 0);
        } else if status.last_state.as_ref().is_some_and(|s| s.terminated.is_some()) {
            stopped += 1;
        } else {
            waiting += 1;
        }
    }
    if running + stopped == 0 {
        for (spec, status) in init_containers(input.pod).iter().zip(inits) {
            let failed =
                status.state.as_ref().and_then(|s| s.terminated.as_ref()).is_some_and(|t| t.exit_code != 0);
            if failed && !is_sidecar(spec) && policy == "Never" {
                return "Failed";
            }
        }
        return "Pending";
    }
    if waiting > 0 {
        return "Pending";
    }
    if running > 0 || policy == "Always" {
        return "Running";
    }
    if stopped == succeeded {
        return "Succeeded";
    }
    if policy == "Never" { "Failed" } else { "Running" }
}
