//! Linux containers beside wasm ones: profile `routed`, in a network namespace of the test's own. Needs root, runc,
//! iproute2, nftables and Debian's busybox-static.

use coracle_cri::conformance::{Pod, Program, Programs, Suite};
use coracle_cri_api::{annotation, v1};
use tonic::Code;

use crate::service::Service;

pub fn shell(script: &str) -> Program {
    Program { image: "busybox:v1".into(), command: vec!["/bin/sh".into(), "-c".into(), script.into()] }
}

pub fn programs() -> Programs {
    Programs {
        speaks_and_fails: shell("echo out; echo err >&2; exit 3"),
        failure: 3,
        sleeps: shell("exec sleep 100000"),
        writes_note: shell("echo shared > /data/note"),
        reads_note: shell("cat /data/note"),
    }
}

async fn exec(suite: &Suite, container: &str, script: &str) -> v1::ExecSyncResponse {
    let cmd = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let request = v1::ExecSyncRequest { container_id: container.to_owned(), cmd, timeout: 20 };
    suite.runtime.clone().exec_sync(request).await.unwrap().into_inner()
}

async fn runs(pod: &Pod<'_>, name: &str, program: &Program) -> String {
    let id = pod.create(name, program).await.unwrap();
    pod.start(&id).await.unwrap();
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn linux_containers_conform() {
    let service = Service::start_routed(None).await;
    let suite = service.suite_of(programs()).await;
    crate::conformance::passes(&suite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_wasm_and_linux_containers_that_share_address_and_volume() {
    let service = Service::start_routed(None).await;
    let suite = service.suite_of(programs()).await;
    let pod = suite.pod("mixed").await.unwrap();
    let ip = pod.ip().await.unwrap();
    let linux = runs(&pod, "linux", &shell("exec sleep 100000")).await;
    let said = exec(&suite, &linux, "ip -4 addr show eth0").await;
    assert!(String::from_utf8_lossy(&said.stdout).contains(&format!("inet {ip}/")), "{said:?}");

    // What a wasm container writes, the Linux one reads.
    let volume = suite.target.scratch.join("volume");
    std::fs::create_dir_all(&volume).unwrap();
    let worker =
        |what: &str| Program { image: "worker:v1".into(), command: vec!["worker".into(), what.into()] };
    let wrote = pod.run_with("writer", &worker("write"), volume.clone()).await.unwrap();
    assert_eq!(wrote.exit_code, 0, "{wrote:?}");
    let read = pod.run_with("reader", &shell("cat /data/note"), volume).await.unwrap();
    assert_eq!(suite.log(&read.log_path, 1).await.unwrap(), [("stdout".to_owned(), "shared".to_owned())]);
    assert!(suite.status(&linux).await.unwrap().image_id.starts_with("sha256:"));

    // A wasm pod of its own is reached by its address, and images say what they are.
    for (image, platform) in [("worker:v1", annotation::WASM), ("busybox:v1", annotation::LINUX)] {
        let image = Some(v1::ImageSpec { image: image.into(), ..Default::default() });
        let request = v1::ImageStatusRequest { image, verbose: false };
        let found = suite.images.clone().image_status(request).await.unwrap().into_inner().image.unwrap();
        assert_eq!(found.spec.unwrap().annotations[annotation::PLATFORM], platform);
    }
    let mut wasm = suite.pod_config("wasm-only");
    wasm.annotations.insert(annotation::LINUX_CONTAINERS.into(), "false".into());
    let wasm = suite.run(wasm).await.unwrap();
    let refused = wasm.create("linux", &shell("true")).await.unwrap_err();
    assert!(format!("{refused:#}").contains("wasm containers only"), "{refused:#}");
    let other = wasm.ip().await.unwrap();
    // Its address is the node's own: the connection is refused, not lost.
    let said = exec(&suite, &linux, &format!("ping -c 1 -W 2 {other}")).await;
    assert_eq!(said.exit_code, 0, "{said:?}");
    pod.end().await.unwrap();
    wasm.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_service_restarts_no_linux_container() {
    let mut service = Service::start_routed(None).await;
    let suite = service.suite_of(programs()).await;
    let pod = suite.pod("survivor").await.unwrap();
    let (lives, waits) = (
        runs(&pod, "lives", &shell("exec sleep 100000")).await,
        pod.create("waits", &shell("echo late; exit 4")).await.unwrap(),
    );
    let ends = runs(&pod, "ends", &shell("until [ -e /end ]; do sleep 0.05; done; exit 9")).await;
    let text = |said: v1::ExecSyncResponse| String::from_utf8_lossy(&said.stdout).into_owned();
    let started = "stat -c %Y /proc/1; cat /proc/1/cmdline";
    let before = (suite.status(&lives).await.unwrap(), text(exec(&suite, &lives, started).await));
    let folder = service.state_dir().join("oci/containers").join(&ends);
    let pid = std::fs::read_to_string(folder.join("pid")).unwrap();
    service.kill();
    // It ends while nobody but its shim is there to see it.
    std::fs::write(format!("/proc/{}/root/end", pid.trim()), "").unwrap();
    for _ in 0..1000 {
        if std::fs::read_to_string(folder.join("state.json")).is_ok_and(|t| t.contains("exited")) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    service.spawn().await;
    let suite = service.suite_of(programs()).await;
    let after = (suite.status(&lives).await.unwrap(), text(exec(&suite, &lives, started).await));
    assert_eq!(before, after);
    assert_eq!(suite.exited(&ends).await.unwrap().exit_code, 9);
    let start = v1::StartContainerRequest { container_id: waits.clone() };
    suite.runtime.clone().start_container(start).await.unwrap();
    let waited = suite.exited(&waits).await.unwrap();
    assert_eq!(waited.exit_code, 4);
    assert_eq!(suite.log(&waited.log_path, 1).await.unwrap()[0].1, "late");
    let stop = v1::StopContainerRequest { container_id: lives.clone(), timeout: 1 };
    suite.runtime.clone().stop_container(stop).await.unwrap();
    assert_eq!(suite.status(&lives).await.unwrap().exit_code, 137);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_can_be_on_the_hosts_network() {
    let service = Service::start_routed(None).await;
    let suite = service.suite_of(programs()).await;
    let mut config = suite.pod_config("on-the-host");
    let options = v1::NamespaceOption { network: v1::NamespaceMode::Node.into(), ..Default::default() };
    config.linux = Some(v1::LinuxPodSandboxConfig {
        security_context: Some(v1::LinuxSandboxSecurityContext {
            namespace_options: Some(options),
            ..Default::default()
        }),
        ..Default::default()
    });
    let pod = suite.run(config).await.unwrap();
    assert_eq!(pod.ip().await.unwrap(), "", "it has the node's");
    let id = runs(&pod, "linux", &shell("exec sleep 100000")).await;
    let said = exec(&suite, &id, "ip link").await;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(!text.contains("eth0") && text.contains("lo:"), "{text}");
    let wasm = Program { image: "worker:v1".into(), command: vec!["worker".into(), "sleep".into()] };
    assert!(format!("{:#}", pod.create("wasm", &wasm).await.unwrap_err()).contains("hostNetwork"));
    pod.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_are_run_in_wasm_containers_too() {
    let service = Service::start_routed(None).await;
    let suite = service.suite_of(programs()).await;
    let pod = suite.pod("exec").await.unwrap();
    let worker =
        |what: &str| Program { image: "worker:v1".into(), command: vec!["worker".into(), what.into()] };
    let id = runs(&pod, "wasm", &worker("sleep")).await;
    let run = async |args: &[&str]| {
        let cmd = args.iter().map(|a| (*a).to_owned()).collect();
        let request = v1::ExecSyncRequest { container_id: id.clone(), cmd, timeout: 20 };
        suite.runtime.clone().exec_sync(request).await.unwrap().into_inner()
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    // Its own program, once more, with other arguments.
    let said = run(&["worker", "fail"]).await;
    assert_eq!((said.exit_code, text(&said.stdout), text(&said.stderr)), (1, "out\n".into(), "err\n".into()));
    let said = run(&["echo", "hello"]).await;
    assert_eq!((said.exit_code, text(&said.stdout)), (0, "hello\n".into()));
    let said = run(&["bash"]).await;
    assert!(said.exit_code == 127 && text(&said.stderr).contains("\"worker\""), "{said:?}");
    pod.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cni_configuration_is_honoured() {
    let conf = r#"{"cniVersion": "0.3.1", "name": "mynet", "type": "bridge", "bridge": "cni0", "isGateway": true,
        "ipMasq": true, "ipam": {"type": "host-local", "subnet": "10.22.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]}}"#;
    let service = Service::start_routed(Some(conf)).await;
    let suite = service.suite_of(programs()).await;
    let pod = suite.pod("cni").await.unwrap();
    assert!(pod.ip().await.unwrap().starts_with("10.22.0."));
    let id = runs(&pod, "linux", &shell("exec sleep 100000")).await;
    let said = exec(&suite, &id, "ip route; ping -c 1 -W 2 10.22.0.1").await;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.exit_code == 0 && text.contains("default via 10.22.0.1"), "{said:?}");
    let node = service.in_namespace(&["ip", "link", "show", "cni0"]);
    assert!(node.contains("UP"), "{node}");
    assert!(service.in_namespace(&["nft", "list", "ruleset"]).contains("masquerade"));
    pod.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platform_of_an_index_is_chosen_by_the_handler() {
    let service = Service::start_routed(None).await;
    service.registry.push_both("both", "v1");
    let suite = service.suite_of(programs()).await;
    let pull = async |handler: &str| {
        let image =
            v1::ImageSpec { image: "both:v1".into(), runtime_handler: handler.into(), ..Default::default() };
        let request = v1::PullImageRequest { image: Some(image.clone()), ..Default::default() };
        suite.images.clone().pull_image(request).await.unwrap();
        let request = v1::ImageStatusRequest { image: Some(image), verbose: false };
        let image = suite.images.clone().image_status(request).await.unwrap().into_inner().image.unwrap();
        image.spec.unwrap().annotations[annotation::PLATFORM].clone()
    };
    assert_eq!((pull("").await, pull("runc").await), (annotation::WASM.into(), annotation::LINUX.into()));
    assert_eq!(pull("").await, annotation::WASM, "both stay");
    let request = v1::StatusRequest { verbose: false };
    let handlers = suite.runtime.clone().status(request).await.unwrap().into_inner().runtime_handlers;
    let names: Vec<_> = handlers.iter().map(|h| h.name.as_str()).collect();
    assert_eq!(names, ["", "wasm", "wasm-isolated", "runc"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn profile_loopback_says_what_linux_images_need() {
    let service = Service::start().await;
    service.registry.push_linux("busybox", "v1");
    let suite = service.suite().await;
    let image = Some(v1::ImageSpec { image: "busybox:v1".into(), ..Default::default() });
    let request = v1::PullImageRequest { image, ..Default::default() };
    let status = suite.images.clone().pull_image(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("Linux containers need --network routed"), "{status:?}");
    let config = Some(suite.pod_config("linux"));
    let request = v1::RunPodSandboxRequest { config, runtime_handler: "runc".into() };
    let status = suite.runtime.clone().run_pod_sandbox(request).await.unwrap_err();
    assert!(status.message().contains("--network routed"), "{status:?}");
}
