//! `networking.k8s.io/v1` Ingress.

use k8s_openapi::api::networking::v1::{HTTPIngressPath, Ingress, IngressBackend, IngressClass};

use super::{BackendKey, Matcher, PortName, Rule, Services, Table, by_age};

/// The names of the classes that this gateway serves, whether or not an IngressClass of the name exists.
pub const CLASSES: [&str; 2] = ["coracle", "nginx"];
/// The controller that an IngressClass of another name may name.
const CONTROLLER: &str = "coracle.dev/ingress";
const LEGACY_CLASS: &str = "kubernetes.io/ingress.class";
const REWRITE: &str = "nginx.ingress.kubernetes.io/rewrite-target";
const DEFAULT_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";

/// Whether this gateway serves an Ingress. One without a class is served unless another controller's class is the default.
pub fn is_ours(ingress: &Ingress, classes: &[&IngressClass]) -> bool {
    let named = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_deref());
    let legacy =
        ingress.metadata.annotations.as_ref().and_then(|all| all.get(LEGACY_CLASS)).map(String::as_str);
    match named.or(legacy) {
        Some(name) => {
            let class = classes.iter().find(|class| class.metadata.name.as_deref() == Some(name));
            match class.and_then(|class| class.spec.as_ref()?.controller.as_deref()) {
                Some(controller) => controller == CONTROLLER || CLASSES.contains(&name),
                None => CLASSES.contains(&name),
            }
        }
        None => !classes.iter().any(|class| {
            let annotations = class.metadata.annotations.as_ref();
            let default =
                annotations.and_then(|all| all.get(DEFAULT_CLASS)).is_some_and(|value| value == "true");
            default && class.spec.as_ref().and_then(|spec| spec.controller.as_deref()) != Some(CONTROLLER)
        }),
    }
}

pub(super) fn add<'a>(
    table: &mut Table,
    ingresses: impl Iterator<Item = &'a Ingress>,
    classes: impl Iterator<Item = &'a IngressClass>,
    services: &Services,
) {
    let classes: Vec<_> = classes.collect();
    for ingress in by_age(ingresses.filter(|ingress| is_ours(ingress, &classes))) {
        let (Some(namespace), Some(spec)) = (&ingress.metadata.namespace, &ingress.spec) else { continue };
        let rewrite = ingress.metadata.annotations.as_ref().and_then(|all| all.get(REWRITE));
        for rule in spec.rules.iter().flatten() {
            for path in rule.http.iter().flat_map(|http| &http.paths) {
                if let Some(key) = key(namespace, &path.backend) {
                    let backends = vec![(table.intern(key, services), 1)];
                    let rule_of_path = Rule { matcher: matcher(path), rewrite: rewrite.cloned(), backends };
                    table.add(rule.host.as_deref(), rule_of_path);
                }
            }
        }
        if let Some(key) = spec.default_backend.as_ref().and_then(|backend| key(namespace, backend)) {
            let backends = vec![(table.intern(key, services), 1)];
            table.add(None, Rule { matcher: Matcher::Prefix("/".into()), rewrite: None, backends });
        }
    }
}

fn key(namespace: &str, backend: &IngressBackend) -> Option<BackendKey> {
    let service = backend.service.as_ref()?;
    let port = service.port.as_ref()?;
    let port = match (port.number, &port.name) {
        (Some(number), _) => PortName::Number(number),
        (None, name) => PortName::Name(name.clone()?),
    };
    Some(BackendKey { namespace: namespace.to_owned(), service: service.name.clone(), port })
}

fn matcher(path: &HTTPIngressPath) -> Matcher {
    let text = path.path.clone().unwrap_or_else(|| "/".into());
    match path.path_type.as_str() {
        "Exact" => Matcher::Exact(text),
        // Implementation-specific paths are prefixes here. A trailing group is what rewrite-target refers to.
        _ => Matcher::Prefix(
            text.find("(").map_or(text.as_str(), |at| text.get(..at).unwrap_or("/")).to_owned(),
        ),
    }
}
