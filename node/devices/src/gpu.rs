//! The GPU plugin: NVIDIA GPUs found through NVML as `nvidia.com/gpu`, or a number of fakes for tests.
//!
//! Linux containers get their GPU by a CDI name: `cdi` writes what a runtime needs to know. Wasm containers get the
//! annotations of [`crate::annotation`], and the environment variable that CUDA programs know.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::plugin::{self, Describe};
use crate::v1beta1::{CdiDevice, ContainerAllocateResponse, Device, NumaNode, TopologyInfo};
use crate::{HEALTHY, annotation};

pub mod cdi;
pub mod nvml;

/// The resource.
pub const RESOURCE: &str = "nvidia.com/gpu";
/// How often GPUs are looked for, and at.
const LOOK: Duration = Duration::from_secs(5);

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// `GPU-<uuid>`, or `fake-N`.
    pub id: String,
    /// Its number: `/dev/nvidia<N>`.
    pub minor: u32,
    /// The model.
    pub name: String,
    /// Whether it can be used.
    pub healthy: bool,
    /// The NUMA node that it hangs on.
    pub numa: Option<i64>,
    /// No hardware.
    pub fake: bool,
}

/// What the plugin needs to know.
pub struct Options {
    /// The kubelet's plugin directory.
    pub directory: PathBuf,
    /// Where CDI specifications lie.
    pub cdi_directory: PathBuf,
    /// That many fakes instead of hardware.
    pub fake: Option<u32>,
}

/// That many fakes.
pub fn fakes(count: u32) -> Vec<Gpu> {
    let fake = |n: u32| Gpu {
        id: format!("fake-{n}"),
        minor: n,
        name: "fake GPU".to_owned(),
        healthy: true,
        numa: None,
        fake: true,
    };
    (0..count).map(fake).collect()
}

type Known = Arc<Mutex<BTreeMap<String, Gpu>>>;

struct Gpus {
    known: Known,
}

impl Describe for Gpus {
    fn describe(&self, ids: &[String]) -> Result<ContainerAllocateResponse, String> {
        let known = self.known.lock();
        let gpus: Vec<&Gpu> = ids
            .iter()
            .map(|id| known.get(id).ok_or_else(|| format!("there is no GPU {id:?}")))
            .collect::<Result<_, _>>()?;
        let all = ids.join(",");
        let real = gpus.iter().filter(|g| !g.fake);
        let cdi = real.map(|g| CdiDevice { name: cdi::name(g) }).collect();
        Ok(ContainerAllocateResponse {
            envs: HashMap::from([("NVIDIA_VISIBLE_DEVICES".to_owned(), all.clone())]),
            annotations: HashMap::from([
                (annotation::DEVICES.to_owned(), all),
                (annotation::CAPABILITIES.to_owned(), "wasi:nn".to_owned()),
            ]),
            cdi_devices: cdi,
            ..Default::default()
        })
    }
}

fn devices(gpus: &[Gpu]) -> Vec<Device> {
    let topology = |id: i64| TopologyInfo { nodes: vec![NumaNode { id }] };
    let device = |gpu: &Gpu| Device {
        id: gpu.id.clone(),
        health: if gpu.healthy { HEALTHY } else { "Unhealthy" }.to_owned(),
        topology: gpu.numa.map(topology),
    };
    gpus.iter().map(device).collect()
}

/// Advertises GPUs until `shutdown`. Without a driver none are, and it keeps looking.
///
/// # Errors
/// When the plugin's socket cannot be made.
pub async fn run(options: Options, shutdown: CancellationToken) -> std::io::Result<()> {
    let known = Known::default();
    let first = found(&options, &known, &mut None).await;
    let (sender, receiver) = watch::channel(devices(&first));
    let served = plugin::Options {
        directory: options.directory.clone(),
        socket: "coracle-gpu.sock".to_owned(),
        resource: RESOURCE.to_owned(),
    };
    let looking = async {
        let mut before = Some(first);
        loop {
            tokio::time::sleep(LOOK).await;
            let gpus = found(&options, &known, &mut before).await;
            let list = devices(&gpus);
            sender.send_if_modified(|old| {
                let changes = *old != list;
                *old = list;
                changes
            });
        }
    };
    tokio::select! {
        ended = plugin::run(served, receiver, Gpus { known: known.clone() }, shutdown.clone()) => ended,
        () = looking => Ok(()),
    }
}

/// Looks once; what changed is told, and written for runtimes.
async fn found(options: &Options, known: &Known, before: &mut Option<Vec<Gpu>>) -> Vec<Gpu> {
    let gpus = match options.fake {
        Some(count) => fakes(count),
        None => {
            let look = tokio::task::spawn_blocking(nvml::look).await;
            match look.unwrap_or_else(|error| Err(error.to_string())) {
                Ok(gpus) => gpus,
                Err(why) => {
                    if before.as_ref().is_none_or(|b| !b.is_empty()) {
                        tracing::warn!("no GPU is advertised, and it goes on being looked for: {why}");
                    }
                    Vec::new()
                }
            }
        }
    };
    if before.as_ref() != Some(&gpus) {
        for gpu in &gpus {
            tracing::info!(id = gpu.id, name = gpu.name, healthy = gpu.healthy, "GPU");
        }
        if gpus.iter().any(|g| !g.fake) {
            let (directory, described) = (options.cdi_directory.clone(), gpus.clone());
            let written = tokio::task::spawn_blocking(move || cdi::write(&directory, &described)).await;
            if let Ok(Err(error)) = written {
                tracing::warn!(%error, directory = %options.cdi_directory.display(), "the CDI specification could not be written: Linux containers get no GPU");
            }
        }
        *known.lock() = gpus.iter().map(|g| (g.id.clone(), g.clone())).collect();
        *before = Some(gpus.clone());
    }
    gpus
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_container_gets() {
        let real = Gpu { id: "GPU-1".into(), minor: 3, fake: false, ..fakes(1).remove(0) };
        let known: BTreeMap<_, _> = fakes(1).into_iter().chain([real]).map(|g| (g.id.clone(), g)).collect();
        let gpus = Gpus { known: Arc::new(Mutex::new(known)) };
        let fake = gpus.describe(&["fake-0".into()]).expect("a fake");
        assert_eq!(fake.annotations[annotation::DEVICES], "fake-0");
        assert_eq!(fake.annotations[annotation::CAPABILITIES], "wasi:nn");
        assert!(fake.cdi_devices.is_empty());
        let real = gpus.describe(&["GPU-1".into()]).expect("a GPU");
        assert_eq!(real.cdi_devices[0].name, "nvidia.com/gpu=GPU-1");
        assert!(gpus.describe(&["GPU-2".into()]).is_err());
    }
}
