//! The checks of the Pod Security Standards, in the words of Kubernetes and sorted by their names there.

use serde_json::Value;

use super::Level;
use crate::value::{at, entries, flag, items, number, present, text};

/// Capabilities that may be added at level baseline.
const DEFAULT_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
const SYSCTLS: [&str; 10] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_syncookies",
];
const VOLUMES: [&str; 8] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];
const SELINUX: [&str; 5] = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

type Check = fn(&Value, &mut Vec<String>);

/// From which level a check holds, and up to which a stricter one does not replace it.
const CHECKS: [(Level, Level, Check); 15] = [
    (Level::Restricted, Level::Restricted, privilege_escalation),
    (Level::Baseline, Level::Baseline, capabilities_baseline),
    (Level::Restricted, Level::Restricted, capabilities_restricted),
    (Level::Baseline, Level::Restricted, host_namespaces),
    (Level::Baseline, Level::Baseline, host_path),
    (Level::Baseline, Level::Restricted, host_ports),
    (Level::Baseline, Level::Restricted, privileged),
    (Level::Baseline, Level::Restricted, proc_mount),
    (Level::Restricted, Level::Restricted, volume_types),
    (Level::Restricted, Level::Restricted, non_root),
    (Level::Restricted, Level::Restricted, root_user),
    (Level::Baseline, Level::Restricted, selinux),
    (Level::Baseline, Level::Baseline, seccomp_baseline),
    (Level::Restricted, Level::Restricted, seccomp_restricted),
    (Level::Baseline, Level::Restricted, sysctls),
];

/// What of a pod spec a level does not allow.
pub fn violations(spec: &Value, level: Level) -> Vec<String> {
    let mut wrong = Vec::new();
    for (from, to, check) in CHECKS {
        if (from..=to).contains(&level) {
            check(spec, &mut wrong);
        }
    }
    wrong
}

fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["/initContainers", "/containers", "/ephemeralContainers"]
        .into_iter()
        .flat_map(move |list| items(spec, list))
}

/// The quoted names of the containers that a check finds, with their noun; `None` where there are none.
fn named(spec: &Value, bad: impl Fn(&Value) -> bool) -> Option<String> {
    let names: Vec<String> =
        containers(spec).filter(|c| bad(c)).map(|c| format!("{:?}", text(c, "/name"))).collect();
    listed("container", &names)
}

fn listed(noun: &str, names: &[String]) -> Option<String> {
    match names.len() {
        0 => None,
        1 => Some(format!("{noun} {}", names.join(", "))),
        _ => Some(format!("{noun}s {}", names.join(", "))),
    }
}

fn context<'a>(c: &'a Value, field: &str) -> &'a Value {
    at(c, &format!("/securityContext/{field}"))
}

fn privilege_escalation(spec: &Value, wrong: &mut Vec<String>) {
    let bad = |c: &Value| context(c, "allowPrivilegeEscalation").as_bool() != Some(false);
    if let Some(who) = named(spec, bad) {
        wrong.push(format!("allowPrivilegeEscalation != false ({who} must set securityContext.allowPrivilegeEscalation=false)"));
    }
}

fn added<'a>(c: &'a Value, allowed: &[&str]) -> Vec<&'a str> {
    let add = items(context(c, "capabilities"), "/add");
    add.iter().filter_map(Value::as_str).filter(|cap| !allowed.contains(cap)).collect()
}

fn all_added(spec: &Value, allowed: &[&str]) -> String {
    let mut all: Vec<String> =
        containers(spec).flat_map(|c| added(c, allowed)).map(|cap| format!("{cap:?}")).collect();
    all.sort();
    all.dedup();
    all.join(", ")
}

fn capabilities_baseline(spec: &Value, wrong: &mut Vec<String>) {
    if let Some(who) = named(spec, |c| !added(c, &DEFAULT_CAPABILITIES).is_empty()) {
        let what = all_added(spec, &DEFAULT_CAPABILITIES);
        wrong.push(format!(
            "non-default capabilities ({who} must not include {what} in securityContext.capabilities.add)"
        ));
    }
}

