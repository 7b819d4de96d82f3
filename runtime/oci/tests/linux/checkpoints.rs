//! Containers that are written to files, by an OCI runtime whose CRIU is stood in for.

use std::path::Path;
use std::process::Command;

use crate::host::{Host, until};

/// With a CRIU that works on this kernel; it takes its time while `slow` is there, and fails while `broken` is.
const RUNTIME: &str = r#"#!/bin/sh
case " $* " in *" checkpoint "*) ;; *) exec runc "$@" ;; esac
cd "$(dirname "$0")"
while [ "$1" != --image-path ]; do shift; done
if [ -e broken ]; then echo 'level=error msg="criu failed: type DUMP errno 3"' >&2; exit 1; fi
mkdir -p "$2"
while [ -e slow ]; do echo $$ > pid; sleep 0.05; done
echo pages > "$2/pages-1.img"
"#;

fn id(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

/// A container that has made a file, a socket and a hole, and removed a file of its image.
async fn container(host: &Host, pod: &str, id: &str) {
    host.pod(pod, [10, 9, 0, 2]).await;
    host.create(pod, id, &["/bin/sleep", "1000"], |_| ()).await.unwrap();
    host.engine.start(id).await.unwrap();
    let script = "echo new > /tmp/changed; rm /etc/passwd; \
                  dd if=/dev/zero of=/tmp/hole bs=1 count=1 seek=1G 2>/dev/null; exit 0";
    let change = ["/bin/sh", "-c", script].map(str::to_owned);
    assert_eq!(host.exec_sync(id, &change, None).await.unwrap().unwrap().exit_code, 0);
    let socket = host.dir.path().join("state/containers").join(id).join("upper/tmp/socket");
    let _ = std::os::unix::net::UnixListener::bind(socket).unwrap();
}

fn sh(script: &str) -> String {
    let out = Command::new("sh").args(["-c", script]).output().unwrap();
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Whether it is a whole checkpoint of that container.
fn check(location: &Path) {
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(location).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let listed = sh(&format!("tar -tf {}", location.display()));
    for entry in ["checkpoint/pages-1.img", "spec.dump", "config.dump", "rootfs-diff.tar"] {
        assert!(listed.lines().any(|l| l == entry), "no {entry} in {listed}");
    }
    let changes = format!("tar -xOf {} rootfs-diff.tar | tar", location.display());
    assert_eq!(sh(&format!("{changes} -xOf - tmp/changed")), "new\n");
    let listed = sh(&format!("{changes} -tvf -"));
    let of = |name: &str| listed.lines().find(|l| l.ends_with(name)).unwrap_or_default().to_owned();
    assert!(of(" tmp/hole").contains("1073741825") && of(" etc/passwd").starts_with('c'), "{listed}");
    assert!(of("socket").is_empty(), "{listed}");
    assert!(std::fs::metadata(location).unwrap().len() < 1 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_written_to_a_file_and_runs_on() {
    let mut host = Host::new().await;
    host.restart_with(RUNTIME).await;
    let (pod, c) = (id("pod-k"), id("kept"));
    container(&host, &pod, &c).await;
    let location = host.dir.path().join("checkpoint.tar");
    host.engine.checkpoint(&c, &location).await.unwrap();
    check(&location);
    // What is there is neither written over nor removed; what fails says why and leaves nothing.
    let refused = format!("{:#}", host.engine.checkpoint(&c, &location).await.unwrap_err());
    assert!(refused.contains("exists"), "{refused}");
    check(&location);
    std::fs::write(host.dir.path().join("broken"), "").unwrap();
    let other = host.dir.path().join("other.tar");
    let refused = format!("{:#}", host.engine.checkpoint(&c, &other).await.unwrap_err());
    assert!(refused.contains("criu failed: type DUMP errno 3") && !other.exists(), "{refused}");
    assert!(host.engine.usage(&c).is_some_and(|u| u.processes == 1), "it runs on");
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_of_a_container_are_one_at_a_time_and_end_with_their_caller() {
    let mut host = Host::new().await;
    host.restart_with(RUNTIME).await;
    let (pod, c) = (id("pod-l"), id("once"));
    container(&host, &pod, &c).await;
    let path = |name: &str| host.dir.path().join(name);
    let (first, second) = (path("first.tar"), path("second.tar"));
    std::fs::write(path("slow"), "").unwrap();
    let (written, ()) = tokio::join!(host.engine.checkpoint(&c, &first), async {
        until("the first is under way", || path("pid").exists()).await;
        let refused = host.engine.checkpoint(&c, &second).await.unwrap_err();
        assert!(format!("{refused:#}").contains("another checkpoint"), "{refused:#}");
        std::fs::remove_file(path("slow")).unwrap();
    });
    written.unwrap();
    check(&first);
    assert!(!second.exists());

    // Nobody waits for it any more: neither the call nor a file is left, and the next one is made.
    std::fs::remove_file(path("pid")).unwrap();
    std::fs::write(path("slow"), "").unwrap();
    tokio::select! {
        written = host.engine.checkpoint(&c, &second) => panic!("{written:?}"),
        () = until("it is under way", || path("pid").exists()) => {}
    }
    assert!(!second.exists());
    let pid = std::fs::read_to_string(path("pid")).unwrap();
    let dead = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    };
    until("its call is gone", dead).await;
    std::fs::remove_file(path("slow")).unwrap();
    host.engine.checkpoint(&c, &second).await.unwrap();
    check(&second);

    // A service that was killed meanwhile is in nobody's way.
    let left = path("state/containers").join(&c).join("checkpoint");
    std::fs::create_dir(&left).unwrap();
    let third = path("third.tar");
    assert!(host.engine.checkpoint(&c, &third).await.is_err() && !third.exists());
    let path = host.dir.path().to_owned();
    host.restart_with(RUNTIME).await;
    host.engine.checkpoint(&c, &path.join("third.tar")).await.unwrap();
    host.finish().await;
}
