//! A runtime process in a temporary folder.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use coracle_cri::conformance::{self, Program, Programs, Suite, Target};

use crate::programs::{WORKER, wasm};
use crate::registry::Registry;

/// Program, folder, registry. The wasm host is ended with it.
pub struct Service {
    pub dir: tempfile::TempDir,
    pub registry: Registry,
    /// Its pods are in 127.72.0.0/14, a /24 of their own: `127.<a>.<b>.0/24`.
    net: (u32, u32),
    child: Option<Child>,
    /// The network namespace of profile `routed`, and its CNI configuration.
    routed: Option<(String, Option<PathBuf>)>,
    /// Further flags of the service.
    flags: Vec<&'static str>,
}

fn program(what: &str) -> Program {
    Program { image: "worker:v1".into(), command: vec!["worker".into(), what.into()] }
}

impl Service {
    /// Starts a runtime; it can pull `worker:v1`.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with more flags.
    pub async fn start_with(flags: &[&'static str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Tests of one process never meet; those of two hardly.
        let index = (std::process::id() * 16 + NEXT.fetch_add(1, Ordering::Relaxed)) % 1024;
        let registry = Registry::start().await;
        registry.push("worker", "v1", &wasm(WORKER));
        let mut service = Self {
            dir: tempfile::tempdir().unwrap(),
            registry,
            net: (72 + index / 256, index % 256),
            child: None,
            routed: None,
            flags: flags.to_vec(),
        };
        service.spawn().await;
        service
    }

    /// Starts a runtime of profile `routed` in a namespace of its own; it can pull `worker:v1` and `busybox:v1`.
    pub async fn start_routed(cni: Option<&str>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let netns = format!("coracle-cri-{}-{serial}", std::process::id());
        for args in [vec!["netns", "add", &netns], vec!["-n", &netns, "link", "set", "lo", "up"]] {
            assert!(Command::new("ip").args(args).status().unwrap().success(), "this test needs root");
        }
        let registry = Registry::start_in(PathBuf::from("/run/netns").join(&netns)).await;
        registry.push("worker", "v1", &wasm(WORKER));
        registry.push_linux("busybox", "v1");
        let dir = tempfile::tempdir().unwrap();
        let cni = cni.map(|text| {
            let conf = dir.path().join("cni");
            std::fs::create_dir(&conf).unwrap();
            std::fs::write(conf.join("10-mynet.json"), text).unwrap();
            conf
        });
        let routed = Some((netns, cni));
        let mut service = Self { dir, registry, net: (0, 0), child: None, routed, flags: Vec::new() };
        service.spawn().await;
        service
    }

    /// What a program says in the namespace of profile `routed`.
    pub fn in_namespace(&self, command: &[&str]) -> String {
        let (netns, _) = self.routed.as_ref().unwrap();
        let out = Command::new("ip").args(["netns", "exec", netns]).args(command).output().unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
    }

    /// The service process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// An address for a Service of this test.
    pub fn service_address(&self) -> String {
        format!("127.{}.{}.7", self.net.0 + 28, self.net.1)
    }

    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.dir.path().join("cri.sock").display())
    }

    /// Starts the service process and waits until it answers.
    pub async fn spawn(&mut self) {
        let log =
            std::fs::OpenOptions::new().append(true).create(true).open(self.dir.path().join("log")).unwrap();
        let program = env!("CARGO_BIN_EXE_coracle-runtime");
        let mut command = match &self.routed {
            None => Command::new(program),
            Some((netns, _)) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{netns}")).arg(program);
                command
            }
        };
        let pods = match &self.routed {
            None => format!("127.{}.{}.0/24", self.net.0, self.net.1),
            Some(_) => "10.71.0.0/24".to_owned(),
        };
        command.arg("serve");
        if let Some((_, cni)) = &self.routed {
            command.args(["--cluster-cidr", if cni.is_some() { "10.22.0.0/16" } else { "10.71.0.0/16" }]);
            command.args(cni.iter().flat_map(|dir| ["--cni-conf-dir".as_ref(), dir.as_os_str()]));
        }
        let child = command
            .arg("--socket")
            .arg(self.dir.path().join("cri.sock"))
            .arg("--state-dir")
            .arg(self.state_dir())
            .args(["--pod-cidr", &pods, "--mirror", &format!("http://{}", self.registry.address)])
            .args(&self.flags)
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        for _ in 0..500 {
            if coracle_cri_api::connect(&self.endpoint()).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the service does not answer: {}", self.logs());
    }

    /// Kills the service process, as nothing else would; the wasm host lives on.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub async fn suite(&self) -> Suite {
        self.suite_of(Programs {
            speaks_and_fails: program("fail"),
            failure: 1,
            sleeps: program("sleep"),
            writes_note: program("write"),
            reads_note: program("read"),
        })
        .await
    }

    /// A suite with other programs.
    pub async fn suite_of(&self, programs: Programs) -> Suite {
        conformance::connect(Target {
            endpoint: self.endpoint(),
            handler: String::new(),
            programs,
            scratch: self.dir.path().join("scratch"),
            absent_image: "absent:v9".into(),
            events: true,
            cgroup_parent: String::new(),
        })
        .await
        .unwrap()
    }

    /// What service and host have said.
    pub fn logs(&self) -> String {
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        format!(
            "{}\n--- host\n{}",
            read(self.dir.path().join("log")),
            read(self.state_dir().join("wasm-host.log"))
        )
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        let state = self.state_dir();
        // A runtime of its own: the test's may be the one that is panicking.
        let ended = std::thread::spawn(move || {
            tokio::runtime::Runtime::new().unwrap().block_on(coracle_cri::end_hosts(&state))
        });
        if let Ok(Err(error)) = ended.join() {
            eprintln!("ending the wasm host: {error:#}");
        }
        self.clear_namespace();
    }
}

impl Service {
    /// Ends what this test has left in its namespace, and removes that.
    fn clear_namespace(&self) {
        let Some((netns, _)) = &self.routed else { return };
        for folder in ["containers", "pods"] {
            let entries =
                std::fs::read_dir(self.state_dir().join("oci").join(folder)).into_iter().flatten().flatten();
            for dir in entries.map(|e| e.path()) {
                let pid = std::fs::read_to_string(dir.join("pid")).ok().and_then(|p| p.trim().parse().ok());
                let ended =
                    std::fs::read_to_string(dir.join("state.json")).unwrap_or_default().contains("exited");
                if let Some(pid) = pid.filter(|_| !ended) {
                    let _ = nix::sys::signal::kill(
                        nix::unistd::Pid::from_raw(pid),
                        nix::sys::signal::Signal::SIGKILL,
                    );
                    // Its shim sees the end and cleans up.
                    std::thread::sleep(Duration::from_millis(300));
                }
                for mount in ["rootfs", "shm", "net", "ipc", "uts"] {
                    let _ = Command::new("umount")
                        .arg("--lazy")
                        .arg(dir.join(mount))
                        .stderr(Stdio::null())
                        .status();
                }
            }
        }
        let _ = Command::new("ip").args(["netns", "delete", netns]).status();
    }
}
