//! The checks. Each is named for what it finds to be so.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use coracle_cri_api::v1;
use tonic::Code;

use super::Suite;

fn refused<T: std::fmt::Debug>(result: Result<T, tonic::Status>, codes: &[Code]) -> anyhow::Result<()> {
    match result {
        Ok(answer) => bail!("expected {codes:?}, but it was done: {answer:?}"),
        Err(status) => {
            ensure!(codes.contains(&status.code()), "expected {codes:?}, got {status:?}");
            ensure!(!status.message().is_empty(), "{:?} without a message", status.code());
            Ok(())
        }
    }
}

/// To stop what is not there: fine, or told so (containerd before 1.7).
fn gone<T>(stopped: Result<T, tonic::Status>) -> anyhow::Result<()> {
    match stopped {
        Err(status) if status.code() != Code::NotFound => bail!("stopping what is not there: {status:?}"),
        _ => Ok(()),
    }
}

pub async fn version_and_status(suite: &Suite) -> anyhow::Result<()> {
    let mut client = suite.runtime.clone();
    let version = client.version(v1::VersionRequest { version: "0.1.0".into() }).await?.into_inner();
    ensure!(version.runtime_api_version == "v1", "{version:?}");
    ensure!(!version.runtime_name.is_empty() && !version.runtime_version.is_empty(), "{version:?}");
    let mut conditions = Vec::new();
    // A runtime that has just been started may take a moment.
    for _ in 0..300 {
        let status = client.status(v1::StatusRequest { verbose: false }).await?.into_inner();
        conditions = status.status.context("no status")?.conditions;
        if conditions.iter().all(|c| c.status) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for kind in ["RuntimeReady", "NetworkReady"] {
        let found = conditions.iter().find(|c| c.r#type == kind);
        ensure!(found.is_some_and(|c| c.status), "{kind} is not true: {conditions:?}");
    }
    Ok(())
}

async fn image_status(suite: &Suite, image: &str) -> anyhow::Result<Option<v1::Image>> {
    let image = Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() });
    let request = v1::ImageStatusRequest { image, verbose: false };
    Ok(suite.images.clone().image_status(request).await?.into_inner().image)
}

