//! Pure: `securityContext` of pod and container in the words of CRI.

use std::path::{Component, Path};

use coracle_cri_api::v1 as cri;
use k8s_openapi::api::core::v1::{
    AppArmorProfile, Capabilities, Container, Pod, PodSecurityContext, SELinuxOptions, SeccompProfile,
};

/// Paths of /proc and /sys that a container does not see, as runtimes have them.
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
/// Paths of /proc that a container cannot write.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The node's seccomp profiles.
#[derive(Clone, Copy, Debug)]
pub struct Profiles<'a> {
    /// Where those lie that pods name.
    pub folder: &'a Path,
    /// Who names none has the runtime's; without it, none.
    pub default: bool,
}

impl Default for Profiles<'_> {
    fn default() -> Self {
        Self { folder: Path::new(""), default: false }
    }
}

/// Whom an image's own configuration says to run as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUser {
    /// A number.
    pub uid: Option<i64>,
    /// A name; empty: none.
    pub name: String,
    /// The image is a Linux image; others run as nobody at all.
    pub linux: bool,
}

fn pod_context(pod: &Pod) -> PodSecurityContext {
    pod.spec.as_ref().and_then(|s| s.security_context.clone()).unwrap_or_default()
}

/// Whether pod or container asks for a namespace of the node.
pub fn namespaces(pod: &Pod) -> cri::NamespaceOption {
    let spec = pod.spec.as_ref();
    let asks = |field: Option<bool>| field.unwrap_or(false);
    let (network, pid, ipc) = (
        asks(spec.and_then(|s| s.host_network)),
        asks(spec.and_then(|s| s.host_pid)),
        asks(spec.and_then(|s| s.host_ipc)),
    );
    let shared = asks(spec.and_then(|s| s.share_process_namespace));
    let node = cri::NamespaceMode::Node;
    cri::NamespaceOption {
        network: if network { node } else { cri::NamespaceMode::Pod }.into(),
        pid: match (pid, shared) {
            (true, _) => node,
            (false, true) => cri::NamespaceMode::Pod,
            (false, false) => cri::NamespaceMode::Container,
        }
        .into(),
        ipc: if ipc { node } else { cri::NamespaceMode::Pod }.into(),
        ..Default::default()
    }
}

/// The sandbox's part.
pub fn sandbox(pod: &Pod, profiles: Profiles<'_>) -> cri::LinuxSandboxSecurityContext {
    let context = pod_context(pod);
    let privileged =
        pod.spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let privileged = privileged
        .into_iter()
        .any(|c| c.security_context.as_ref().is_some_and(|s| s.privileged == Some(true)));
    cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod)),
        run_as_user: context.run_as_user.map(value),
        run_as_group: context.run_as_group.map(value),
        supplemental_groups: groups(&context),
        supplemental_groups_policy: groups_policy(&context).into(),
        privileged,
        seccomp: Some(seccomp(context.seccomp_profile.as_ref(), profiles)),
        selinux_options: context.se_linux_options.as_ref().map(selinux),
        ..Default::default()
    }
}

fn value(value: i64) -> cri::Int64Value {
    cri::Int64Value { value }
}

/// `fsGroup` is one of the groups of every container.
fn groups(context: &PodSecurityContext) -> Vec<i64> {
    let all = context.fs_group.into_iter().chain(context.supplemental_groups.iter().flatten().copied());
    all.collect()
}

/// Whether the groups of the image's own files come to them.
fn groups_policy(context: &PodSecurityContext) -> cri::SupplementalGroupsPolicy {
    match context.supplemental_groups_policy.as_deref() {
        Some("Strict") => cri::SupplementalGroupsPolicy::Strict,
        _ => cri::SupplementalGroupsPolicy::Merge,
    }
}

/// A profile of the node lies below its folder; the API takes paths that stay there only.
fn seccomp(profile: Option<&SeccompProfile>, profiles: Profiles<'_>) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    let (kind, path) = match profile.map(|p| (p.type_.as_str(), p.localhost_profile.as_deref())) {
        Some(("RuntimeDefault", _)) => (ProfileType::RuntimeDefault, String::new()),
        Some(("Localhost", path)) => {
            let inside = |p: &&str| Path::new(p).components().all(|c| matches!(c, Component::Normal(_)));
            let path = path.filter(inside).map(|p| profiles.folder.join(p).to_string_lossy().into_owned());
            (ProfileType::Localhost, path.unwrap_or_default())
        }
        None if profiles.default => (ProfileType::RuntimeDefault, String::new()),
        _ => (ProfileType::Unconfined, String::new()),
    };
    cri::SecurityProfile { profile_type: kind.into(), localhost_ref: path }
}

