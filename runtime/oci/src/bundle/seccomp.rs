//! Which system calls a container may make: `RuntimeDefault`, `Localhost` (a profile from a file) and `Unconfined`.
//!
//! The default follows what other runtimes allow: all calls of ordinary programs, and those that a capability is for
//! where the container has that capability. What loads code into the kernel, changes clocks, mounts or enters
//! namespaces answers EPERM.

use std::path::Path;

use coracle_cri_api::v1::{LinuxContainerSecurityContext, security_profile::ProfileType};
use serde_json::{Value, json};

use super::{Error, wrong};

/// Allowed to all.
const ALLOWED: &str = include_str!("seccomp_allowed.txt");

/// Allowed to those who have the capability.
const WITH_CAPABILITY: [(&str, &[&str]); 14] = [
    ("CAP_DAC_READ_SEARCH", &["open_by_handle_at"]),
    (
        "CAP_SYS_ADMIN",
        &[
            "bpf",
            "clone",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "syslog",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    ("CAP_SYS_BOOT", &["reboot"]),
    ("CAP_SYS_CHROOT", &["chroot"]),
    ("CAP_SYS_MODULE", &["delete_module", "finit_module", "init_module"]),
    ("CAP_SYS_PACCT", &["acct"]),
    ("CAP_SYS_PTRACE", &["kcmp", "process_madvise"]),
    ("CAP_SYS_RAWIO", &["ioperm", "iopl"]),
    ("CAP_SYS_TIME", &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    ("CAP_SYS_TTY_CONFIG", &["vhangup"]),
    ("CAP_SYS_NICE", &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    ("CAP_SYSLOG", &["syslog"]),
    ("CAP_BPF", &["bpf"]),
    ("CAP_PERFMON", &["perf_event_open"]),
];

/// The flags of `clone` that make namespaces.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
/// AF_VSOCK: sockets of it lead past the container's network namespace.
const VSOCK: u64 = 40;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// The most of a profile's file that is read, in bytes.
const MAX_PROFILE: u64 = 1 << 20;

/// The profile of a container in the words of the OCI; `None`: it may call what it likes.
///
/// # Errors
/// When a profile's file cannot be read or is none.
pub(super) fn profile(
    security: &LinuxContainerSecurityContext,
    capabilities: &Value,
) -> Result<Option<Value>, Error> {
    let Some(asked) = security.seccomp.as_ref().filter(|_| !security.privileged) else { return Ok(None) };
    match asked.profile_type() {
        ProfileType::Unconfined => Ok(None),
        ProfileType::RuntimeDefault => Ok(Some(default(capabilities))),
        ProfileType::Localhost => from_file(Path::new(&asked.localhost_ref)).map(Some),
    }
}

fn architectures() -> Value {
    if cfg!(target_arch = "aarch64") {
        json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"])
    } else {
        json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"])
    }
}

fn default(capabilities: &Value) -> Value {
    let has = |name: &str| capabilities.as_array().is_some_and(|all| all.iter().any(|c| c == name));
    let mut names: Vec<&str> = ALLOWED.split_ascii_whitespace().collect();
    names.extend(WITH_CAPABILITY.iter().filter(|(c, _)| has(c)).flat_map(|(_, calls)| calls.iter().copied()));
    let allow = "SCMP_ACT_ALLOW";
    let mut rules = vec![
        json!({"names": names, "action": allow}),
        json!({"names": ["socket"], "action": allow, "args": [{"index": 0, "value": VSOCK, "op": "SCMP_CMP_NE"}]}),
    ];
    // The execution domains that do not loosen anything, and the question which one holds.
    for domain in [0x0, 0x0008, 0x0002_0000, 0x0002_0008, 0xffff_ffff_u64] {
        let args = json!([{"index": 0, "value": domain, "op": "SCMP_CMP_EQ"}]);
        rules.push(json!({"names": ["personality"], "action": allow, "args": args}));
    }
    if !has("CAP_SYS_ADMIN") {
        let plain = json!([{"index": 0, "value": NEW_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]);
        rules.push(json!({"names": ["clone"], "action": allow, "args": plain}));
        // Its flags lie in memory, where no rule can look: programs fall back to clone.
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}));
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": architectures(),
        "syscalls": rules,
    })
}

/// A profile as the OCI runtime specification has it; fields that it does not have are of other runtimes, and passed over.
fn from_file(path: &Path) -> Result<Value, Error> {
    use std::io::Read as _;
    if !path.is_absolute() {
        return wrong(format!("seccomp profile {:?}: the path is not absolute", path.display()));
    }
    let failed =
        |e: &dyn std::fmt::Display| Error(format!("cannot load seccomp profile {:?}: {e}", path.display()));
    let file = std::fs::File::open(path).map_err(|e| failed(&e))?;
    let mut text = Vec::new();
    file.take(MAX_PROFILE + 1).read_to_end(&mut text).map_err(|e| failed(&e))?;
    if text.len() as u64 > MAX_PROFILE {
        return Err(failed(&"it is larger than 1 MiB"));
    }
    let read: Value = serde_json::from_slice(&text).map_err(|e| failed(&e))?;
    let mut profile = serde_json::Map::new();
    for field in [
        "defaultAction",
        "defaultErrnoRet",
        "architectures",
        "flags",
        "listenerPath",
        "listenerMetadata",
        "syscalls",
    ] {
        profile.extend(read.get(field).map(|value| (field.to_owned(), value.clone())));
    }
    for rule in profile.get("syscalls").and_then(Value::as_array).into_iter().flatten() {
        // Of the form that Docker reads: without its condition a rule would hold for all containers.
        let says = |field: &&str| match rule.get(*field) {
            Some(Value::Object(map)) => !map.is_empty(),
            Some(value) => !value.is_null(),
            None => false,
        };
        if let Some(field) = ["includes", "excludes"].into_iter().find(says) {
            let calls = rule.get("names").unwrap_or(&Value::Null);
            return Err(failed(&format!(
                "the rule for {calls} holds under a condition ({field:?}), which is not supported"
            )));
        }
    }
    let profile = Value::Object(profile);
    serde_json::from_value::<oci_spec::runtime::LinuxSeccomp>(profile.clone()).map_err(|e| failed(&e))?;
    Ok(profile)
}
