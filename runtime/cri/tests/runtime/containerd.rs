//! The suite holds on containerd too, so it asks for nothing that only we do. Needs root, runc, iproute2, busybox-static
//! and apt-get, which brings Debian's containerd.

use std::path::PathBuf;
use std::process::Command;

use coracle_cri::conformance::containerd::Containerd;
use coracle_cri::conformance::{self, Program, Programs, Target};

use crate::registry::Registry;

const PAUSE: &str = "coracle.test/pause:v1";

/// A network namespace; gone with it.
struct Namespace(String);

impl Namespace {
    fn make() -> Self {
        let name = format!("coracle-ctd-{}", std::process::id());
        for args in [vec!["netns", "add", &name], vec!["-n", &name, "link", "set", "lo", "up"]] {
            assert!(Command::new("ip").args(args).status().unwrap().success(), "this test needs root");
        }
        Self(name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_checks_pass_on_containerd() {
    let namespace = Namespace::make();
    let netns = PathBuf::from("/run/netns").join(&namespace.0);
    let registry = Registry::start_in(netns.clone()).await;
    registry.push_linux("busybox", "v1");
    let dir = tempfile::tempdir().unwrap();
    let containerd = Containerd::start(dir.path(), &netns, "10.88.0.0/24", PAUSE).unwrap();
    let archive = dir.path().join("pause.tar");
    Registry::archive(&archive, PAUSE);
    containerd.import(&archive).unwrap();
    let here =
        |program: Program| Program { image: format!("{}/{}", registry.address, program.image), ..program };
    let Programs { speaks_and_fails, failure, sleeps, writes_note, reads_note } = crate::linux::programs();
    let suite = conformance::connect(Target {
        endpoint: format!("unix://{}", containerd.socket().display()),
        handler: String::new(),
        programs: Programs {
            speaks_and_fails: here(speaks_and_fails),
            failure,
            sleeps: here(sleeps),
            writes_note: here(writes_note),
            reads_note: here(reads_note),
        },
        scratch: dir.path().join("scratch"),
        absent_image: format!("{}/absent:v9", registry.address),
        events: false,
        cgroup_parent: containerd.cgroup(),
    })
    .await
    .unwrap();
    crate::conformance::passes(&suite).await;
}
