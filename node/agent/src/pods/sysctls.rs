//! Pure: which kernel parameters (`securityContext.sysctls`) a pod may set on this node. Rules and words are the kubelet's.

use k8s_openapi::api::core::v1::Pod;

/// Those that harm nobody else on the node.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// How those begin that belong to a namespace, and the field of a pod that takes the node's instead.
const NAMESPACED: [(&str, Namespace); 5] = [
    ("kernel.shm", Namespace::Ipc),
    ("kernel.msg", Namespace::Ipc),
    ("kernel.sem", Namespace::Ipc),
    ("fs.mqueue.", Namespace::Ipc),
    ("net.", Namespace::Net),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Namespace {
    Ipc,
    Net,
}

fn namespace(name: &str) -> Option<Namespace> {
    NAMESPACED.iter().find(|(start, _)| name.starts_with(start)).map(|(_, namespace)| *namespace)
}

/// Names are separated by dots or by slashes, as the first separator is; the other one is part of a name then.
fn normal(name: &str) -> String {
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let slashes = name.find(['.', '/']).is_some_and(|at| name[at..].starts_with('/'));
    if slashes { name.chars().map(swap).collect() } else { name.to_owned() }
}

/// `--allowed-unsafe-sysctls`: names, or how they begin (`net.core.*`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed(Vec<String>);

impl Allowed {
    /// Reads `kernel.msg*,net.core.somaxconn`.
    ///
    /// # Errors
    /// Which of them belongs to no namespace: setting it would set the node's.
    pub fn parse(text: &str) -> Result<Self, String> {
        let one = |pattern: &str| {
            let pattern = normal(pattern.trim());
            match namespace(pattern.trim_end_matches('*')) {
                Some(_) => Ok(pattern),
                None => Err(format!("the sysctls {pattern:?} are not known to be namespaced")),
            }
        };
        text.split(',').filter(|part| !part.trim().is_empty()).map(one).collect::<Result<_, _>>().map(Self)
    }

    /// As they were said.
    pub fn words(&self) -> &[String] {
        &self.0
    }

    fn has(&self, name: &str) -> bool {
        let fits = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => pattern == name,
        };
        SAFE.contains(&name) || self.0.iter().any(fits)
    }
}

/// Why the node does not take a pod, reason and words.
pub fn forbidden(pod: &Pod, allowed: &Allowed) -> Option<(&'static str, String)> {
    let spec = pod.spec.as_ref()?;
    let refused =
        |why: String| Some(("SysctlForbidden", format!("Pod was rejected: forbidden sysctl: {why}")));
    for sysctl in spec.security_context.as_ref()?.sysctls.iter().flatten() {
        let name = normal(&sysctl.name);
        if !allowed.has(&name) {
            return refused(format!("{name:?} not allowlisted"));
        }
        let shared = match namespace(&name) {
            Some(Namespace::Ipc) if spec.host_ipc == Some(true) => "ipc",
            Some(Namespace::Net) if spec.host_network == Some(true) => "net",
            _ => continue,
        };
        return refused(format!("{name:?} not allowed with host {shared} enabled"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unsafe_ones_need_the_operators_word() {
        let pod = |name: &str, host: &str| -> Pod {
            let mut spec =
                json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
            spec[host] = json!(true);
            serde_json::from_value(json!({"metadata": {}, "spec": spec})).expect("a Pod")
        };
        let none = Allowed::default();
        let some = Allowed::parse("kernel.msg*, net/core/somaxconn").expect("names");
        let why = |name: &str, host: &str, allowed: &Allowed| {
            forbidden(&pod(name, host), allowed).map(|(_, words)| words)
        };
        assert_eq!(why("net.ipv4.tcp_rmem", "enableServiceLinks", &none), None);
        assert_eq!(
            forbidden(&pod("kernel.msgmax", "enableServiceLinks"), &none),
            Some((
                "SysctlForbidden",
                "Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted".to_owned()
            ))
        );
        assert_eq!(why("kernel.msgmax", "enableServiceLinks", &some), None);
        assert_eq!(why("net/core/somaxconn", "enableServiceLinks", &some), None);
        assert!(why("net.core.somaxconn.more", "enableServiceLinks", &some).is_some());
        let words = "Pod was rejected: forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host net enabled";
        assert_eq!(why("net.ipv4.tcp_syncookies", "hostNetwork", &none).as_deref(), Some(words));
        assert!(
            why("kernel.shm_rmid_forced", "hostIPC", &none).is_some_and(|w| w.ends_with("host ipc enabled"))
        );
        assert!(Allowed::parse("vm.swappiness").unwrap_err().contains("are not known to be namespaced"));
    }
}
