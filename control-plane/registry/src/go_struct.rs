//! Bad values that Kubernetes shows as the Go struct it has them in: members under Go's names, in Go's order, unset ones too.

use serde_json::Value;

/// A member of a struct.
pub struct Member {
    /// Its name in JSON; empty for one that is not told.
    json: &'static str,
    go: &'static str,
    /// How it looks when it is not set.
    unset: &'static str,
    /// Its own members, where it is a struct whose names in JSON Kubernetes does not use here.
    members: &'static [Member],
}

const fn plain(json: &'static str, go: &'static str, unset: &'static str) -> Member {
    Member { json, go, unset, members: &[] }
}

/// A pointer to a struct.
const fn nested(json: &'static str, go: &'static str, members: &'static [Member]) -> Member {
    Member { json, go, unset: "null", members }
}

static PROFILE: [Member; 2] =
    [plain("type", "Type", "\"\""), plain("localhostProfile", "LocalhostProfile", "null")];

/// A container's security context.
pub static SECURITY_CONTEXT: [Member; 12] = [
    nested("capabilities", "Capabilities", &[plain("add", "Add", "null"), plain("drop", "Drop", "null")]),
    plain("privileged", "Privileged", "null"),
    nested(
        "seLinuxOptions",
        "SELinuxOptions",
        &[
            plain("user", "User", "\"\""),
            plain("role", "Role", "\"\""),
            plain("type", "Type", "\"\""),
            plain("level", "Level", "\"\""),
        ],
    ),
    nested(
        "windowsOptions",
        "WindowsOptions",
        &[
            plain("gmsaCredentialSpecName", "GMSACredentialSpecName", "null"),
            plain("gmsaCredentialSpec", "GMSACredentialSpec", "null"),
            plain("runAsUserName", "RunAsUserName", "null"),
            plain("hostProcess", "HostProcess", "null"),
        ],
    ),
    plain("runAsUser", "RunAsUser", "null"),
    plain("runAsGroup", "RunAsGroup", "null"),
    plain("runAsNonRoot", "RunAsNonRoot", "null"),
    plain("readOnlyRootFilesystem", "ReadOnlyRootFilesystem", "null"),
    plain("allowPrivilegeEscalation", "AllowPrivilegeEscalation", "null"),
    plain("procMount", "ProcMount", "null"),
    nested("seccompProfile", "SeccompProfile", &PROFILE),
    nested("appArmorProfile", "AppArmorProfile", &PROFILE),
];
/// How a StatefulSet is updated.
pub static UPDATE_STRATEGY: [Member; 2] = [
    plain("type", "Type", "\"\""),
    nested(
        "rollingUpdate",
        "RollingUpdate",
        &[plain("partition", "Partition", "0"), plain("maxUnavailable", "MaxUnavailable", "null")],
    ),
];
/// A port of a Service, as far as doubles are told by it.
pub static SERVICE_PORT: [Member; 6] = [
    plain("", "Name", "\"\""),
    plain("protocol", "Protocol", "\"\""),
    plain("", "AppProtocol", "null"),
    plain("port", "Port", "0"),
    plain("", "TargetPort", "0"),
    plain("", "NodePort", "0"),
];
/// A disruption budget's spec. Its selector has names in JSON in Go too.
pub static DISRUPTION_BUDGET: [Member; 4] = [
    plain("minAvailable", "MinAvailable", "null"),
    plain("selector", "Selector", "null"),
    plain("maxUnavailable", "MaxUnavailable", "null"),
    plain("unhealthyPodEvictionPolicy", "UnhealthyPodEvictionPolicy", "null"),
];

/// The value as such a struct.
pub fn shown(value: &Value, members: &[Member]) -> String {
    let one = |member: &Member| match value.get(member.json) {
        None | Some(Value::Null) => format!("\"{}\":{}", member.go, member.unset),
        Some(value) if member.members.is_empty() => format!("\"{}\":{value}", member.go),
        Some(value) => format!("\"{}\":{}", member.go, shown(value, member.members)),
    };
    let members: Vec<String> = members.iter().map(one).collect();
    format!("{{{}}}", members.join(","))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn structs_within_structs_have_names_of_go_too() {
        let strategy = json!({"type": "None", "rollingUpdate": {"maxUnavailable": 1}});
        assert_eq!(
            shown(&strategy, &UPDATE_STRATEGY),
            r#"{"Type":"None","RollingUpdate":{"Partition":0,"MaxUnavailable":1}}"#
        );
        let context = json!({"privileged": true, "capabilities": {"add": ["NET_ADMIN"]}, "seccompProfile": {"type": "Unconfined"}});
        let shown = shown(&context, &SECURITY_CONTEXT);
        assert!(
            shown.starts_with(
                r#"{"Capabilities":{"Add":["NET_ADMIN"],"Drop":null},"Privileged":true,"SELinuxOptions":null,"#
            ),
            "{shown}"
        );
        let end = r#""SeccompProfile":{"Type":"Unconfined","LocalhostProfile":null},"AppArmorProfile":null}"#;
        assert!(shown.ends_with(end), "{shown}");
    }
}
