//! What this machine is, from /proc and /etc. What cannot be read is empty, never an error.

/// A machine.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Processors that this process may use.
    pub cpus: i64,
    /// Bytes.
    pub memory: i64,
    /// The kernel's release.
    pub kernel: String,
    /// The distribution's name.
    pub os_image: String,
    /// Of /etc/machine-id.
    pub machine_id: String,
    /// Changes with every boot.
    pub boot_id: String,
}

fn read_line(path: &str) -> String {
    std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// Reads them.
pub fn read() -> Machine {
    let meminfo = read_line("/proc/meminfo");
    let total = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    let kib = total.and_then(|t| t.trim().trim_end_matches("kB").trim().parse::<i64>().ok()).unwrap_or(0);
    let release = read_line("/etc/os-release");
    let name = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    Machine {
        cpus: std::thread::available_parallelism().map_or(1, |n| i64::try_from(n.get()).unwrap_or(1)),
        memory: kib.saturating_mul(1024),
        kernel: read_line("/proc/sys/kernel/osrelease"),
        os_image: name.unwrap_or_default().trim_matches('"').to_owned(),
        machine_id: read_line("/etc/machine-id"),
        boot_id: read_line("/proc/sys/kernel/random/boot_id"),
    }
}
