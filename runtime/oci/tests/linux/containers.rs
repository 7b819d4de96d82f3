//! The life of a container.

use std::time::Duration;

use coracle_cri_api::v1;
use coracle_oci::State;
use coracle_streaming::{Output, streams};

use crate::host::{Host, until};

fn id(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_logs_and_exits() {
    let mut host = Host::new().await;
    let (pod, c) = (id("pod-a"), id("speaks"));
    host.pod(&pod, [10, 9, 0, 2]).await;
    let script = "echo $GREETING $(hostname) $(id -u); echo oops >&2; cat /etc/hosts | wc -l; exit 3";
    let log = host.create(&pod, &c, &["/bin/sh", "-c", script], |_| ()).await.unwrap();
    assert!(matches!(host.engine.start(&c).await.unwrap(), State::Running { .. }));
    assert_eq!(host.end().await, (c.clone(), 3, "Error".into()));
    let text = Host::log(&log);
    assert!(
        text.contains(&format!("stdout F hello {pod} 0\n")) && text.contains("stderr F oops\n"),
        "{text}"
    );
    // It is written to its own layer only.
    assert!(!host.dir.path().join("layer/proc/1").exists());
    let missing = host.create(&pod, &id("none"), &["/bin/no-such-program"], |_| ()).await.unwrap_err();
    assert!(format!("{missing:#}").contains("no-such-program"), "{missing:#}");
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_stopped_by_signal_and_by_force() {
    let mut host = Host::new().await;
    let pod = id("pod-b");
    host.pod(&pod, [10, 9, 0, 2]).await;
    let (kind, deaf) = (id("kind"), id("deaf"));
    let script = "trap 'exit 7' TERM; : > /tmp/deft; while true; do sleep 0.05; done";
    host.create(&pod, &kind, &["/bin/sh", "-c", script], |_| ()).await.unwrap();
    host.engine.start(&kind).await.unwrap();
    let deft = host.dir.path().join("state/containers").join(&kind).join("upper/tmp/deft");
    until("it takes the signal", || deft.exists()).await;
    let ended = host.engine.stop(&kind, 15, Duration::from_secs(10)).await.unwrap();
    assert!(matches!(ended, State::Exited { exit_code: 7, .. }), "{ended:?}");
    host.end().await;
    host.create(&pod, &deaf, &["/bin/sleep", "1000"], |_| ()).await.unwrap();
    host.engine.start(&deaf).await.unwrap();
    let ended = host.engine.stop(&deaf, 15, Duration::from_millis(300)).await.unwrap();
    assert!(matches!(ended, State::Exited { exit_code: 137, .. }), "{ended:?}");
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_and_are_told() {
    let mut host = Host::new().await;
    let (pod, c) = (id("pod-c"), id("greedy"));
    host.pod(&pod, [10, 9, 0, 2]).await;
    let limited = |config: &mut v1::ContainerConfig| {
        let resources = v1::LinuxContainerResources {
            memory_limit_in_bytes: 24 << 20,
            cpu_shares: 128,
            ..Default::default()
        };
        config.linux = Some(v1::LinuxContainerConfig { resources: Some(resources), security_context: None });
    };
    // dd takes its block from memory.
    host.create(&pod, &c, &["/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"], limited)
        .await
        .unwrap();
    host.engine.start(&c).await.unwrap();
    assert_eq!(host.end().await, (c.clone(), 137, "OOMKilled".into()));
    let modest = id("modest");
    host.create(&pod, &modest, &["/bin/sleep", "1000"], limited).await.unwrap();
    host.engine.start(&modest).await.unwrap();
    let usage = host.engine.usage(&modest).unwrap();
    assert!(usage.memory_bytes > 0 && usage.processes == 1, "{usage:?}");
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_are_run_beside() {
    let host = Host::new().await;
    let (pod, c) = (id("pod-d"), id("beside"));
    host.pod(&pod, [10, 9, 0, 2]).await;
    let user = |config: &mut v1::ContainerConfig| {
        let security =
            v1::LinuxContainerSecurityContext { run_as_username: "web".into(), ..Default::default() };
        config.linux = Some(v1::LinuxContainerConfig { resources: None, security_context: Some(security) });
    };
    host.create(&pod, &c, &["/bin/sleep", "1000"], user).await.unwrap();
    host.engine.start(&c).await.unwrap();
    let sh = |script: &str| ["/bin/sh", "-c", script].map(str::to_owned);
    let said = host.exec_sync(&c, &sh("id -u; echo no >&2; exit 5"), None).await.unwrap().unwrap();
    assert_eq!(
        (said.stdout.as_slice(), said.stderr.as_slice(), said.exit_code),
        (&b"33\n"[..], &b"no\n"[..], 5)
    );
    let late = host.exec_sync(&c, &sh("sleep 1000"), Some(Duration::from_millis(300))).await.unwrap();
    assert_eq!(late, None);
    let missing = host.exec_sync(&c, &["/no/such".to_owned()], None).await;
    assert!(format!("{:#}", missing.unwrap_err()).contains("/no/such"));

    // With streams: input goes in until it is closed.
    let (near, mut far) = streams();
    let stdin = far.stdin.take().unwrap();
    let command = ["/bin/wc", "-c"].map(str::to_owned);
    let (code, text) = tokio::join!(host.engine.exec(&c, &command, false, near), async {
        stdin.send("12345".into()).await.unwrap();
        drop(stdin);
        let mut text = Vec::new();
        while let Some(Output::Stdout(bytes)) = far.output.recv().await {
            text.extend_from_slice(&bytes);
        }
        text
    });
    assert_eq!((code.unwrap(), text.as_slice()), (0, &b"5\n"[..]));

    // With a terminal, whose size is known.
    let (near, mut far) = streams();
    far.sizes.send(coracle_streaming::Size { columns: 123, rows: 45 }).await.unwrap();
    let command = sh("sleep 0.2; stty size");
    let (code, text) = tokio::join!(host.engine.exec(&c, &command, true, near), async {
        let mut text = Vec::new();
        while let Some(Output::Stdout(bytes)) = far.output.recv().await {
            text.extend_from_slice(&bytes);
        }
        String::from_utf8_lossy(&text).into_owned()
    });
    assert_eq!((code.unwrap(), text.trim()), (0, "45 123"));
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn input_and_output_are_attached() {
    let mut host = Host::new().await;
    let (pod, c, t) = (id("pod-e"), id("cat"), id("tty"));
    host.pod(&pod, [10, 9, 0, 2]).await;
    let log = host.create(&pod, &c, &["/bin/cat"], |c| (c.stdin, c.stdin_once) = (true, true)).await.unwrap();
    host.engine.start(&c).await.unwrap();
    let (near, mut far) = streams();
    let stdin = far.stdin.take().unwrap();
    let (end, ()) = tokio::join!(host.engine.attach(&c, true, near), async {
        stdin.send("through\n".into()).await.unwrap();
        assert_eq!(far.output.recv().await, Some(Output::Stdout("through\n".into())));
        // The input is given once: its end is the program's end of file.
        drop((stdin, far));
    });
    drop(end);
    assert_eq!(host.end().await.1, 0);
    assert_eq!(Host::log(&log), "stdout F through\n");

    let log = host
        .create(&pod, &t, &["/bin/sh", "-c", "test -t 0 && echo terminal; exit 4"], |c| c.tty = true)
        .await
        .unwrap();
    host.engine.start(&t).await.unwrap();
    assert_eq!(host.end().await.1, 4);
    assert!(Host::log(&log).contains("stdout F terminal"), "{}", Host::log(&log));
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_that_dies_takes_its_container() {
    let mut host = Host::new().await;
    let (pod, c) = (id("pod-g"), id("orphan"));
    host.pod(&pod, [10, 9, 0, 2]).await;
    host.create(&pod, &c, &["/bin/sleep", "1000"], |_| ()).await.unwrap();
    host.engine.start(&c).await.unwrap();
    let dir = host.dir.path().join("state/containers").join(&c);
    let pid = |name: &str| {
        let text = std::fs::read_to_string(dir.join(name)).unwrap();
        nix::unistd::Pid::from_raw(text.trim().parse().unwrap())
    };
    let container = pid("pid");
    nix::sys::signal::kill(pid("shim.pid"), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(host.end().await, (c.clone(), 137, "Error".into()));
    // Whoever inherits it may take its time to reap it.
    let gone = || {
        let stat = std::fs::read_to_string(format!("/proc/{container}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    };
    until("it runs no more", gone).await;
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_outlive_the_service() {
    let mut host = Host::new().await;
    let pod = id("pod-f");
    host.pod(&pod, [10, 9, 0, 2]).await;
    let (lives, ends, waits) = (id("lives"), id("ends"), id("waits"));
    let script = "while [ ! -e /data/go ]; do sleep 0.05; done; exit 6";
    let data = host.dir.path().join("data");
    let volume = |config: &mut v1::ContainerConfig| {
        config.mounts.push(v1::Mount {
            container_path: "/data".into(),
            host_path: data.display().to_string(),
            ..Default::default()
        });
    };
    host.create(&pod, &lives, &["/bin/sh", "-c", script], volume).await.unwrap();
    host.create(&pod, &ends, &["/bin/sh", "-c", "exit 9"], |_| ()).await.unwrap();
    host.create(&pod, &waits, &["/bin/true"], |_| ()).await.unwrap();
    let before = host.engine.start(&lives).await.unwrap();
    host.engine.start(&ends).await.unwrap();
    assert_eq!(host.end().await.1, 9);
    host.restart().await;
    assert_eq!(host.engine.adopt(&lives).await, Some(before));
    assert!(matches!(host.engine.adopt(&ends).await, Some(State::Exited { exit_code: 9, .. })));
    assert_eq!(host.engine.adopt(&waits).await, Some(State::Created));
    assert_eq!(host.engine.adopt("absent").await, None);
    std::fs::write(data.join("go"), "").unwrap();
    assert_eq!(host.end().await, (lives, 6, "Error".into()));
    host.engine.start(&waits).await.unwrap();
    assert_eq!(host.end().await, (waits, 0, "Completed".into()));
    host.finish().await;
}
