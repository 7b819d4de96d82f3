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
}

fn program(what: &str) -> Program {
    Program { image: "worker:v1".into(), command: vec!["worker".into(), what.into()] }
}

impl Service {
    /// Starts a runtime; it can pull `worker:v1`.
    pub async fn start() -> Self {
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
        };
        service.spawn().await;
        service
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
        let child = Command::new(env!("CARGO_BIN_EXE_coracle-runtime"))
            .arg("serve")
            .arg("--socket")
            .arg(self.dir.path().join("cri.sock"))
            .arg("--state-dir")
            .arg(self.state_dir())
            .args([
                "--pod-cidr",
                &format!("127.{}.{}.0/24", self.net.0, self.net.1),
                "--mirror",
                &format!("http://{}", self.registry.address),
            ])
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
        let programs = Programs {
            speaks_and_fails: program("fail"),
            failure: 1,
            sleeps: program("sleep"),
            writes_note: program("write"),
            reads_note: program("read"),
        };
        conformance::connect(Target {
            endpoint: self.endpoint(),
            programs,
            scratch: self.dir.path().join("scratch"),
            absent_image: "absent:v9".into(),
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
    }
}
