//! The phase of a pod.

use k8s_openapi::api::core::v1::{Container as Spec, ContainerStatus};

use crate::pods::plan::Input;
use crate::pods::state::{Fate, init_containers, is_sidecar, main_containers, restarts, starts_again};

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
    let (mut running, mut waiting, mut stopped, mut succeeded, mut again) = (0, 0, 0, 0, false);
    for (spec, status) in main_containers(input.pod).iter().zip(mains) {
        let state = status.state.as_ref();
        if state.is_some_and(|s| s.running.is_some()) {
            running += 1;
        } else if let Some(ended) = state.and_then(|s| s.terminated.as_ref()) {
            stopped += 1;
            succeeded += usize::from(ended.exit_code == 0);
            let newest = input.state.newest(&spec.name);
            again |= newest.map_or_else(
                || restarts(input.pod, spec, ended.exit_code),
                |container| starts_again(input.pod, spec, container),
            );
        } else if status.last_state.as_ref().is_some_and(|s| s.terminated.is_some()) {
            stopped += 1;
            again = true;
        } else {
            waiting += 1;
        }
    }
    if running + stopped == 0 {
        for (spec, status) in init_containers(input.pod).iter().zip(inits) {
            let ended = status.state.as_ref().and_then(|s| s.terminated.as_ref());
            let failed = ended.is_some_and(|t| t.exit_code != 0 && !restarts(input.pod, spec, t.exit_code));
            if failed && !is_sidecar(spec) {
                return "Failed";
            }
        }
        return "Pending";
    }
    if waiting > 0 {
        return "Pending";
    }
    // A pod on its way out restarts nothing: it has come to its end.
    if running > 0 || again && input.fate == Fate::Runs {
        return "Running";
    }
    if stopped == succeeded { "Succeeded" } else { "Failed" }
}