pub async fn images_are_pulled_listed_and_removed(suite: &Suite) -> anyhow::Result<()> {
    let name = suite.target.programs.sleeps.image.clone();
    let reference = suite.pull(&name).await?;
    let image = image_status(suite, &name).await?.context("a pulled image has no status")?;
    ensure!(image.size > 0 && !image.id.is_empty(), "{image:?}");
    ensure!(!image.repo_tags.is_empty(), "{image:?}");
    for other in [&reference, &image.id, image.repo_digests.first().context("no repository digest")?] {
        let found = image_status(suite, other).await?.map(|i| i.id);
        ensure!(found.as_ref() == Some(&image.id), "{other} leads to {found:?}, not {}", image.id);
    }
    let mut client = suite.images.clone();
    let listed = client.list_images(v1::ListImagesRequest { filter: None }).await?.into_inner().images;
    ensure!(listed.iter().any(|i| i.id == image.id), "the image is not listed: {listed:?}");
    let mut usage = v1::FilesystemUsage::default();
    // Some measure from time to time only.
    for _ in 0..100 {
        let told = client.image_fs_info(v1::ImageFsInfoRequest {}).await?.into_inner().image_filesystems;
        usage = told.first().context("no image filesystem")?.clone();
        if usage.used_bytes.is_some_and(|b| b.value > 0) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(usage.used_bytes.is_some_and(|b| b.value > 0) && usage.timestamp > 0, "{usage:?}");
    ensure!(usage.fs_id.as_ref().is_some_and(|f| !f.mountpoint.is_empty()), "{usage:?}");
    for _ in 0..2 {
        let image = Some(v1::ImageSpec { image: name.clone(), ..Default::default() });
        client.remove_image(v1::RemoveImageRequest { image }).await.context("removing, also twice")?;
    }
    ensure!(image_status(suite, &name).await?.is_none(), "a removed image has a status");
    Ok(())
}

pub async fn an_absent_image_is_an_error(suite: &Suite) -> anyhow::Result<()> {
    let name = suite.target.absent_image.clone();
    let image = Some(v1::ImageSpec { image: name.clone(), ..Default::default() });
    let pulled = suite.images.clone().pull_image(v1::PullImageRequest { image, ..Default::default() }).await;
    let error = pulled.err().context("an image that does not exist was pulled")?;
    ensure!(error.message().contains(&name), "the message does not name the image: {error:?}");
    ensure!(image_status(suite, &name).await?.is_none(), "it has a status");
    let pod = suite.pod("absent").await?;
    let mut config = pod.container_config("c", &suite.target.programs.sleeps, &name);
    config.image = Some(v1::ImageSpec { image: name, ..Default::default() });
    refused(pod.create_as(config).await, &[Code::NotFound, Code::Unknown])?;
    Ok(pod.end().await?)
}

pub async fn sandboxes_live_and_die(suite: &Suite) -> anyhow::Result<()> {
    let pod = suite.pod("life").await?;
    let status = pod.status().await?;
    ensure!(status.state() == v1::PodSandboxState::SandboxReady, "{status:?}");
    ensure!(status.metadata == pod.config.metadata && status.labels == pod.config.labels, "{status:?}");
    ensure!(status.annotations == pod.config.annotations && status.created_at > 0, "{status:?}");
    ensure!(pod.ip().await?.parse::<std::net::IpAddr>().is_ok(), "{status:?}");
    pod.stop().await?;
    pod.stop().await.context("stopping again")?;
    ensure!(pod.status().await?.state() == v1::PodSandboxState::SandboxNotready, "ready after a stop");
    pod.remove().await?;
    pod.remove().await.context("removing again")?;
    gone(pod.stop().await)?;
    refused(pod.status().await, &[Code::NotFound])?;
    let twice = suite.pod("removed-without-stop").await?;
    twice.remove().await?;
    refused(twice.status().await, &[Code::NotFound])
}

pub async fn sandboxes_are_filtered(suite: &Suite) -> anyhow::Result<()> {
    let (a, b) = (suite.pod("filter-a").await?, suite.pod("filter-b").await?);
    b.stop().await?;
    let list = async |filter: v1::PodSandboxFilter| {
        let request = v1::ListPodSandboxRequest { filter: Some(filter) };
        let items = suite.runtime.clone().list_pod_sandbox(request).await?.into_inner().items;
        anyhow::Ok(items.into_iter().map(|s| s.id).collect::<BTreeSet<_>>())
    };
    let only = |id: &str| BTreeSet::from([id.to_owned()]);
    let by_id = v1::PodSandboxFilter { id: a.id.clone(), ..Default::default() };
    ensure!(list(by_id).await? == only(&a.id), "by id");
    let by_label = v1::PodSandboxFilter { label_selector: b.config.labels.clone(), ..Default::default() };
    ensure!(list(by_label).await? == only(&b.id), "by label");
    let state = |state: v1::PodSandboxState| Some(v1::PodSandboxStateValue { state: state.into() });
    let ready =
        v1::PodSandboxFilter { state: state(v1::PodSandboxState::SandboxReady), ..Default::default() };
    let ready = list(ready).await?;
    ensure!(ready.contains(&a.id) && !ready.contains(&b.id), "by state: {ready:?}");
    let nobody = v1::PodSandboxFilter {
        id: a.id.clone(),
        state: state(v1::PodSandboxState::SandboxNotready),
        ..Default::default()
    };
    ensure!(list(nobody).await?.is_empty(), "filters are not combined with AND");
    a.end().await?;
    Ok(b.end().await?)
}

pub async fn addresses_are_unique(suite: &Suite) -> anyhow::Result<()> {
    let made = futures::future::try_join_all((0..8).map(|i| {
        let config = suite.pod_config(&format!("address-{i}"));
        suite.run(config)
    }))
    .await?;
    let mut addresses = BTreeSet::new();
    for pod in &made {
        addresses.insert(pod.ip().await?);
    }
    ensure!(addresses.len() == made.len(), "{addresses:?} for {} pods", made.len());
    futures::future::try_join_all(made.iter().map(|p| p.end())).await?;
    Ok(())
}

pub async fn a_container_runs_and_exits(suite: &Suite) -> anyhow::Result<()> {
    let pod = suite.pod("exits").await?;
    let id = pod.create("speaker", &suite.target.programs.speaks_and_fails).await?;
    let created = suite.status(&id).await?;
    ensure!(created.state() == v1::ContainerState::ContainerCreated, "{created:?}");
    ensure!(created.created_at > 0 && created.started_at == 0 && created.finished_at == 0, "{created:?}");
    ensure!(!created.image_ref.is_empty(), "{created:?}");
    ensure!(created.annotations.get("note").map(String::as_str) == Some("also kept"), "{created:?}");
    pod.start(&id).await?;
    let ended = suite.exited(&id).await?;
    ensure!(ended.exit_code == suite.target.programs.failure && ended.reason == "Error", "{ended:?}");
    // The end of a short program is measured elsewhere (by containerd's shim) than the answer to its start.
    let in_order =
        ended.created_at <= ended.started_at && ended.started_at <= ended.finished_at + 1_000_000_000;
    ensure!(in_order && ended.started_at > 0, "times are not in order: {ended:?}");
    let log = suite.log(&ended.log_path, 2).await?;
    for line in [("stdout", "out"), ("stderr", "err")] {
        ensure!(log.iter().any(|(s, t)| (s.as_str(), t.as_str()) == line), "{line:?} is not in {log:?}");
    }
    refused(pod.start(&id).await, &[Code::FailedPrecondition, Code::Unknown, Code::InvalidArgument])?;
    let remove = || v1::RemoveContainerRequest { container_id: id.clone() };
    suite.runtime.clone().remove_container(remove()).await?;
    suite.runtime.clone().remove_container(remove()).await.context("removing again")?;
    ensure!(tokio::fs::try_exists(&ended.log_path).await?, "the log went with the container");
    Ok(pod.end().await?)
}

pub async fn a_container_is_stopped(suite: &Suite) -> anyhow::Result<()> {
    let pod = suite.pod("stopped").await?;
    let id = pod.create("sleeper", &suite.target.programs.sleeps).await?;
    pod.start(&id).await?;
    ensure!(suite.status(&id).await?.state() == v1::ContainerState::ContainerRunning, "it does not run");
    let started = Instant::now();
    let stop = || v1::StopContainerRequest { container_id: id.clone(), timeout: 1 };
    suite.runtime.clone().stop_container(stop()).await?;
    ensure!(
        started.elapsed() < Duration::from_secs(20),
        "a stop with 1 s of grace took {:?}",
        started.elapsed()
    );
    let ended = suite.status(&id).await?;
    ensure!(ended.state() == v1::ContainerState::ContainerExited && ended.exit_code != 0, "{ended:?}");
    suite.runtime.clone().stop_container(stop()).await.context("stopping again")?;
    // A sandbox takes its containers with it.
    let other = pod.create("sleeper-2", &suite.target.programs.sleeps).await?;
    pod.start(&other).await?;
    pod.stop().await?;
    let ended = suite.status(&other).await?;
    ensure!(ended.state() == v1::ContainerState::ContainerExited, "{ended:?}");
    pod.remove().await?;
    refused(suite.status(&other).await, &[Code::NotFound])
}

pub async fn containers_of_a_pod_share_a_volume(suite: &Suite) -> anyhow::Result<()> {
    let pod = suite.pod("volume").await?;
    let volume = suite.target.scratch.join(format!("volume-{}", pod.id));
    tokio::fs::create_dir_all(&volume).await?;
    let programs = &suite.target.programs;
    let early = pod.run_with("early", &programs.reads_note, volume.clone()).await?;
    ensure!(early.exit_code != 0, "a note was read before it was written: {early:?}");
    let wrote = pod.run_with("writer", &programs.writes_note, volume.clone()).await?;
    ensure!(wrote.exit_code == 0 && wrote.reason == "Completed", "{wrote:?}");
    ensure!(wrote.mounts.iter().any(|m| m.container_path == "/data"), "{wrote:?}");
    let read = pod.run_with("reader", &programs.reads_note, volume.clone()).await?;
    ensure!(read.exit_code == 0, "{read:?}");
    let log = suite.log(&read.log_path, 1).await?;
    ensure!(log.iter().any(|(_, text)| text == "shared"), "{log:?}");
    Ok(pod.end().await?)
}

pub async fn containers_are_filtered(suite: &Suite) -> anyhow::Result<()> {
    let (one, two) = (suite.pod("of-one").await?, suite.pod("of-two").await?);
    let sleeps = &suite.target.programs.sleeps;
    let (a, b, c) =
        (one.create("a", sleeps).await?, one.create("b", sleeps).await?, two.create("a", sleeps).await?);
    one.start(&a).await?;
    let list = async |filter: v1::ContainerFilter| {
        let request = v1::ListContainersRequest { filter: Some(filter) };
        let found = suite.runtime.clone().list_containers(request).await?.into_inner().containers;
        anyhow::Ok(found.into_iter().map(|c| c.id).collect::<BTreeSet<_>>())
    };
    let set = |ids: &[&String]| ids.iter().map(|i| (*i).clone()).collect::<BTreeSet<_>>();
    let in_one = v1::ContainerFilter { pod_sandbox_id: one.id.clone(), ..Default::default() };
    ensure!(list(in_one.clone()).await? == set(&[&a, &b]), "by sandbox");
    let by_id = v1::ContainerFilter { id: c.clone(), ..Default::default() };
    ensure!(list(by_id).await? == set(&[&c]), "by id");
    let running = v1::ContainerStateValue { state: v1::ContainerState::ContainerRunning.into() };
    let running = v1::ContainerFilter { state: Some(running), ..in_one.clone() };
    ensure!(list(running).await? == set(&[&a]), "by state");
    let labelled = [("container".to_owned(), "b".to_owned())].into();
    let labelled = v1::ContainerFilter { label_selector: labelled, ..in_one };
    ensure!(list(labelled).await? == set(&[&b]), "by label");
    one.end().await?;
    Ok(two.end().await?)
}

pub async fn names_are_unique_in_a_pod(suite: &Suite) -> anyhow::Result<()> {
    let pod = suite.pod("names").await?;
    let taken = v1::RunPodSandboxRequest { config: Some(pod.config.clone()), runtime_handler: String::new() };
    refused(suite.runtime.clone().run_pod_sandbox(taken).await, &[Code::AlreadyExists, Code::Unknown])?;
    let program = &suite.target.programs.sleeps;
    pod.create("same", program).await?;
    let image = suite.pull(&program.image).await?;
    let mut config = pod.container_config("same", program, &image);
    refused(pod.create_as(config.clone()).await, &[Code::AlreadyExists, Code::Unknown])?;
    config.metadata = Some(v1::ContainerMetadata { name: "same".into(), attempt: 1 });
    pod.create_as(config).await.context("the next attempt of the same name")?;
    Ok(pod.end().await?)
}

pub async fn what_is_not_there_is_told(suite: &Suite) -> anyhow::Result<()> {
    let id = "0".repeat(64);
    let mut client = suite.runtime.clone();
    refused(suite.status(&id).await, &[Code::NotFound])?;
    let status = v1::PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: true };
    refused(client.pod_sandbox_status(status).await, &[Code::NotFound])?;
    let start = v1::StartContainerRequest { container_id: id.clone() };
    refused(client.start_container(start).await, &[Code::NotFound])?;
    let reopen = v1::ReopenContainerLogRequest { container_id: id.clone() };
    refused(client.reopen_container_log(reopen).await, &[Code::NotFound, Code::Unknown])?;
    let stats = v1::ContainerStatsRequest { container_id: id.clone() };
    refused(client.container_stats(stats).await, &[Code::NotFound])?;
    let create = v1::CreateContainerRequest { pod_sandbox_id: id.clone(), ..Default::default() };
    refused(client.create_container(create).await, &[Code::NotFound, Code::InvalidArgument, Code::Unknown])?;
    gone(client.stop_container(v1::StopContainerRequest { container_id: id.clone(), timeout: 0 }).await)?;
    client.remove_container(v1::RemoveContainerRequest { container_id: id.clone() }).await?;
    gone(client.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await)?;
    client.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id }).await?;
    let empty = v1::RunPodSandboxRequest { config: None, runtime_handler: String::new() };
    refused(client.run_pod_sandbox(empty).await, &[Code::InvalidArgument, Code::Unknown, Code::Internal])?;
    let unknown = v1::RunPodSandboxRequest {
        config: Some(suite.pod_config("handler")),
        runtime_handler: "no-such-handler".into(),
    };
    refused(client.run_pod_sandbox(unknown).await, &[Code::InvalidArgument, Code::Unknown, Code::NotFound])
}

