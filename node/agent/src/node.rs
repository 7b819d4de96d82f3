//! The Node object and its Lease: registered once, then kept true.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerImage, Node};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::context::Context;

pub mod lease;
pub mod machine;
pub mod object;
pub mod reserve;
pub mod shutdown;

/// How often the status is looked at.
const LOOK: Duration = Duration::from_secs(10);
/// How often it is written although nothing changed.
const WRITE: Duration = Duration::from_secs(300);
/// Images that the Node tells of.
const MAX_IMAGES: usize = 50;
/// How long one look, and what it writes, may take: an answer that never comes is asked for again.
const TURN: Duration = Duration::from_secs(30);
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(7);

/// Keeps the Node and its Lease until `shutdown`.
pub async fn run(
    context: Arc<Context>,
    machine: machine::Machine,
    port: u16,
    max_pods: u32,
    shutdown: CancellationToken,
) {
    let keep = async { tokio::join!(lease::keep(&context), keep_node(&context, &machine, port, max_pods)) };
    tokio::select! {
        _ = keep => {}
        () = shutdown.cancelled() => {}
    }
}

async fn keep_node(context: &Context, machine: &machine::Machine, port: u16, max_pods: u32) {
    let mut keeper = Keeper {
        context,
        machine,
        port,
        max_pods,
        written: None,
        cidr: None,
        problem: None,
        started: false,
        reserved: false,
        unreserved: None,
    };
    let mut delay = RETRY_MIN;
    let mut pressure = context.pressure.subscribe();
    loop {
        let turn = tokio::time::timeout(TURN, keeper.turn()).await;
        match turn.unwrap_or_else(|late| Err(late.into())) {
            Ok(settled) => {
                delay = RETRY_MIN;
                // A node that is not yet whole (no range, runtime away) is looked at more often.
                let pause = if settled { LOOK } else { Duration::from_millis(300) };
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    _ = pressure.changed() => {}
                    () = context.devices.changed() => {}
                }
            }
            Err(error) => {
                tracing::warn!(
                    node = context.node_name,
                    error = format!("{error:#}"),
                    "could not keep the Node; will try again"
                );
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(RETRY_MAX);
            }
        }
    }
}

struct Keeper<'a> {
    context: &'a Context,
    machine: &'a machine::Machine,
    port: u16,
    max_pods: u32,
    written: Option<Instant>,
    cidr: Option<String>,
    /// What was last wrong with the runtime.
    problem: Option<String>,
    started: bool,
    /// What is reserved is kept from all pods together, or nothing is.
    reserved: bool,
    /// Why it is not so.
    unreserved: Option<String>,
}

