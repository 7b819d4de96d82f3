//! `/etc/hosts` of Linux containers, as the kubelet writes it.

use k8s_openapi::api::core::v1::Pod;

use super::config::hostname;
use crate::volumes::PodDir;
use crate::volumes::mounts::Mount;

const HEAD: &str = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n";

/// Pure: what the file says.
fn text(pod: &Pod, ips: &[String], cluster_domain: &str, node: Option<String>) -> String {
    let spec = pod.spec.as_ref();
    let mut text = node.unwrap_or_else(|| HEAD.to_owned());
    if spec.and_then(|s| s.host_network) != Some(true) {
        let (name, domain) = hostname::names(pod, cluster_domain);
        let full = domain.map(|domain| format!("\t{name}.{domain}")).unwrap_or_default();
        for ip in ips {
            text += &format!("{ip}{full}\t{name}\n");
        }
    }
    let aliases = spec.and_then(|s| s.host_aliases.as_deref()).unwrap_or_default();
    if !aliases.is_empty() {
        text += "\n# Entries added by HostAliases.\n";
        for alias in aliases {
            text += &format!("{}\t{}\n", alias.ip, alias.hostnames.clone().unwrap_or_default().join("\t"));
        }
    }
    text
}

/// Writes the file and says how the container gets to it; `None` where the container mounts its own.
///
/// # Errors
/// When the file cannot be written.
pub fn mount(
    pod: &Pod,
    spec: &k8s_openapi::api::core::v1::Container,
    dir: &PodDir,
    ips: &[String],
    cluster_domain: &str,
) -> Result<Option<Mount>, String> {
    if spec.volume_mounts.iter().flatten().any(|m| m.mount_path.trim_end_matches('/') == "/etc/hosts") {
        return Ok(None);
    }
    let node_network = pod.spec.as_ref().and_then(|s| s.host_network) == Some(true);
    let node = if node_network { std::fs::read_to_string("/etc/hosts").ok() } else { None };
    let path = dir.path.join("etc-hosts");
    std::fs::create_dir_all(&dir.path)
        .and_then(|()| std::fs::write(&path, text(pod, ips, cluster_domain, node)))
        .map_err(|e| format!("write {}: {e}", path.display()))?;
    let host_path = path.to_string_lossy().into_owned();
    Ok(Some(Mount { container_path: "/etc/hosts".to_owned(), host_path, ..Mount::default() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_aliases() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "ns"},
            "spec": {"containers": [], "subdomain": "sub", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]},
        }))
        .expect("a Pod");
        let text = text(&pod, &["10.0.0.1".to_owned()], "corp.example", None);
        assert!(text.contains("\n10.0.0.1\tp.sub.ns.svc.corp.example\tp\n"), "{text}");
        assert!(text.ends_with("# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"), "{text}");
    }
}
