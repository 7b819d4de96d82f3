//! What is run: arguments, environment, user, capabilities.

use coracle_cri_api::v1;
use serde_json::{Value, json};

use super::{Error, Parts, user, wrong};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a container may do without asking; the same as other runtimes give.
const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Every capability, in the kernel's order.
const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

pub(super) fn process(
    parts: &Parts<'_>,
    security: &v1::LinuxContainerSecurityContext,
) -> Result<Value, Error> {
    let (config, image) = (parts.config, parts.image.config().clone().unwrap_or_default());
    let cwd = [config.working_dir.clone(), image.working_dir().clone().unwrap_or_default()];
    let cwd = cwd.into_iter().find(|c| !c.is_empty()).unwrap_or_else(|| "/".into());
    if !cwd.starts_with('/') {
        return wrong(format!("the working directory {cwd:?} is not absolute"));
    }
    let capabilities = capabilities(security)?;
    let mut process = json!({
        "terminal": config.tty,
        "user": user::resolve(parts.rootfs, security, image.user().as_deref().unwrap_or_default())?,
        "args": arguments(config, &image)?,
        "env": environment(parts, &image),
        "cwd": cwd,
        "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        "noNewPrivileges": security.no_new_privs,
    });
    let score = config.linux.as_ref().and_then(|l| l.resources.as_ref()).map_or(0, |r| r.oom_score_adj);
    if score != 0 {
        process["oomScoreAdj"] = json!(score.max(lowest_oom_score()));
    }
    Ok(process)
}

/// The lowest score that this process may give: without CAP_SYS_RESOURCE (itself in a container) none below its own.
fn lowest_oom_score() -> i64 {
    const SYS_RESOURCE: u64 = 1 << 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(u64::MAX);
    if effective & SYS_RESOURCE != 0 {
        return -1000;
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    own.trim().parse().unwrap_or(-1000)
}

/// A command replaces the image's entrypoint and its arguments, arguments alone replace the image's arguments.
fn arguments(config: &v1::ContainerConfig, image: &oci_spec::image::Config) -> Result<Vec<String>, Error> {
    let (entrypoint, cmd) =
        (image.entrypoint().clone().unwrap_or_default(), image.cmd().clone().unwrap_or_default());
    let args = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => [config.command.clone(), config.args.clone()].concat(),
        (true, false) => [entrypoint, config.args.clone()].concat(),
        (true, true) => [entrypoint, cmd].concat(),
    };
    if args.is_empty() {
        return wrong("no command is given, neither by the container nor by its image");
    }
    Ok(args)
}

fn environment(parts: &Parts<'_>, image: &oci_spec::image::Config) -> Vec<String> {
    let mut env = vec![PATH.to_owned()];
    if parts.config.tty {
        env.push("TERM=xterm".into());
    }
    let hostname = &parts.sandbox.hostname;
    if !hostname.is_empty() {
        env.push(format!("HOSTNAME={hostname}"));
    }
    let given = parts.config.envs.iter().map(|e| format!("{}={}", e.key, e.value));
    for entry in image.env().clone().unwrap_or_default().into_iter().chain(given) {
        let name = entry.split('=').next().unwrap_or_default();
        env.retain(|old| old.split('=').next() != Some(name));
        env.push(entry);
    }
    env
}

fn capabilities(security: &v1::LinuxContainerSecurityContext) -> Result<Vec<&'static str>, Error> {
    if security.privileged {
        return Ok(ALL.to_vec());
    }
    let asked = security.capabilities.clone().unwrap_or_default();
    let named = |name: &String| {
        let name = name.to_ascii_uppercase();
        let long = if name.starts_with("CAP_") { name } else { format!("CAP_{name}") };
        ALL.iter().copied().find(|known| *known == long)
    };
    let has_all = |list: &[String]| list.iter().any(|n| n.eq_ignore_ascii_case("all"));
    let mut set: Vec<&'static str> = DEFAULT.to_vec();
    if has_all(&asked.add_capabilities) {
        set = ALL.to_vec();
    }
    if has_all(&asked.drop_capabilities) {
        set.clear();
    }
    for name in asked.add_capabilities.iter().filter(|n| !n.eq_ignore_ascii_case("all")) {
        let Some(known) = named(name) else { return wrong(format!("there is no capability {name:?}")) };
        if !set.contains(&known) {
            set.push(known);
        }
    }
    // One that is unknown here is not there to be dropped.
    let dropped: Vec<_> = asked.drop_capabilities.iter().filter_map(named).collect();
    set.retain(|known| !dropped.contains(known));
    Ok(set)
}