fn capabilities_restricted(spec: &Value, wrong: &mut Vec<String>) {
    const ALLOWED: [&str; 1] = ["NET_BIND_SERVICE"];
    let mut parts = Vec::new();
    if let Some(who) = named(spec, |c| !items(context(c, "capabilities"), "/drop").iter().any(|d| d == "ALL"))
    {
        parts.push(format!("{who} must set securityContext.capabilities.drop=[\"ALL\"]"));
    }
    if let Some(who) = named(spec, |c| !added(c, &ALLOWED).is_empty()) {
        let what = all_added(spec, &ALLOWED);
        parts.push(format!("{who} must not include {what} in securityContext.capabilities.add"));
    }
    if !parts.is_empty() {
        wrong.push(format!("unrestricted capabilities ({})", parts.join("; ")));
    }
}

fn host_namespaces(spec: &Value, wrong: &mut Vec<String>) {
    let shared: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|field| flag(spec, &format!("/{field}")))
        .map(|field| format!("{field}=true"))
        .collect();
    if !shared.is_empty() {
        wrong.push(format!("host namespaces ({})", shared.join(", ")));
    }
}

fn host_path(spec: &Value, wrong: &mut Vec<String>) {
    let names: Vec<String> = items(spec, "/volumes")
        .iter()
        .filter(|v| present(v, "/hostPath"))
        .map(|v| format!("{:?}", text(v, "/name")))
        .collect();
    if let Some(which) = listed("volume", &names) {
        wrong.push(format!("hostPath volumes ({which})"));
    }
}

fn host_ports(spec: &Value, wrong: &mut Vec<String>) {
    let ports = |c: &Value| -> Vec<i64> {
        items(c, "/ports").iter().map(|p| number(p, "/hostPort")).filter(|p| *p != 0).collect()
    };
    let Some(who) = named(spec, |c| !ports(c).is_empty()) else { return };
    let mut all: Vec<i64> = containers(spec).flat_map(ports).collect();
    all.sort_unstable();
    all.dedup();
    let noun = if all.len() == 1 { "hostPort" } else { "hostPorts" };
    let uses = if who.starts_with("containers ") { "use" } else { "uses" };
    let list: Vec<String> = all.iter().map(i64::to_string).collect();
    wrong.push(format!("{noun} ({who} {uses} {noun} {})", list.join(", ")));
}

fn privileged(spec: &Value, wrong: &mut Vec<String>) {
    if let Some(who) = named(spec, |c| context(c, "privileged").as_bool() == Some(true)) {
        wrong.push(format!("privileged ({who} must not set securityContext.privileged=true)"));
    }
}

fn proc_mount(spec: &Value, wrong: &mut Vec<String>) {
    let bad = |c: &Value| context(c, "procMount").as_str().is_some_and(|m| !matches!(m, "" | "Default"));
    if let Some(who) = named(spec, bad) {
        wrong.push(format!("procMount ({who} must not set securityContext.procMount to \"Unmasked\")"));
    }
}

fn volume_types(spec: &Value, wrong: &mut Vec<String>) {
    let mut kinds = Vec::new();
    let names: Vec<String> = items(spec, "/volumes")
        .iter()
        .filter(|v| {
            let bad = entries(v, "")
                .find(|(k, source)| *k != "name" && !source.is_null() && !VOLUMES.contains(&k.as_str()));
            kinds.extend(bad.map(|(k, _)| format!("{k:?}")));
            bad.is_some()
        })
        .map(|v| format!("{:?}", text(v, "/name")))
        .collect();
    kinds.sort();
    kinds.dedup();
    if let Some(which) = listed("volume", &names) {
        let uses = if names.len() == 1 { "uses" } else { "use" };
        let noun = if kinds.len() == 1 { "type" } else { "types" };
        wrong.push(format!(
            "restricted volume types ({which} {uses} restricted volume {noun} {})",
            kinds.join(", ")
        ));
    }
}

fn non_root(spec: &Value, wrong: &mut Vec<String>) {
    let pod = at(spec, "/securityContext/runAsNonRoot").as_bool();
    let mut parts = Vec::new();
    if pod == Some(false) {
        parts.push("pod must not set securityContext.runAsNonRoot=false".to_string());
    }
    if let Some(who) = named(spec, |c| context(c, "runAsNonRoot").as_bool() == Some(false)) {
        parts.push(format!("{who} must not set securityContext.runAsNonRoot=false"));
    }
    if parts.is_empty()
        && pod.is_none()
        && let Some(who) = named(spec, |c| context(c, "runAsNonRoot").is_null())
    {
        parts.push(format!("pod or {who} must set securityContext.runAsNonRoot=true"));
    }
    if !parts.is_empty() {
        wrong.push(format!("runAsNonRoot != true ({})", parts.join(", ")));
    }
}

