//! Ephemeral containers, and what they see of the container that they look into (`targetContainerName`): a Linux container
//! its processes, a wasm container, which has none to see, the files of its volumes.

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::pods::state::{Phase, PodState, ephemeral_containers, find_container};
use crate::volumes::mounts::Mount;

/// What of another container a container sees.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sight {
    /// The id of the container whose processes it sees.
    pub processes: Option<String>,
    /// The container whose volumes it sees.
    pub volumes: Option<Container>,
}

/// Whether a container was added to the pod that runs.
pub fn is_ephemeral(pod: &Pod, spec: &Container) -> bool {
    ephemeral_containers(pod).iter().any(|other| other.name == spec.name)
}

/// What a container sees of the one that it names, if it names one.
///
/// # Errors
/// When that one does not run.
pub fn sight(pod: &Pod, state: &PodState, spec: &Container, linux: bool) -> Result<Sight, String> {
    let added = pod.spec.as_ref().and_then(|s| s.ephemeral_containers.as_deref()).unwrap_or_default();
    let named = added.iter().find(|e| e.name == spec.name).and_then(|e| e.target_container_name.as_deref());
    let Some(name) = named.filter(|name| !name.is_empty()) else { return Ok(Sight::default()) };
    let found = state.current(name).filter(|c| c.phase == Phase::Running);
    let found = found.ok_or_else(|| format!("unable to find target container \"{name}\""))?;
    Ok(match linux {
        true => Sight { processes: Some(found.id.clone()), volumes: None },
        false => Sight { processes: None, volumes: find_container(pod, name) },
    })
}

/// A container's own mounts, and those of another one where it has none of its own.
pub fn joined(mut own: Vec<Mount>, others: Vec<Mount>) -> Vec<Mount> {
    let place = |mount: &Mount| mount.container_path.trim_end_matches('/').to_owned();
    let more: Vec<Mount> =
        others.into_iter().filter(|other| own.iter().all(|mount| place(mount) != place(other))).collect();
    own.extend(more);
    own
}

/// Why a debug container of a Linux image is not added to a pod that was made for wasm containers alone.
pub fn needs_another_sandbox(image: &str) -> String {
    format!(
        "image \"{image}\" is a Linux image, and the pod runs wasm containers alone, without the namespaces that a Linux \
         container needs: it would have to start anew. Debug it with a wasm image (with --target it sees that container's \
         volumes), or `kubectl exec` into it: ls, cat, env and others are there"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::state::{Container as Seen, Sandbox};
    use serde_json::json;

    #[test]
    fn a_debug_container_sees_volumes_or_processes_of_its_target() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "containers": [{"name": "web", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
            "ephemeralContainers": [
                {"name": "debug", "targetContainerName": "web"}, {"name": "alone"},
                {"name": "late", "targetContainerName": "gone"},
            ],
        }}))
        .expect("a pod");
        let sandbox = Sandbox { id: "s".into(), ready: true, ..Sandbox::default() };
        let running = Seen {
            id: "c1".into(),
            sandbox: "s".into(),
            name: "web".into(),
            phase: Phase::Running,
            ..Seen::default()
        };
        let (sandboxes, containers) = (vec![sandbox], vec![running]);
        let state = PodState { sandboxes, containers, ..PodState::default() };
        let see = |name: &str, linux: bool| {
            let spec = find_container(&pod, name).expect("a container");
            assert_eq!(is_ephemeral(&pod, &spec), name != "web");
            sight(&pod, &state, &spec, linux)
        };
        let web = find_container(&pod, "web");
        assert_eq!(see("debug", false), Ok(Sight { processes: None, volumes: web }));
        assert_eq!(see("debug", true), Ok(Sight { processes: Some("c1".into()), volumes: None }));
        assert_eq!(see("alone", true), Ok(Sight::default()));
        assert_eq!(see("web", false), Ok(Sight::default()));
        assert_eq!(see("late", false), Err("unable to find target container \"gone\"".to_owned()));
    }

    #[test]
    fn its_own_mounts_go_before() {
        let mount = |path: &str, host: &str| Mount {
            container_path: path.into(),
            host_path: host.into(),
            ..Mount::default()
        };
        let both =
            joined(vec![mount("/data/", "/own")], vec![mount("/data", "/theirs"), mount("/more", "/more")]);
        assert_eq!(both, [mount("/data/", "/own"), mount("/more", "/more")]);
    }
}
