//! An engine in a temporary folder, and pods and containers of busybox.

use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_cri_api::v1;
use coracle_oci::engine::{Container, Pod};
use coracle_oci::{Engine, Settings, State};
use coracle_streaming::{Far, Output, streams};
use oci_spec::image::ImageConfiguration;
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;

/// One node, as far as it matters here.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub engine: Engine,
    pub ends: UnboundedReceiver<(String, State)>,
    pub image: ImageConfiguration,
}

/// What a program that was run to its end has said.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit_code: i32,
}

/// A layer with busybox under the names of its applets.
fn layer(dir: &Path) -> PathBuf {
    let layer = dir.join("layer");
    std::fs::create_dir_all(layer.join("bin")).unwrap();
    std::fs::create_dir_all(layer.join("etc")).unwrap();
    std::fs::create_dir_all(layer.join("tmp")).unwrap();
    let busybox = Path::new("/bin/busybox");
    assert!(busybox.is_file(), "install busybox-static: apt-get install busybox-static");
    std::fs::copy(busybox, layer.join("bin/busybox")).unwrap();
    for applet in
        ["sh", "echo", "cat", "sleep", "ip", "ping", "id", "hostname", "dd", "stty", "wc", "nc", "true"]
    {
        std::os::unix::fs::symlink("busybox", layer.join("bin").join(applet)).unwrap();
    }
    std::fs::write(layer.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nweb:x:33:34::/:/bin/sh\n").unwrap();
    layer
}

impl Host {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        layer(dir.path());
        let (engine, ends) = Self::open(dir.path(), "runc".as_ref()).await;
        let image = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
            "config": {"Env": ["GREETING=hello"]}});
        Self { dir, engine, ends, image: serde_json::from_value(image).unwrap() }
    }

    async fn open(dir: &Path, runtime: &Path) -> (Engine, UnboundedReceiver<(String, State)>) {
        let settings = Settings {
            dir: dir.join("state"),
            runtime: runtime.to_owned(),
            shim_command: vec![env!("CARGO_BIN_EXE_coracle-oci-shim").into()],
            cdi_dirs: vec![dir.join("cdi")],
        };
        Engine::open(settings).await.unwrap()
    }

    /// As after a restart of the service.
    pub async fn restart(&mut self) {
        (self.engine, self.ends) = Self::open(self.dir.path(), "runc".as_ref()).await;
    }

    /// As after a restart with another OCI runtime: this script.
    pub async fn restart_with(&mut self, script: &str) {
        let path = self.dir.path().join("runtime.sh");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        (self.engine, self.ends) = Self::open(self.dir.path(), &path).await;
    }

    pub async fn pod(&self, id: &str, address: [u8; 4]) -> v1::PodSandboxConfig {
        let config = v1::PodSandboxConfig { hostname: id.to_owned(), ..Default::default() };
        self.make(id, &config, address).await;
        config
    }

    pub async fn make(&self, id: &str, config: &v1::PodSandboxConfig, address: [u8; 4]) {
        let pod = Pod { id, config, hostname: id, address: Some(address.into()) };
        self.engine.make_pod(pod).await.unwrap();
    }

    /// Creates a container of these arguments in a pod; answers its log's path.
    pub async fn create(
        &self,
        pod: &str,
        id: &str,
        args: &[&str],
        change: impl FnOnce(&mut v1::ContainerConfig),
    ) -> anyhow::Result<PathBuf> {
        let mut config = v1::ContainerConfig {
            command: args.iter().map(|a| (*a).to_owned()).collect(),
            ..Default::default()
        };
        change(&mut config);
        let log = self.dir.path().join(format!("{id}.log"));
        let sandbox = v1::PodSandboxConfig { hostname: pod.to_owned(), ..Default::default() };
        let container = Container {
            id,
            sandbox_id: pod,
            config: &config,
            sandbox: &sandbox,
            image: &self.image,
            layers: vec![self.dir.path().join("layer")],
            log_path: Some(log.clone()),
        };
        self.engine.create(container).await?;
        Ok(log)
    }

    /// Runs one more program to its end; `None` when the time was up first.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        limit: Option<Duration>,
    ) -> anyhow::Result<Option<Said>> {
        let (near, Far { stdin, mut output, sizes }) = streams();
        drop((stdin, sizes));
        let collect = async {
            let mut said = Said::default();
            while let Some(piece) = output.recv().await {
                match piece {
                    Output::Stdout(bytes) => said.stdout.extend(bytes),
                    Output::Stderr(bytes) => said.stderr.extend(bytes),
                }
            }
            said
        };
        let run = async { tokio::join!(self.engine.exec(id, command, false, near), collect) };
        match tokio::time::timeout(limit.unwrap_or(Duration::from_secs(30)), run).await {
            Err(_) => Ok(None),
            Ok((code, said)) => Ok(Some(Said { exit_code: code?, ..said })),
        }
    }

    /// The next end that is told.
    pub async fn end(&mut self) -> (String, i32, String) {
        let ended = tokio::time::timeout(Duration::from_secs(20), self.ends.recv()).await.unwrap();
        match ended.unwrap() {
            (id, State::Exited { exit_code, reason, .. }) => (id, exit_code, reason),
            other => panic!("{other:?}"),
        }
    }

    /// The text of a log, without times.
    pub fn log(path: &Path) -> String {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|l| format!("{}\n", l.split_once(' ').unwrap().1)).collect()
    }

    pub async fn finish(self) {
        for id in self.engine.containers() {
            self.engine.remove(&id).await.unwrap();
        }
        for id in self.engine.pods() {
            self.engine.remove_pod(&id).await.unwrap();
        }
        assert!(self.engine.layers_in_use().is_empty());
    }
}

/// Waits until something holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..400 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not in 20 s: {what}");
}