fn root_user(spec: &Value, wrong: &mut Vec<String>) {
    let mut parts = Vec::new();
    if at(spec, "/securityContext/runAsUser").as_i64() == Some(0) {
        parts.push("pod must not set runAsUser=0".to_string());
    }
    if let Some(who) = named(spec, |c| context(c, "runAsUser").as_i64() == Some(0)) {
        parts.push(format!("{who} must not set runAsUser=0"));
    }
    if !parts.is_empty() {
        wrong.push(format!("runAsUser=0 ({})", parts.join(", ")));
    }
}

fn selinux(spec: &Value, wrong: &mut Vec<String>) {
    let bad = |holder: &Value| {
        let options = context(holder, "seLinuxOptions");
        !SELINUX.contains(&text(options, "/type"))
            || !text(options, "/user").is_empty()
            || !text(options, "/role").is_empty()
    };
    let mut parts = Vec::new();
    if bad(spec) {
        parts.push("pod".to_string());
    }
    parts.extend(named(spec, bad));
    if !parts.is_empty() {
        wrong.push(format!(
            "seLinuxOptions ({} set forbidden securityContext.seLinuxOptions)",
            parts.join(" and ")
        ));
    }
}

fn profile(holder: &Value) -> Option<&str> {
    context(holder, "seccompProfile").get("type").and_then(Value::as_str)
}

fn seccomp_baseline(spec: &Value, wrong: &mut Vec<String>) {
    let mut parts = Vec::new();
    if profile(spec) == Some("Unconfined") {
        parts.push("pod".to_string());
    }
    parts.extend(named(spec, |c| profile(c) == Some("Unconfined")));
    if !parts.is_empty() {
        let who = parts.join(" and ");
        wrong.push(format!(
            "seccompProfile ({who} must not set securityContext.seccompProfile.type to \"Unconfined\")"
        ));
    }
}

fn seccomp_restricted(spec: &Value, wrong: &mut Vec<String>) {
    let fits = |profile: Option<&str>| matches!(profile, Some("RuntimeDefault" | "Localhost"));
    let pod = profile(spec);
    let mut parts = Vec::new();
    if pod.is_some() && !fits(pod) {
        parts.push("pod must not set securityContext.seccompProfile.type to \"Unconfined\"".to_string());
    }
    if let Some(who) = named(spec, |c| profile(c).is_some() && !fits(profile(c))) {
        parts.push(format!("{who} must not set securityContext.seccompProfile.type to \"Unconfined\""));
    }
    if pod.is_none()
        && let Some(who) = named(spec, |c| profile(c).is_none())
    {
        parts.push(format!(
            "pod or {who} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\""
        ));
    }
    if !parts.is_empty() {
        wrong.push(format!("seccompProfile ({})", parts.join(", ")));
    }
}

fn sysctls(spec: &Value, wrong: &mut Vec<String>) {
    let names: Vec<&str> = items(spec, "/securityContext/sysctls")
        .iter()
        .map(|s| text(s, "/name"))
        .filter(|name| !SYSCTLS.contains(name))
        .collect();
    if !names.is_empty() {
        wrong.push(format!("forbidden sysctls ({})", names.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_plain_pod_is_baseline_but_not_restricted() {
        let plain = json!({"containers": [{"name": "c", "image": "i"}]});
        assert_eq!(violations(&plain, Level::Baseline), Vec::<String>::new());
        assert_eq!(
            violations(&plain, Level::Restricted),
            [
                "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false)",
                "unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"])",
                "runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true)",
                "seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
            ]
        );
    }

    #[test]
    fn what_baseline_refuses() {
        let bad = json!({"hostNetwork": true, "volumes": [{"name": "v", "hostPath": {"path": "/"}}],
            "containers": [{"name": "a", "ports": [{"hostPort": 80}], "securityContext": {"privileged": true}}, {"name": "b", "securityContext": {"privileged": true}}]});
        assert_eq!(
            violations(&bad, Level::Baseline),
            [
                "host namespaces (hostNetwork=true)",
                "hostPath volumes (volume \"v\")",
                "hostPort (container \"a\" uses hostPort 80)",
                "privileged (containers \"a\", \"b\" must not set securityContext.privileged=true)",
            ]
        );
        let good = json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]});
        assert_eq!(violations(&good, Level::Restricted), Vec::<String>::new());
    }
}
