//! The orderly stop of a whole node, with its runtime: what pods held of this machine besides files is let go of. An end of
//! the agent alone takes nothing away.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use anyhow::Context as _;
use coracle_cri_api::annotation;
use coracle_cri_api::v1::ContainerState;

use crate::runtime::{Runtime, label};

/// The uids of pods whose Linux containers run: those outlive their runtime, where containers of wasm end with their hosts.
///
/// # Errors
/// When the runtime (`unix:///path`) does not say.
pub async fn outliving(runtime_endpoint: &str) -> anyhow::Result<BTreeSet<String>> {
    let runtime = Runtime::new(runtime_endpoint)?;
    let both = async { tokio::try_join!(runtime.sandboxes(), runtime.containers(HashMap::new())) };
    let (sandboxes, containers) = both.await.context("ask the runtime which containers run")?;
    let linux = |annotations: &HashMap<String, String>| {
        annotations.get(annotation::LINUX_CONTAINERS).is_some_and(|v| v == "true")
    };
    let linux: BTreeSet<String> =
        sandboxes.into_iter().filter(|s| linux(&s.annotations)).map(|s| s.id).collect();
    let running = containers.into_iter().filter(|c| c.state() == ContainerState::ContainerRunning);
    let theirs = running.filter(|c| linux.contains(&c.pod_sandbox_id));
    Ok(theirs.filter_map(|c| c.labels.get(label::POD_UID).cloned()).collect())
}

/// Lets go of the volumes of pods that have ended, and of the control group of all pods when none is left. `outliving` are
/// the uids of those whose containers run.
///
/// # Errors
/// What stays, of every pod where something does.
pub fn let_go(root: &Path, outliving: &BTreeSet<String>) -> anyhow::Result<()> {
    let volumes = crate::volumes::let_go(root, outliving).context("let go of the volumes of pods");
    let group = crate::node::reserve::release().context("remove the control group of pods");
    volumes.and(group)
}
