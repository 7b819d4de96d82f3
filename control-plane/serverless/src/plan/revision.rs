//! A Revision becomes a Deployment, whose size the autoscaler decides, and a Service in front of its pods.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStatus};
use k8s_openapi::api::core::v1::{
    ContainerPort, EnvVar, PodTemplateSpec, Probe, Service, ServicePort, ServiceSpec, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::{Standing, owned, passed_on};
use crate::autoscaler::settings::Settings;
use crate::types::{CONFIGURATION_LABEL, REVISION_LABEL, Revision, RevisionStatus, SERVICE_LABEL};

/// The port of a container that names none (Knative's contract).
const DEFAULT_PORT: i32 = 8080;
/// The port of a revision's Service.
pub const SERVICE_PORT: i32 = 80;

/// The name of a revision's Deployment.
pub fn deployment_name(revision: &str) -> String {
    format!("{revision}-deployment")
}

fn labels(revision: &Revision) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<_, _> = [(REVISION_LABEL.to_owned(), revision.name_any())].into();
    for key in [CONFIGURATION_LABEL, SERVICE_LABEL] {
        if let Some(value) = revision.labels().get(key) {
            labels.insert(key.to_owned(), value.clone());
        }
    }
    labels
}

/// The port that the revision's first container with a port listens on.
fn port(revision: &Revision) -> i32 {
    let ports = revision.spec.pod.containers.iter().flat_map(|container| container.ports.iter().flatten());
    ports.map(|port| port.container_port).next().unwrap_or(DEFAULT_PORT)
}

/// The Deployment of a new revision: as many pods as it starts with.
pub fn deployment(revision: &Revision) -> Deployment {
    let labels = labels(revision);
    let mut pod = revision.spec.pod.clone();
    let port = port(revision);
    let serving = pod.containers.iter().position(|container| container.ports.is_some()).unwrap_or(0);
    for (at, container) in
        pod.containers.iter_mut().enumerate().filter(|(_, container)| container.name.is_empty())
    {
        container.name = if at == serving { "user-container".into() } else { format!("user-container-{at}") };
    }
    if let Some(container) = pod.containers.get_mut(serving) {
        if container.ports.as_ref().is_none_or(Vec::is_empty) {
            container.ports = Some(vec![ContainerPort { container_port: port, ..ContainerPort::default() }]);
        }
        for declared in container.ports.iter_mut().flatten() {
            // Knative's names of ports tell the protocol; they need not be unique in a pod.
            declared.name = None;
        }
        let told = [
            ("PORT", port.to_string()),
            ("K_REVISION", revision.name_any()),
            ("K_CONFIGURATION", revision.labels().get(CONFIGURATION_LABEL).cloned().unwrap_or_default()),
            ("K_SERVICE", revision.labels().get(SERVICE_LABEL).cloned().unwrap_or_default()),
        ];
        let env = container.env.get_or_insert_default();
        env.extend(told.map(|(name, value)| EnvVar {
            name: name.into(),
            value: Some(value),
            value_from: None,
        }));
        container.readiness_probe.get_or_insert_with(|| Probe {
            tcp_socket: Some(TCPSocketAction { port: IntOrString::Int(port), host: None }),
            period_seconds: Some(1),
            ..Probe::default()
        });
    }
    let mut pod_labels = revision.labels().clone();
    pod_labels.extend(labels.clone());
    let annotations = Some(passed_on(&revision.metadata));
    let mut metadata = owned(revision, &deployment_name(&revision.name_any()), labels.clone());
    metadata.annotations.clone_from(&annotations);
    let selector = [(REVISION_LABEL.to_owned(), revision.name_any())].into();
    Deployment {
        metadata,
        spec: Some(DeploymentSpec {
            replicas: Some(Settings::of(revision).initial()),
            selector: LabelSelector { match_labels: Some(selector), match_expressions: None },
            progress_deadline_seconds: Some(600),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(pod_labels), annotations, ..ObjectMeta::default() }),
                spec: Some(pod),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

/// The Service in front of a revision's pods.
pub fn service(revision: &Revision) -> Service {
    let mut metadata = owned(revision, &revision.name_any(), labels(revision));
    let concurrency = revision.spec.container_concurrency.unwrap_or(0).to_string();
    metadata.annotations =
        Some([(coracle_gateway::table::CONCURRENCY_ANNOTATION.to_owned(), concurrency)].into());
    Service {
        metadata,
        spec: Some(ServiceSpec {
            selector: Some([(REVISION_LABEL.to_owned(), revision.name_any())].into()),
            ports: Some(vec![ServicePort {
                name: Some("http".into()),
                port: SERVICE_PORT,
                protocol: Some("TCP".into()),
                target_port: Some(IntOrString::Int(port(revision))),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// What a Revision says of itself. Once ready it stays so without pods: that is what scaling to zero means.
pub fn status(revision: &Revision, deployment: &Deployment, now: &Time) -> RevisionStatus {
    let before = revision.status.clone().unwrap_or_default();
    let pods = deployment.status.clone().unwrap_or_default();
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or_default();
    let available = pods.available_replicas.unwrap_or_default();
    let was_ready = Standing::read(&before.conditions, "Ready") == Standing::True;
    let starts_at_zero = Settings::of(revision).initial() == 0;
    let ready = match failure(&pods) {
        Some(message) if !was_ready => Standing::False("ProgressDeadlineExceeded".into(), message),
        _ if available > 0 || was_ready || starts_at_zero => Standing::True,
        _ => Standing::Unknown("Deploying", String::new()),
    };
    let active = match (wanted, available) {
        (0, _) => Standing::False("NoTraffic".into(), "The target is not receiving traffic.".into()),
        (_, 0) => Standing::Unknown(
            "Queued",
            "Requests to the target are being buffered as resources are provisioned.".into(),
        ),
        _ => Standing::True,
    };
    RevisionStatus {
        observed_generation: revision.metadata.generation.unwrap_or_default(),
        conditions: vec![
            active.condition("Active", &before.conditions, now),
            ready.condition("Ready", &before.conditions, now),
        ],
        actual_replicas: available,
        desired_replicas: wanted,
    }
}

/// Why a Deployment makes no progress.
fn failure(status: &DeploymentStatus) -> Option<String> {
    let conditions = status.conditions.iter().flatten();
    let stuck = |kind: &str, state: &str| {
        conditions.clone().find(|condition| condition.type_ == kind && condition.status == state)
    };
    let found = stuck("ReplicaFailure", "True").or_else(|| stuck("Progressing", "False"))?;
    Some(found.message.clone().unwrap_or_else(|| found.type_.clone()))
}
