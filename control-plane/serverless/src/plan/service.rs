//! A Service becomes a Configuration and a Route of its name.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::{Standing, owned, passed_on};
use crate::types::{
    Configuration, ConfigurationSpec, KnativeService, Route, RouteSpec, SERVICE_LABEL, ServiceStatus,
    Traffic, VISIBILITY_LABEL,
};

/// The Configuration of a Service.
pub fn configuration(service: &KnativeService) -> Configuration {
    let name = service.name_any();
    let labels = [(SERVICE_LABEL.to_owned(), name.clone())].into();
    let mut configuration =
        Configuration::new(&name, ConfigurationSpec { template: service.spec.template.clone() });
    configuration.metadata = owned(service, &name, labels);
    configuration.metadata.annotations = Some(passed_on(&service.metadata));
    configuration
}

/// The Route of a Service: all to the latest ready revision unless it says otherwise.
pub fn route(service: &KnativeService) -> Route {
    let name = service.name_any();
    let mut labels: std::collections::BTreeMap<_, _> = [(SERVICE_LABEL.to_owned(), name.clone())].into();
    if let Some(visibility) = service.labels().get(VISIBILITY_LABEL) {
        labels.insert(VISIBILITY_LABEL.to_owned(), visibility.clone());
    }
    let latest = Traffic { latest_revision: Some(true), percent: Some(100), ..Traffic::default() };
    let mut traffic = service.spec.traffic.clone();
    if traffic.is_empty() {
        traffic.push(latest);
    }
    for share in &mut traffic {
        if share.revision_name.is_none() {
            share.configuration_name = Some(name.clone());
            share.latest_revision = Some(true);
        }
    }
    let mut route = Route::new(&name, RouteSpec { traffic });
    route.metadata = owned(service, &name, labels);
    route.metadata.annotations = Some(passed_on(&service.metadata));
    route
}

/// What a Service says of itself.
pub fn status(
    service: &KnativeService,
    configuration: &Configuration,
    route: &Route,
    now: &Time,
) -> ServiceStatus {
    let before = service.status.clone().unwrap_or_default();
    let (of_configuration, of_route) =
        (configuration.status.clone().unwrap_or_default(), route.status.clone().unwrap_or_default());
    let current = |observed: i64, generation: Option<i64>, standing: Standing| {
        if observed == generation.unwrap_or_default() {
            standing
        } else {
            Standing::Unknown("OutOfDate", String::new())
        }
    };
    let configurations = current(
        of_configuration.observed_generation,
        configuration.metadata.generation,
        Standing::read(&of_configuration.conditions, "Ready"),
    );
    let routes = current(
        of_route.observed_generation,
        route.metadata.generation,
        Standing::read(&of_route.conditions, "Ready"),
    );
    let ready = Standing::all(&[&configurations, &routes]);
    ServiceStatus {
        observed_generation: service.metadata.generation.unwrap_or_default(),
        conditions: vec![
            configurations.condition("ConfigurationsReady", &before.conditions, now),
            ready.condition("Ready", &before.conditions, now),
            routes.condition("RoutesReady", &before.conditions, now),
        ],
        latest_created_revision_name: of_configuration.latest_created_revision_name,
        latest_ready_revision_name: of_configuration.latest_ready_revision_name,
        url: of_route.url,
        address: of_route.address,
        traffic: of_route.traffic,
    }
}
