//! Listeners that the runtime could not open, as Warning Events on their Service.

use std::collections::HashSet;

use coracle_cri_api::network::ListenerError;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};

/// At most so many errors of one table become Events.
const MAX_PER_TABLE: usize = 64;

/// Reports each error once, and again when it went away and came back.
#[derive(Default)]
pub struct Reporter {
    reported: HashSet<(String, String, u32, String)>,
}

impl Reporter {
    /// The errors that were not there before; those that vanished are forgotten.
    pub fn fresh(&mut self, errors: &[ListenerError]) -> Vec<ListenerError> {
        let key = |e: &ListenerError| (e.service.clone(), e.address.clone(), e.port, e.reason.clone());
        let errors = errors.get(..errors.len().min(MAX_PER_TABLE)).unwrap_or_default();
        let now: HashSet<_> = errors.iter().map(key).collect();
        let fresh = errors.iter().filter(|e| !self.reported.contains(&key(e))).cloned().collect();
        self.reported = now;
        fresh
    }
}

/// The Event of one listener error, or `None` when it names no Service.
pub fn event(error: &ListenerError, service: Option<&Service>, node: &str) -> Option<Event> {
    let (namespace, name) = error.service.split_once('/')?;
    let now = Time(Timestamp::now());
    Some(Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: Some(namespace.to_owned()),
            ..Default::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Service".into()),
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            uid: service.and_then(|s| s.metadata.uid.clone()),
            ..Default::default()
        },
        type_: Some("Warning".into()),
        reason: Some("FailedToListen".into()),
        message: Some(format!("Cannot listen on {}:{}: {}", error.address, error.port, error.message)),
        source: Some(EventSource { component: Some("coracle-network".into()), host: Some(node.to_owned()) }),
        reporting_component: Some("coracle-network".into()),
        reporting_instance: Some(node.to_owned()),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        count: Some(1),
        ..Default::default()
    })
}

/// Writes the Event; a failure is logged, for nobody can act on it.
pub async fn write(client: &Client, event: Event) {
    let namespace = event.metadata.namespace.clone().unwrap_or_default();
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    if let Err(error) = api.create(&PostParams::default(), &event).await {
        tracing::warn!(%error, message = event.message, "could not write an Event");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied() -> ListenerError {
        ListenerError {
            service: "a/web".into(),
            address: "127.96.0.9".into(),
            port: 80,
            reason: "PermissionDenied".into(),
            message: "permission denied".into(),
            protocol: 0,
        }
    }

    #[test]
    fn an_error_is_reported_once() {
        let mut reporter = Reporter::default();
        assert_eq!(reporter.fresh(&[denied()]).len(), 1);
        assert_eq!(reporter.fresh(&[denied()]).len(), 0);
        assert_eq!(reporter.fresh(&[]).len(), 0);
        assert_eq!(reporter.fresh(&[denied()]).len(), 1);
    }

    #[test]
    fn an_event_says_where_and_why_and_can_be_named() {
        let error = denied();
        let event = event(&error, None, "node-1").expect("an Event");
        assert_eq!(event.message, Some(format!("Cannot listen on 127.96.0.9:80: {}", error.message)));
        // The API server takes a prefix that ends in a dash; one that ends in a dot is no name.
        assert_eq!(event.metadata.generate_name.as_deref(), Some("web-"));
    }
}
