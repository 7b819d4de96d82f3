//! Volumes of a pod: mounted before its containers start, brought up to date while they run. What takes long at a driver or
//! in the kernel is a task of its own, which nothing else of the pod waits for but its end.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::step::attend;
use super::{Wanted, Worker};
use crate::context::Context;
use crate::pods::state::Fate;
use crate::pods::steps::volumes;
use crate::volumes::{Error as VolumeError, PodDir};

/// Volumes made from objects are brought up to date this often.
const REFRESH: Duration = Duration::from_secs(30);

/// Why a pod's volumes are not there.
enum Failure {
    /// A driver has not prepared its devices, in its words.
    Devices(String),
    /// A volume is missing.
    Volume(VolumeError),
}

/// What is being done for the volumes of a pod.
pub(super) struct Tasks {
    /// They are being mounted, or brought up to date. What is begun comes to its end: a driver that is asked for the
    /// contrary meanwhile may do both.
    mounting: Option<JoinHandle<Result<(), Failure>>>,
    /// Those that have become larger are made so; at most one look at a time.
    growing: Option<AbortOnDropHandle<()>>,
    refreshed: Instant,
}

impl Tasks {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        Self { mounting: None, growing: None, refreshed: Instant::now() }
    }

    /// Lets what is begun come to its end: the volumes are to be given back.
    pub(super) async fn end(&mut self) {
        self.growing = None;
        if let Some(mounting) = self.mounting.take() {
            // Whatever came of it, what is there is given back.
            let _ = mounting.await;
        }
    }

    /// At most one look at a time.
    fn renew(&mut self, context: &Arc<Context>, pod: &Arc<Pod>, ips: Vec<String>) {
        if self.mounting.as_ref().is_none_or(JoinHandle::is_finished) {
            self.mounting = Some(tokio::spawn(renew(context.clone(), pod.clone(), ips)));
        }
    }

    fn grow(&mut self, context: &Arc<Context>, pod: &Arc<Pod>) {
        if self.growing.as_ref().is_none_or(|task| task.is_finished()) {
            let (context, pod) = (context.clone(), pod.clone());
            let task = async move { crate::csi::expand::run(&context, &pod).await };
            self.growing = Some(AbortOnDropHandle::new(tokio::spawn(task)));
        }
    }
}

/// Makes the volumes that a pod starts with, as large as they are to be.
async fn make(context: Arc<Context>, pod: Arc<Pod>) -> Result<(), Failure> {
    crate::claims::prepare(&context, &pod).await.map_err(Failure::Devices)?;
    volumes::mount(&context, &pod, Vec::new()).await.map_err(Failure::Volume)?;
    crate::csi::expand::run(&context, &pod).await;
    Ok(())
}

/// Brings the volumes of a pod that runs up to date. What fails is told, and tried again with the next look.
async fn renew(context: Arc<Context>, pod: Arc<Pod>, ips: Vec<String>) -> Result<(), Failure> {
    let renewed = volumes::mount(&context, &pod, ips).await.map(drop);
    renewed.map_err(|error| {
        context.recorder.pod(&pod, None, true, "FailedMount", error.to_string());
        Failure::Volume(error)
    })
}

impl Worker {
    /// Waits for what is done for the volumes; `None`: the pod is to end, and what was begun goes on.
    async fn attend_mounting(
        &mut self,
        mut task: JoinHandle<Result<(), Failure>>,
    ) -> Option<Result<(), Failure>> {
        let (wake, wanted) = (self.wake.clone(), self.wanted.clone());
        let done = attend(&mut task, self, &wake, wanted, Wanted::ends).await;
        if done.is_none() {
            self.volumes.mounting = Some(task);
        }
        done.map(|done| done.unwrap_or_else(|e| Err(Failure::Devices(e.to_string()))))
    }

    /// What keeps the pod from its volumes is remembered and told.
    pub(super) async fn mount(&mut self) {
        let task = tokio::spawn(make(self.context.clone(), self.pod.clone()));
        let (reason, message) = match self.attend_mounting(task).await {
            None => return,
            Some(Ok(())) => {
                self.memory.mounted = true;
                self.memory.mount_error = None;
                self.volumes.refreshed = Instant::now();
                return;
            }
            Some(Err(Failure::Volume(error @ VolumeError::Unsupported { .. }))) => {
                return self.refuse("UnsupportedVolume", "FailedMount", error.to_string());
            }
            Some(Err(Failure::Volume(error))) => ("FailedMount", error.to_string()),
            Some(Err(Failure::Devices(words))) => ("FailedPrepareDynamicResources", words),
        };
        self.context.recorder.pod(&self.pod, None, true, reason, message.clone());
        let before = self.memory.mount_error.as_ref();
        self.memory.mount_error =
            Some(Self::waiting(before, reason, message, |n| (1_i64 << n.min(5)).min(30)));
    }

    /// ConfigMaps and Secrets that changed, into the volumes of a running pod; volumes that grew, and those whose drivers
    /// are to be asked again. The pod waits for none of them.
    pub(super) fn refresh(&mut self) {
        let due = self.volumes.refreshed.elapsed() >= REFRESH;
        if !due || self.fate != Fate::Runs || !self.memory.mounted {
            return;
        }
        self.volumes.refreshed = Instant::now();
        self.volumes.grow(&self.context, &self.pod);
        let uid = self.pod.metadata.uid.as_deref().unwrap_or_default();
        let asked_again = || {
            let dir = PodDir::new(&self.context.root, uid);
            dir.is_some_and(|dir| crate::csi::record::republishes(&dir.path))
        };
        if !volumes::live(&self.pod) && !asked_again() {
            return;
        }
        let ips = self.state.sandbox().map(|s| s.ips.clone()).unwrap_or_default();
        self.volumes.renew(&self.context, &self.pod, ips);
    }
}
