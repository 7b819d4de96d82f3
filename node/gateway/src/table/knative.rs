//! Knative's routes.

use super::{BackendKey, Matcher, PortName, Rule, Services, Table, by_age};
use crate::knative::{KnativeIngress, Split};

pub(super) fn add<'a>(
    table: &mut Table,
    routes: impl Iterator<Item = &'a KnativeIngress>,
    services: &Services,
) {
    for route in by_age(routes.filter(|route| route.metadata.deletion_timestamp.is_none())) {
        for rule in &route.spec.rules {
            for path in &rule.http.paths {
                let backends: Vec<_> = path
                    .splits
                    .iter()
                    .filter_map(|split| Some((table.intern(key(split), services), weight(split)?)))
                    .collect();
                if backends.is_empty() {
                    continue;
                }
                let matcher = Matcher::Prefix(path.path.clone().unwrap_or_else(|| "/".into()));
                for host in &rule.hosts {
                    let (matcher, backends) = (matcher.clone(), backends.clone());
                    table.add(Some(host), Rule { matcher, rewrite: None, backends });
                }
            }
        }
    }
}

fn key(split: &Split) -> BackendKey {
    BackendKey {
        namespace: split.service_namespace.clone(),
        service: split.service_name.clone(),
        port: PortName::Number(split.service_port),
    }
}

/// None for a share of nothing.
fn weight(split: &Split) -> Option<u32> {
    u32::try_from(split.percent).ok().filter(|percent| (1..=100).contains(percent))
}
