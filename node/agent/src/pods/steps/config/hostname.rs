//! Pure: what a pod is called.

use k8s_openapi::api::core::v1::Pod;

/// The longest name of a host, in bytes, by DNS' rules for labels.
const MAX_LABEL: usize = 63;
/// The longest name of a host that the kernel keeps, in bytes.
const MAX_NODENAME: usize = 64;

/// A pod's hostname, and the domain below which it is known where it has a `subdomain`.
pub fn names(pod: &Pod, cluster_domain: &str) -> (String, Option<String>) {
    let Some(spec) = &pod.spec else { return (pod.metadata.name.clone().unwrap_or_default(), None) };
    if let Some(name) = &spec.hostname_override {
        return (name.clone(), None);
    }
    let own = spec.hostname.clone().filter(|name| !name.is_empty());
    let mut name = own.or_else(|| pod.metadata.name.clone()).unwrap_or_default();
    if name.len() > MAX_LABEL {
        name.truncate(name.floor_char_boundary(MAX_LABEL));
        name.truncate(name.trim_end_matches(['-', '.']).len());
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let subdomain = spec.subdomain.as_deref().filter(|s| !s.is_empty());
    (name, subdomain.map(|sub| format!("{sub}.{namespace}.svc.{cluster_domain}")))
}

/// What `hostname` says in a pod: its hostname, or with `setHostnameAsFQDN` the whole name.
///
/// # Errors
/// The words of a `FailedCreatePodSandBox` Event: the kernel has no room for the name.
pub fn nodename(pod: &Pod, cluster_domain: &str) -> Result<String, String> {
    let (name, domain) = names(pod, cluster_domain);
    let whole = pod.spec.as_ref().and_then(|s| s.set_hostname_as_fqdn) == Some(true);
    let Some(domain) = domain.filter(|_| whole) else { return Ok(name) };
    let whole = format!("{name}.{domain}");
    if whole.len() > MAX_NODENAME {
        return Err(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {whole} is too long \
             ({MAX_NODENAME} characters is the max, {} characters requested)",
            whole.len()
        ));
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        let mut pod = json!({"metadata": {"name": "web-0", "namespace": "shop"}, "spec": {"containers": []}});
        pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(pod).expect("a Pod")
    }

    #[test]
    fn the_whole_name_where_the_pod_asks_for_it() {
        let said = |spec: Value| nodename(&pod(spec), "corp.example");
        assert_eq!(said(json!({})).as_deref(), Ok("web-0"));
        assert_eq!(said(json!({"hostname": "a", "subdomain": "b"})).as_deref(), Ok("a"));
        assert_eq!(
            said(json!({"subdomain": "b", "setHostnameAsFQDN": true})).as_deref(),
            Ok("web-0.b.shop.svc.corp.example")
        );
        assert_eq!(said(json!({"setHostnameAsFQDN": true})).as_deref(), Ok("web-0"), "without a domain");
        let long = said(json!({"hostname": "h".repeat(60), "subdomain": "b", "setHostnameAsFQDN": true}))
            .unwrap_err();
        assert!(long.contains("is too long (64 characters is the max, 84 characters requested)"), "{long}");
    }

    #[test]
    fn an_override_is_the_name_whatever_else_is_said() {
        let over = pod(json!({"hostname": "a", "subdomain": "b", "hostnameOverride": "legacy.example.com"}));
        assert_eq!(names(&over, "cluster.local"), ("legacy.example.com".to_owned(), None));
        assert_eq!(nodename(&over, "cluster.local").as_deref(), Ok("legacy.example.com"));
    }

    #[test]
    fn long_names_are_cut() {
        let name = format!("{}-.bc", "a".repeat(61));
        let (cut, _) = names(&pod(json!({"hostname": name})), "cluster.local");
        assert_eq!(cut, "a".repeat(61));
    }
}