pub async fn logs_are_reopened(suite: &Suite) -> anyhow::Result<()> {
    let pod = suite.pod("logs").await?;
    let id = pod.create("sleeper", &suite.target.programs.sleeps).await?;
    pod.start(&id).await?;
    let path = suite.status(&id).await?.log_path;
    tokio::fs::rename(&path, format!("{path}.1")).await.context("rotating the log")?;
    let request = v1::ReopenContainerLogRequest { container_id: id };
    suite.runtime.clone().reopen_container_log(request).await?;
    ensure!(tokio::fs::try_exists(&path).await?, "there is no new log at {path}");
    Ok(pod.end().await?)
}

pub async fn events_are_told(suite: &Suite) -> anyhow::Result<()> {
    use v1::ContainerEventType::{
        ContainerCreatedEvent, ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent,
    };
    let asked = suite.runtime.clone().get_container_events(v1::GetEventsRequest {}).await;
    if !suite.target.events {
        return refused(asked.map(drop), &[Code::Unimplemented]);
    }
    let mut events = asked?.into_inner();
    let pod = suite.pod("events").await?;
    let id = pod.create("speaker", &suite.target.programs.speaks_and_fails).await?;
    pod.start(&id).await?;
    suite.exited(&id).await?;
    pod.end().await?;
    let mut seen = Vec::new();
    while !seen.contains(&ContainerDeletedEvent) {
        let next = tokio::time::timeout(Duration::from_secs(10), events.message()).await;
        let event = next.with_context(|| format!("no event after {seen:?}"))??.context("the events ended")?;
        if event.container_id == id {
            ensure!(event.created_at > 0, "{event:?}");
            seen.push(event.container_event_type());
        }
    }
    for kind in [ContainerCreatedEvent, ContainerStartedEvent, ContainerStoppedEvent] {
        ensure!(seen.contains(&kind), "{kind:?} is not among {seen:?}");
    }
    Ok(())
}