impl Keeper<'_> {
    /// Looks and writes once. False: something is missing that may come at any moment.
    async fn turn(&mut self) -> anyhow::Result<bool> {
        let api: Api<Node> = Api::all(self.context.client.clone());
        let name = &self.context.node_name;
        let node = match api.get_opt(name).await? {
            Some(node) => node,
            None => match api.create(&PostParams::default(), &object::node(name)).await {
                Ok(node) => {
                    tracing::info!(node = name, "registered");
                    node
                }
                Err(kube::Error::Api(status)) if status.code == 409 => api.get(name).await?,
                Err(error) => return Err(error.into()),
            },
        };
        if let Some(patch) = object::missing_labels(&node, name) {
            api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        }
        let storage = crate::volumes::claims::storage(&self.context.root);
        if let Some(patch) = object::missing_annotation(&node, &storage.to_string_lossy()) {
            api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        }
        let handed = self.hand_over_cidr(&node).await;
        // Not in the expression below: it would be held, and whoever tells of pressure wait, while the runtime is asked.
        let pressure = *self.context.pressure.borrow();
        let facts = object::Facts {
            machine: self.machine,
            address: self.context.node_ip.to_string(),
            name: name.clone(),
            port: self.port,
            max_pods: self.max_pods,
            runtime: self.ask_runtime(handed).await,
            devices: self.context.devices.amounts(),
            tuning: &self.context.tuning,
            pressure,
            shutting_down: self.context.shutting_down.load(std::sync::atomic::Ordering::Relaxed),
            images: self.images().await,
            volumes_in_use: crate::csi::record::in_use(&self.context.root),
            now: Timestamp::now(),
        };
        let ready = facts.runtime.problem.is_none();
        self.context.node_cpu.look(machine::usage().cpu_nanos, std::time::Instant::now());
        self.reserve().await;
        if self.problem != facts.runtime.problem {
            self.problem.clone_from(&facts.runtime.problem);
            match &self.problem {
                Some(problem) => tracing::warn!(node = name, problem, "the runtime is not ready"),
                None => tracing::info!(node = name, "the runtime is ready"),
            }
        }
        let status = object::status(&node, &facts);
        let due = self.written.is_none_or(|at| at.elapsed() >= WRITE);
        if due || object::differs(node.status.as_ref(), &status) {
            let body = json!({"status": status});
            let written = api.patch_status(name, &PatchParams::default(), &Patch::Merge(body)).await?;
            self.written = Some(Instant::now());
            for reason in object::news(node.status.as_ref(), &status) {
                let words = format!("Node {name} status is now: {reason}");
                self.context.recorder.node(&written, false, reason, words);
            }
            if !std::mem::replace(&mut self.started, true) {
                self.context.recorder.node(&written, false, "Starting", "Starting kubelet.");
            }
        }
        Ok(ready && node.spec.as_ref().and_then(|s| s.pod_cidr.as_ref()).is_some())
    }

    /// The largest images, as the Node tells them.
    async fn images(&self) -> Vec<ContainerImage> {
        let mut images = self.context.runtime.list_images().await.unwrap_or_default();
        images.sort_by_key(|image| (std::cmp::Reverse(image.size), image.id.clone()));
        let shown = images.into_iter().take(MAX_IMAGES).map(|image| ContainerImage {
            names: Some(image.repo_digests.into_iter().chain(image.repo_tags).take(5).collect()),
            size_bytes: i64::try_from(image.size).ok(),
        });
        shown.collect()
    }

    /// Keeps what is reserved from Linux pods, where our runtime has some, or lets them have it; tried again until it is so, and
    /// kept so.
    async fn reserve(&mut self) {
        let context = self.context;
        let enforce = context.tuning.enforce;
        // Another cluster of this machine that ends takes the group away with its last pod.
        if self.reserved && !enforce || !context.runs_linux() {
            return;
        }
        if context.runtime.name().await.is_ok_and(|name| name == "coracle") {
            let done = if enforce { reserve::enforce(context) } else { reserve::lift() };
            let refused = done.err().map(|error| error.to_string());
            self.reserved = refused.is_none();
            if refused.is_some() && refused != self.unreserved {
                tracing::warn!(error = refused, "what all pods together may have of the node is not set yet");
            }
            self.unreserved = refused;
        }
    }

    async fn hand_over_cidr(&mut self, node: &Node) -> Result<(), String> {
        let Some(cidr) = node.spec.as_ref().and_then(|s| s.pod_cidr.clone()) else { return Ok(()) };
        // Handed over again now and then: the runtime may have been restarted.
        let known = self.cidr.as_deref() == Some(cidr.as_str());
        match self.context.runtime.set_pod_cidr(&cidr).await {
            Ok(()) => {
                if !known {
                    tracing::info!(cidr, "the range of pod addresses is known to the runtime");
                }
                self.cidr = Some(cidr);
                Ok(())
            }
            Err(status) => Err(format!("hand {cidr} to the runtime: {}", status.message())),
        }
    }

    async fn ask_runtime(&self, handed: Result<(), String>) -> object::RuntimeFacts {
        let version = match self.context.runtime.version().await {
            Ok(version) => format!("{}://{}", version.runtime_name, version.runtime_version),
            Err(status) => {
                let problem = format!("container runtime is down: {}", status.message());
                return object::RuntimeFacts { problem: Some(problem), ..Default::default() };
            }
        };
        if let Ok(handlers) = self.context.runtime.handlers().await {
            *self.context.handlers.write() = handlers;
        }
        let strict_groups = self.context.runtime.has_strict_groups().await.ok();
        if let Some(has) = strict_groups {
            self.context.strict_groups.store(has, std::sync::atomic::Ordering::Relaxed);
        }
        let mut problems: Vec<String> = handed.err().into_iter().collect();
        match self.context.runtime.conditions().await {
            Err(status) => {
                problems.push(format!("container runtime status check failed: {}", status.message()))
            }
            Ok(conditions) => problems.extend(conditions.iter().filter(|c| !c.status).map(|c| {
                let what = if c.r#type == "NetworkReady" {
                    "container runtime network not ready"
                } else {
                    "container runtime not ready"
                };
                format!("{what}: {}=false reason:{} message:{}", c.r#type, c.reason, c.message)
            })),
        }
        let problem = (!problems.is_empty()).then(|| problems.join(", "));
        object::RuntimeFacts { version: Some(version), problem, strict_groups }
    }
}
