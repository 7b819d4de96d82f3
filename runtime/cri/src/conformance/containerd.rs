//! containerd, the peer that the suite is run on too: Debian's package, unpacked and not installed (an installed one would
//! be started as a service of the machine), in a network namespace that the caller has made. Needs root, runc, and
//! `apt-get` where the packages are not unpacked yet.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// The packages that have containerd, its shim and the plugins that make pods' networks.
const PACKAGES: [&str; 2] = ["containerd", "containernetworking-plugins"];
/// The namespace of containerd that CRI's objects live in.
const NAMESPACE: &str = "k8s.io";
/// How long it may take to start.
const START: Duration = Duration::from_secs(30);

/// A containerd of its own: everything of it lies in one folder.
pub struct Containerd {
    child: Child,
    dir: PathBuf,
    programs: PathBuf,
}

/// The folder that the packages are unpacked in, once for all tests.
fn programs() -> Result<PathBuf> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/peers");
    let dir = target.join("containerd");
    fs::create_dir_all(&target)?;
    // One test at a time: apt-get has locks of its own, which it does not wait for.
    let lock = fs::File::create(target.join("lock"))?;
    lock.lock().context("wait for another test")?;
    if dir.join("usr/bin/containerd").is_file() {
        return Ok(dir);
    }
    let scratch = target.join(format!("containerd.{}", std::process::id()));
    fs::create_dir_all(scratch.join("packages"))?;
    let script = "apt-get -q download \"$@\" >&2 || { apt-get -q update >&2; apt-get -q download \"$@\" >&2; }; \
        for package in *.deb; do dpkg-deb -x $package ..; done";
    let fetched = Command::new("sh")
        .args(["-ec", script, "sh"])
        .args(PACKAGES)
        .current_dir(scratch.join("packages"))
        .output()
        .context("start apt-get")?;
    ensure!(
        fetched.status.success(),
        "fetching {PACKAGES:?} with apt-get: {}",
        String::from_utf8_lossy(&fetched.stderr)
    );
    fs::remove_dir_all(scratch.join("packages"))?;
    fs::rename(&scratch, &dir)?;
    Ok(dir)
}

impl Containerd {
    /// Starts one in `dir`, in the network namespace of this file, and waits until it answers. Its pods are in
    /// `pods` (a /24 such as `10.88.1.0/24`), their sandboxes are of the image `pause`, which has to be imported.
    ///
    /// # Errors
    /// Where a program is missing or it does not start; the end of its log is in the words.
    pub fn start(dir: &Path, netns: &Path, pods: &str, pause: &str) -> Result<Self> {
        let programs = programs()?;
        let programs = fs::canonicalize(programs)?;
        let (root, state, cni) = (dir.join("root"), dir.join("state"), dir.join("cni"));
        fs::create_dir_all(&cni)?;
        let bridge = format!("ctd{}", std::process::id() % 100_000);
        let network = format!(
            r#"{{"cniVersion": "0.3.1", "name": "pods", "type": "bridge", "bridge": "{bridge}", "isGateway": true,
            "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "{pods}"}}]], "dataDir": "{}"}}}}"#,
            dir.join("addresses").display()
        );
        fs::write(cni.join("10-pods.conf"), network)?;
        let config = format!(
            r#"version = 2
root = "{}"
state = "{}"
[grpc]
  address = "{}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  stream_server_address = "127.0.0.1"
  restrict_oom_score_adj = true
  stats_collect_period = 1
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{}"
    conf_dir = "{}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
[plugins."io.containerd.internal.v1.opt"]
  path = "{}"
"#,
            root.display(),
            state.display(),
            dir.join("containerd.sock").display(),
            programs.join("usr/lib/cni").display(),
            cni.display(),
            dir.join("opt").display(),
        );
        fs::write(dir.join("config.toml"), config)?;
        let log = fs::File::create(dir.join("containerd.log"))?;
        let path = std::env::var("PATH").unwrap_or_default();
        let child = Command::new("nsenter")
            .arg(format!("--net={}", netns.display()))
            .arg("--")
            .arg(programs.join("usr/bin/containerd"))
            .arg("--config")
            .arg(dir.join("config.toml"))
            .env("PATH", format!("{}:/usr/sbin:/sbin:{path}", programs.join("usr/bin").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("start containerd")?;
        let mut containerd = Self { child, dir: dir.to_owned(), programs };
        let started = Instant::now();
        while let Err(error) = containerd.ctr(&["version"]) {
            if started.elapsed() > START || containerd.child.try_wait()?.is_some() {
                bail!("containerd does not answer ({error:#}): {}", containerd.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(containerd)
    }

    /// Where it serves CRI.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    /// A control group for its pods, which ends with it.
    pub fn cgroup(&self) -> String {
        format!("/coracle-containerd-{}", self.child.id())
    }

    /// Runs its client on CRI's objects; the standard output.
    pub fn ctr(&self, args: &[&str]) -> Result<String> {
        let out = Command::new(self.programs.join("usr/bin/ctr"))
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", NAMESPACE])
            .args(args)
            .output()
            .context("start ctr")?;
        ensure!(out.status.success(), "ctr {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr));
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Makes the images of an archive known.
    pub fn import(&self, archive: &Path) -> Result<()> {
        let archive = archive.display().to_string();
        self.ctr(&["images", "import", "--snapshotter", "native", &archive]).map(drop)
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.dir.join("containerd.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(30).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Its shims: they outlive it.
    fn shims(&self) -> Vec<i32> {
        let own = self.socket().display().to_string();
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        ids.filter(|pid| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).into_owned();
            command.contains("containerd-shim") && command.contains(&own)
        })
        .collect()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- containerd\n{}", self.log());
        }
        let tasks = self.ctr(&["tasks", "list", "--quiet"]).unwrap_or_default();
        for task in tasks.split_whitespace() {
            let _ = self.ctr(&["tasks", "delete", "--force", task]);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in self.shims() {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        // What is still in use stays: a folder of controls goes only when it is empty.
        let own = self.cgroup();
        let below = |root: &Path| fs::remove_dir(root.join(own.trim_start_matches('/')));
        let controllers = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|e| e.path());
        for root in controllers.chain([PathBuf::from("/sys/fs/cgroup")]) {
            let _ = below(&root);
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = self.dir.display().to_string();
        let points: Vec<_> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
        for point in points.into_iter().rev().filter(|point| point.starts_with(&own)) {
            let _ = Command::new("umount").args(["--lazy", point]).stderr(Stdio::null()).status();
        }
    }
}