fn apparmor(profile: &AppArmorProfile) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    let kind = match profile.type_.as_str() {
        "Localhost" => ProfileType::Localhost,
        "Unconfined" => ProfileType::Unconfined,
        _ => ProfileType::RuntimeDefault,
    };
    let path = profile.localhost_profile.clone().unwrap_or_default();
    cri::SecurityProfile { profile_type: kind.into(), localhost_ref: path }
}

fn selinux(options: &SELinuxOptions) -> cri::SeLinuxOption {
    cri::SeLinuxOption {
        user: options.user.clone().unwrap_or_default(),
        role: options.role.clone().unwrap_or_default(),
        r#type: options.type_.clone().unwrap_or_default(),
        level: options.level.clone().unwrap_or_default(),
    }
}

fn capabilities(asked: &Capabilities) -> cri::Capability {
    cri::Capability {
        add_capabilities: asked.add.clone().unwrap_or_default(),
        drop_capabilities: asked.drop.clone().unwrap_or_default(),
        add_ambient_capabilities: Vec::new(),
    }
}

/// A container's part.
///
/// # Errors
/// When it must not run as root and would: `CreateContainerConfigError`.
pub fn container(
    pod: &Pod,
    spec: &Container,
    image: &ImageUser,
    profiles: Profiles<'_>,
) -> Result<cri::LinuxContainerSecurityContext, String> {
    let shared = pod_context(pod);
    let own = spec.security_context.clone().unwrap_or_default();
    let user = own.run_as_user.or(shared.run_as_user);
    let group = own.run_as_group.or(shared.run_as_group);
    if own.run_as_non_root.or(shared.run_as_non_root) == Some(true) && image.linux {
        not_root(user, image)?;
    }
    let privileged = own.privileged.unwrap_or(false);
    let masked = !privileged && own.proc_mount.as_deref() != Some("Unmasked");
    let paths = |list: &[&str]| -> Vec<String> {
        if masked { list.iter().map(|p| (*p).to_owned()).collect() } else { Vec::new() }
    };
    Ok(cri::LinuxContainerSecurityContext {
        capabilities: own.capabilities.as_ref().map(capabilities),
        privileged,
        namespace_options: Some(namespaces(pod)),
        selinux_options: own.se_linux_options.as_ref().or(shared.se_linux_options.as_ref()).map(selinux),
        // Without a number the image's own user holds.
        run_as_user: user.or(image.uid).map(value),
        run_as_username: if user.is_none() && image.uid.is_none() {
            image.name.clone()
        } else {
            String::new()
        },
        run_as_group: group.map(value),
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: groups(&shared),
        supplemental_groups_policy: groups_policy(&shared).into(),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: Some(seccomp(own.seccomp_profile.as_ref().or(shared.seccomp_profile.as_ref()), profiles)),
        apparmor: own.app_armor_profile.as_ref().or(shared.app_armor_profile.as_ref()).map(apparmor),
        ..Default::default()
    })
}

/// The same, seeing the processes of the container of that id.
pub fn into(
    target: Option<String>,
    mut context: cri::LinuxContainerSecurityContext,
) -> cri::LinuxContainerSecurityContext {
    if let (Some(id), Some(options)) = (target, context.namespace_options.as_mut()) {
        options.pid = cri::NamespaceMode::Target.into();
        options.target_id = id;
    }
    context
}

