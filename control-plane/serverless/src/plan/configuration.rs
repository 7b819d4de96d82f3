//! A Configuration becomes a Revision for each change of it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::{Standing, owned, passed_on};
use crate::types::{
    CONFIGURATION_LABEL, Configuration, ConfigurationStatus, GENERATION_LABEL, Revision, SERVICE_LABEL,
};

/// The Revision of a Configuration's present generation.
pub fn revision(configuration: &Configuration) -> Revision {
    let template = &configuration.spec.template;
    let generation = configuration.metadata.generation.unwrap_or(1);
    let name = template
        .metadata
        .name
        .clone()
        .unwrap_or_else(|| format!("{}-{generation:05}", configuration.name_any()));
    let mut labels = template.metadata.labels.clone().unwrap_or_default();
    labels.insert(CONFIGURATION_LABEL.into(), configuration.name_any());
    labels.insert(GENERATION_LABEL.into(), generation.to_string());
    if let Some(service) = configuration.labels().get(SERVICE_LABEL) {
        labels.insert(SERVICE_LABEL.into(), service.clone());
    }
    let mut revision = Revision::new(&name, template.spec.clone());
    revision.metadata = owned(configuration, &name, labels);
    revision.metadata.annotations = Some(passed_on(&template.metadata));
    revision
}

/// The generation of the Configuration that a Revision was made of; 0 where it does not say.
pub fn generation(revision: &Revision) -> i64 {
    revision.labels().get(GENERATION_LABEL).and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// What a Configuration says of itself. `latest` is the revision of its generation, `revisions` are all.
pub fn status(
    configuration: &Configuration,
    latest: &Revision,
    revisions: &[Revision],
    now: &Time,
) -> ConfigurationStatus {
    let before = configuration.status.clone().unwrap_or_default();
    let standing = |revision: &Revision| {
        Standing::read(&revision.status.clone().unwrap_or_default().conditions, "Ready")
    };
    let ready = match standing(latest) {
        Standing::False(_, message) => Standing::False(
            "RevisionFailed".into(),
            format!("Revision {:?} failed with message: {message}.", latest.name_any()),
        ),
        other => other,
    };
    let newest_ready = revisions
        .iter()
        .filter(|revision| standing(revision) == Standing::True)
        .max_by_key(|revision| generation(revision))
        .map(ResourceExt::name_any);
    ConfigurationStatus {
        observed_generation: configuration.metadata.generation.unwrap_or_default(),
        conditions: vec![ready.condition("Ready", &before.conditions, now)],
        latest_created_revision_name: Some(latest.name_any()),
        latest_ready_revision_name: newest_ready.or(before.latest_ready_revision_name),
    }
}
