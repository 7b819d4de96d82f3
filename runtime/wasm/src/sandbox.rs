//! A pod: what its containers share, and which of its ports are taken.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;

use crate::{
    hosts::http::Egress,
    link::Provider,
    network::PodNetwork,
    protocol::{ErrorCode, HostError, SandboxSpec, SandboxStatus},
};

/// One pod.
pub(crate) struct Sandbox {
    pub spec: SandboxSpec,
    pub network: Arc<PodNetwork>,
    pub egress: Egress,
    created_at_ns: i64,
    stopped: AtomicBool,
    /// Ports that handlers are served on, and the container of each.
    ports: Mutex<HashMap<u16, String>>,
    /// Containers that others import from, by name; the last attempt of each.
    providers: Mutex<HashMap<String, Arc<Provider>>>,
}

impl Sandbox {
    /// A new pod, ready for containers.
    pub fn new(spec: SandboxSpec, network: PodNetwork, created_at_ns: i64) -> Sandbox {
        let network = Arc::new(network);
        let egress = Egress::new(network.clone());
        Sandbox {
            spec,
            network,
            egress,
            created_at_ns,
            stopped: AtomicBool::new(false),
            ports: Mutex::default(),
            providers: Mutex::default(),
        }
    }

    pub fn status(&self) -> SandboxStatus {
        SandboxStatus { spec: self.spec.clone(), ready: !self.stopped(), created_at_ns: self.created_at_ns }
    }

    pub fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// `namespace/name`.
    pub fn pod(&self) -> String {
        format!("{}/{}", self.spec.namespace, self.spec.name)
    }

    /// The container that others import from under this name.
    pub fn provider(&self, name: &str) -> Option<Arc<Provider>> {
        self.providers.lock().get(name).cloned()
    }

    /// Lets others find a container, in place of an earlier attempt.
    pub fn provide(&self, provider: Arc<Provider>) {
        self.providers.lock().insert(provider.name().to_owned(), provider);
    }

    /// Reserves ports for a container's handler; two handlers of a pod cannot share one.
    pub fn reserve(&self, container: &str, name: &str, ports: &[u16]) -> Result<(), HostError> {
        let mut taken = self.ports.lock();
        for port in ports {
            if taken.get(port).is_some_and(|holder| holder != container) {
                let words = format!(
                    "port {port} of pod {} is already served by another container, so {name} cannot serve it too; \
                     give each handler a containerPort of its own",
                    self.pod()
                );
                return Err(HostError::new(ErrorCode::PortInUse, words));
            }
        }
        taken.extend(ports.iter().map(|port| (*port, container.to_owned())));
        Ok(())
    }

    /// Gives back what [`Sandbox::reserve`] took.
    pub fn release(&self, container: &str) {
        self.ports.lock().retain(|_, holder| holder != container);
    }
}
