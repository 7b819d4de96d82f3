//! Bad values that Kubernetes shows as the Go struct it has them in: members under Go's names, in Go's order, unset ones too.

use serde_json::Value;

/// A member: its names in JSON and in Go, and how it looks when it is not set.
type Member = (&'static str, &'static str, &'static str);

/// A container's security context.
pub const SECURITY_CONTEXT: [Member; 12] = [
    ("capabilities", "Capabilities", "null"),
    ("privileged", "Privileged", "null"),
    ("seLinuxOptions", "SELinuxOptions", "null"),
    ("windowsOptions", "WindowsOptions", "null"),
    ("runAsUser", "RunAsUser", "null"),
    ("runAsGroup", "RunAsGroup", "null"),
    ("runAsNonRoot", "RunAsNonRoot", "null"),
    ("readOnlyRootFilesystem", "ReadOnlyRootFilesystem", "null"),
    ("allowPrivilegeEscalation", "AllowPrivilegeEscalation", "null"),
    ("procMount", "ProcMount", "null"),
    ("seccompProfile", "SeccompProfile", "null"),
    ("appArmorProfile", "AppArmorProfile", "null"),
];
/// How a StatefulSet is updated.
pub const UPDATE_STRATEGY: [Member; 2] =
    [("type", "Type", "\"\""), ("rollingUpdate", "RollingUpdate", "null")];
/// A port of a Service, as far as doubles are told by it.
pub const SERVICE_PORT: [Member; 6] = [
    ("", "Name", "\"\""),
    ("protocol", "Protocol", "\"\""),
    ("", "AppProtocol", "null"),
    ("port", "Port", "0"),
    ("", "TargetPort", "0"),
    ("", "NodePort", "0"),
];
/// A disruption budget's spec.
pub const DISRUPTION_BUDGET: [Member; 4] = [
    ("minAvailable", "MinAvailable", "null"),
    ("selector", "Selector", "null"),
    ("maxUnavailable", "MaxUnavailable", "null"),
    ("unhealthyPodEvictionPolicy", "UnhealthyPodEvictionPolicy", "null"),
];

/// The value as such a struct.
pub fn shown(value: &Value, members: &[Member]) -> String {
    let one = |(json, go, unset): &Member| match value.get(*json) {
        None | Some(Value::Null) => format!("\"{go}\":{unset}"),
        Some(value) => format!("\"{go}\":{value}"),
    };
    let members: Vec<String> = members.iter().map(one).collect();
    format!("{{{}}}", members.join(","))
}
