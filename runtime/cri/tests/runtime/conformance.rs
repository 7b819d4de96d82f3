//! Our runtime passes the suite that any runtime has to pass, and refuses what it cannot do.

use coracle_cri::conformance::{self, Program, Suite};
use coracle_cri_api::v1;
use tonic::Code;

use crate::programs::{DEMANDING, wasm};
use crate::service::Service;

/// Runs the suite; every check has to pass.
pub async fn passes(suite: &Suite) {
    let outcomes = conformance::run(suite).await;
    let mut failed = 0;
    for outcome in &outcomes {
        match &outcome.result {
            Ok(()) => println!("ok     {} ({:?})", outcome.check, outcome.took),
            Err(error) => {
                failed += 1;
                println!("FAILED {} ({:?}): {error:#}", outcome.check, outcome.took);
            }
        }
    }
    assert_eq!(failed, 0, "of {} checks", outcomes.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_runtime_conforms() {
    let service = Service::start().await;
    passes(&service.suite().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn isolated_pods_conform() {
    let service = Service::start().await;
    let mut suite = service.suite().await;
    suite.target.handler = "wasm-isolated".into();
    passes(&suite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_components_are_refused_at_the_pull() {
    let service = Service::start().await;
    let suite = service.suite().await;
    service.registry.push("demanding", "v1", &wasm(DEMANDING));
    service.registry.push("nonsense", "v1", b"this is no wasm");
    // What is missing in one pod may be linked in another: that image stays for it.
    for (image, words, stays) in
        [("demanding:v1", "example:absent/oracle", true), ("nonsense:v1", "not a wasm component", false)]
    {
        let spec = Some(v1::ImageSpec { image: image.into(), ..Default::default() });
        let request = v1::PullImageRequest { image: spec.clone(), ..Default::default() };
        let status = suite.images.clone().pull_image(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{image}: {status:?}");
        assert!(status.message().contains(words) && status.message().contains(image), "{image}: {status:?}");
        let request = v1::ImageStatusRequest { image: spec, verbose: false };
        let there = suite.images.clone().image_status(request).await.unwrap().into_inner().image.is_some();
        assert_eq!(there, stays, "{image}");
    }
    let pod = suite.pod("unlinked").await.unwrap();
    let demanding = Program { image: "demanding:v1".into(), command: Vec::new() };
    let config = pod.container_config("demanding", &demanding, &demanding.image);
    let refused = pod.create_as(config).await.unwrap_err();
    assert!(refused.message().contains("example:absent/oracle"), "{refused:?}");
    pod.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn traps_and_memory_limits_end_a_container_with_the_reason() {
    let service = Service::start().await;
    let suite = service.suite().await;
    let pod = suite.pod("faults").await.unwrap();
    let mut program = suite.target.programs.sleeps.clone();
    let image = suite.pull(&program.image).await.unwrap();
    for (what, reason) in [("trap", "Error"), ("grow", "OOMKilled")] {
        program.command[1] = what.into();
        let mut config = pod.container_config(what, &program, &image);
        let resources = v1::LinuxContainerResources { memory_limit_in_bytes: 32 << 20, ..Default::default() };
        config.linux = Some(v1::LinuxContainerConfig { resources: Some(resources), security_context: None });
        let id = pod.create_as(config).await.unwrap();
        pod.start(&id).await.unwrap();
        let ended = suite.exited(&id).await.unwrap();
        assert_eq!(ended.reason, reason, "{what}: {ended:?}");
        assert_ne!(ended.exit_code, 0, "{what}: {ended:?}");
        let resources = ended.resources.unwrap().linux.unwrap();
        assert_eq!(resources.memory_limit_in_bytes, 32 << 20);
    }
    pod.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_running_container_are_changed() {
    let service = Service::start().await;
    let suite = service.suite().await;
    let pod = suite.pod("resized").await.unwrap();
    let program = suite.target.programs.sleeps.clone();
    let image = suite.pull(&program.image).await.unwrap();
    let mut config = pod.container_config("runs", &program, &image);
    let resources = v1::LinuxContainerResources { memory_limit_in_bytes: 32 << 20, ..Default::default() };
    config.linux = Some(v1::LinuxContainerConfig { resources: Some(resources), security_context: None });
    let id = pod.create_as(config).await.unwrap();
    pod.start(&id).await.unwrap();
    let update = async |memory: i64, quota: i64| {
        let linux = v1::LinuxContainerResources {
            memory_limit_in_bytes: memory,
            cpu_quota: quota,
            cpu_period: 100_000,
            ..Default::default()
        };
        let request = v1::UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        suite.runtime.clone().update_container_resources(request).await
    };
    update(64 << 20, 0).await.unwrap();
    update(0, 50_000).await.unwrap();
    let now = suite.status(&id).await.unwrap().resources.unwrap().linux.unwrap();
    assert_eq!((now.memory_limit_in_bytes, now.cpu_quota), (64 << 20, 50_000), "what is not named stays");
    // The guest has its first page already.
    let status = update(1024, 0).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    pod.end().await.unwrap();
}