pub async fn statistics_are_measured(suite: &Suite) -> anyhow::Result<()> {
    let pod = suite.pod("stats").await?;
    let id = pod.create("sleeper", &suite.target.programs.sleeps).await?;
    pod.start(&id).await?;
    let mut client = suite.runtime.clone();
    let stats =
        client.container_stats(v1::ContainerStatsRequest { container_id: id.clone() }).await?.into_inner();
    let stats = stats.stats.context("no statistics")?;
    ensure!(stats.attributes.as_ref().is_some_and(|a| a.id == id), "{stats:?}");
    ensure!(stats.memory.is_some_and(|m| m.timestamp > 0 && m.working_set_bytes.is_some()), "no memory");
    ensure!(stats.cpu.is_some_and(|c| c.timestamp > 0 && c.usage_core_nano_seconds.is_some()), "no CPU");
    let all = client.list_container_stats(v1::ListContainerStatsRequest { filter: None }).await?.into_inner();
    ensure!(all.stats.iter().any(|s| s.attributes.as_ref().is_some_and(|a| a.id == id)), "{all:?}");
    let of_pod = v1::PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    let of_pod =
        client.pod_sandbox_stats(of_pod).await?.into_inner().stats.context("no statistics of the pod")?;
    ensure!(of_pod.linux.is_some_and(|l| l.containers.len() == 1), "not one container");
    Ok(pod.end().await?)
}