fn not_root(user: Option<i64>, image: &ImageUser) -> Result<(), String> {
    match (user, image.uid, image.name.as_str()) {
        (Some(0), _, _) => Err("container's runAsUser breaks non-root policy".to_owned()),
        (Some(_), _, _) => Ok(()),
        (None, Some(0), _) | (None, None, "" | "root") => {
            Err("container has runAsNonRoot and image will run as root".to_owned())
        }
        (None, Some(_), _) => Ok(()),
        (None, None, name) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(context: serde_json::Value, own: serde_json::Value) -> Pod {
        let container = json!({"name": "a", "securityContext": own});
        let spec = json!({"securityContext": context, "containers": [container]});
        serde_json::from_value(json!({"metadata": {}, "spec": spec})).expect("a Pod")
    }

    fn of(pod: &Pod, image: &ImageUser) -> Result<cri::LinuxContainerSecurityContext, String> {
        on(pod, image, false)
    }

    fn on(pod: &Pod, image: &ImageUser, default: bool) -> Result<cri::LinuxContainerSecurityContext, String> {
        let profiles = Profiles { folder: Path::new("/node/seccomp"), default };
        container(pod, &pod.spec.as_ref().expect("a spec").containers[0], image, profiles)
    }

    #[test]
    fn the_containers_word_counts_before_the_pods() {
        let pod = pod(
            json!({"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4]}),
            json!({"runAsUser": 5, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
                   "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}}),
        );
        let made = of(&pod, &ImageUser::default()).expect("a context");
        assert_eq!(
            (made.run_as_user.map(|v| v.value), made.run_as_group.map(|v| v.value)),
            (Some(5), Some(2))
        );
        assert_eq!(made.supplemental_groups, [3, 4]);
        assert!(made.readonly_rootfs && made.no_new_privs && !made.privileged);
        assert_eq!(made.capabilities.expect("capabilities").drop_capabilities, ["ALL"]);
        assert!(made.masked_paths.contains(&"/proc/kcore".to_owned()));
    }

    #[test]
    fn groups_of_the_image_come_to_those_of_the_pod_unless_it_is_strict() {
        let policies = |context: serde_json::Value| {
            let pod = pod(context, json!({}));
            let own = of(&pod, &ImageUser::default()).expect("a context").supplemental_groups_policy();
            (own, super::sandbox(&pod, Profiles::default()).supplemental_groups_policy())
        };
        use cri::SupplementalGroupsPolicy::{Merge, Strict};
        assert_eq!(policies(json!({"supplementalGroupsPolicy": "Strict"})), (Strict, Strict));
        assert_eq!(policies(json!({"supplementalGroupsPolicy": "Merge"})), (Merge, Merge));
        assert_eq!(policies(json!({})), (Merge, Merge));
    }

    #[test]
    fn seccomp_profiles_lie_below_their_folder() {
        let asked = |profile: serde_json::Value| {
            let made = of(&pod(json!({"seccompProfile": profile}), json!({})), &ImageUser::default());
            made.expect("a context").seccomp.expect("a profile")
        };
        let named = |path: &str| asked(json!({"type": "Localhost", "localhostProfile": path})).localhost_ref;
        assert_eq!(named("own/strict.json"), "/node/seccomp/own/strict.json");
        assert_eq!((named("../x"), named("/etc/x")), (String::new(), String::new()));
        let kind = cri::security_profile::ProfileType::RuntimeDefault;
        assert_eq!(asked(json!({"type": "RuntimeDefault"})).profile_type(), kind);
    }

    #[test]
    fn who_names_no_profile_has_the_runtimes_where_the_node_says_so() {
        use cri::security_profile::ProfileType;
        let kinds = |pod: &Pod, default| {
            let made = on(pod, &ImageUser::default(), default).expect("a context");
            let profiles = Profiles { default, ..Profiles::default() };
            let both = [made.seccomp, sandbox(pod, profiles).seccomp];
            both.map(|profile| profile.expect("a profile").profile_type())
        };
        let plain = pod(json!({}), json!({}));
        assert_eq!(kinds(&plain, false), [ProfileType::Unconfined; 2]);
        assert_eq!(kinds(&plain, true), [ProfileType::RuntimeDefault; 2]);
        // Who says that it wants none has none.
        let free = pod(json!({"seccompProfile": {"type": "Unconfined"}}), json!({}));
        assert_eq!(kinds(&free, true), [ProfileType::Unconfined; 2]);
    }

    #[test]
    fn who_must_not_be_root() {
        let image = |uid, name: &str| ImageUser { uid, name: name.into(), linux: true };
        let must_not = pod(json!({"runAsNonRoot": true}), json!({}));
        assert!(of(&must_not, &image(None, "")).is_err());
        assert!(of(&must_not, &image(Some(0), "")).is_err());
        assert!(of(&must_not, &image(None, "app")).expect_err("a name").contains("non-numeric user (app)"));
        assert_eq!(of(&must_not, &image(Some(7), "")).expect("a number").run_as_user, Some(value(7)));
        // A wasm image has no user at all.
        assert!(of(&must_not, &ImageUser::default()).is_ok());
        let said = pod(json!({"runAsNonRoot": true}), json!({"runAsUser": 0}));
        assert!(of(&said, &image(Some(7), "")).is_err());
        assert_eq!(of(&pod(json!({}), json!({})), &image(None, "app")).expect("fine").run_as_username, "app");
    }
}
