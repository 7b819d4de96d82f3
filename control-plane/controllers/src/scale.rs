//! The `scale` subresource of whatever kind has one, found through discovery.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::Instant;

use crate::discovery::{Served, deletable};
use crate::write::{self, Writer};

/// What is served is looked up again at most this often for a kind that is not known.
const LOOK_UP: Duration = Duration::from_secs(10);

/// What an object says of its scale.
#[derive(Clone, Debug)]
pub struct Scale {
    /// The path of the subresource.
    pub path: String,
    /// The Scale as it was read.
    pub body: Value,
    /// Pods that are wanted.
    pub wanted: i64,
    /// Pods that are there.
    pub there: i64,
    /// The label selector of its pods, as text.
    pub selector: String,
}

/// Finds and reads scales under one identity.
pub struct Scales {
    writer: Writer,
    known: Mutex<(Vec<Arc<Served>>, Option<Instant>)>,
}

impl Scales {
    /// Reads through this client.
    pub fn new(writer: Writer) -> Self {
        Self { writer, known: Mutex::default() }
    }

    /// The resource of a kind, in the version that the server prefers.
    ///
    /// # Errors
    /// That there is none, in the words of Kubernetes.
    pub async fn resource(&self, api_version: &str, kind: &str) -> Result<Arc<Served>, String> {
        let (group, _) = api_version.split_once('/').unwrap_or(("", ""));
        let find = |all: &[Arc<Served>]| {
            all.iter().find(|s| s.resource.group == group && s.resource.kind == kind).cloned()
        };
        let fresh = {
            let known = self.known.lock();
            if let Some(found) = find(&known.0) {
                return Ok(found);
            }
            known.1.is_some_and(|at| at.elapsed() < LOOK_UP)
        };
        let unknown = || format!("no matches for kind \"{kind}\" in group \"{group}\"");
        if fresh {
            return Err(unknown());
        }
        let all = deletable(self.writer.client()).await.map_err(|error| write::words(&error))?;
        let found = find(&all);
        *self.known.lock() = (all, Some(Instant::now()));
        found.ok_or_else(unknown)
    }

    /// The scale of an object.
    ///
    /// # Errors
    /// Why it cannot be had, for people.
    pub async fn of(
        &self,
        namespace: &str,
        api_version: &str,
        kind: &str,
        name: &str,
    ) -> Result<Scale, String> {
        let served = self.resource(api_version, kind).await?;
        let path = format!("{}/scale", served.path(namespace, name));
        let body: Value = self.writer.get(&path).await.map_err(|error| write::words(&error))?;
        let number = |at: &str| body.pointer(at).and_then(Value::as_i64).unwrap_or(0);
        let (wanted, there) = (number("/spec/replicas"), number("/status/replicas"));
        let selector = body.pointer("/status/selector").and_then(Value::as_str).unwrap_or_default();
        Ok(Scale { path, wanted, there, selector: selector.to_string(), body })
    }
}
