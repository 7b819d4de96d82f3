use std::path::PathBuf;

use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, async_trait};

use super::*;
use crate::csi::Drivers;
use crate::csi::record::{in_use, is_due, read, republishes};
use v1::node_server::{Node, NodeServer};

/// A driver that mounts nothing, remembers what it was asked, and fails to unstage so many times.
#[derive(Clone, Default)]
struct Fake {
    asked: Arc<Mutex<Vec<&'static str>>>,
    fails: Arc<Mutex<u32>>,
}

impl Fake {
    fn answer<T: Default>(&self, what: &'static str) -> Result<Response<T>, Status> {
        self.asked.lock().push(what);
        Ok(Response::new(T::default()))
    }

    fn asked(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.asked.lock())
    }
}

#[async_trait]
impl Node for Fake {
    async fn node_stage_volume(
        &self,
        _: Request<v1::NodeStageVolumeRequest>,
    ) -> Result<Response<v1::NodeStageVolumeResponse>, Status> {
        self.answer("stage")
    }

    async fn node_unstage_volume(
        &self,
        _: Request<v1::NodeUnstageVolumeRequest>,
    ) -> Result<Response<v1::NodeUnstageVolumeResponse>, Status> {
        let left = self.fails.lock().checked_sub(1);
        match left {
            Some(left) => {
                *self.fails.lock() = left;
                Err(Status::internal("busy"))
            }
            None => self.answer("unstage"),
        }
    }

    async fn node_publish_volume(
        &self,
        request: Request<v1::NodePublishVolumeRequest>,
    ) -> Result<Response<v1::NodePublishVolumeResponse>, Status> {
        std::fs::create_dir_all(request.into_inner().target_path)?;
        self.answer("publish")
    }

    async fn node_unpublish_volume(
        &self,
        _: Request<v1::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<v1::NodeUnpublishVolumeResponse>, Status> {
        self.answer("unpublish")
    }

    async fn node_get_volume_stats(
        &self,
        _: Request<v1::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<v1::NodeGetVolumeStatsResponse>, Status> {
        self.answer("count")
    }

    async fn node_expand_volume(
        &self,
        _: Request<v1::NodeExpandVolumeRequest>,
    ) -> Result<Response<v1::NodeExpandVolumeResponse>, Status> {
        self.answer("expand")
    }

    async fn node_get_capabilities(
        &self,
        _: Request<v1::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<v1::NodeGetCapabilitiesResponse>, Status> {
        Ok(Response::new(v1::NodeGetCapabilitiesResponse::default()))
    }

    async fn node_get_info(
        &self,
        _: Request<v1::NodeGetInfoRequest>,
    ) -> Result<Response<v1::NodeGetInfoResponse>, Status> {
        self.answer("info")
    }
}

/// A node's root directory, and a driver that has registered there.
struct Rig {
    root: tempfile::TempDir,
    fake: Fake,
    driver: Driver,
    turns: Turns,
}

impl Rig {
    async fn new() -> Self {
        let root = tempfile::tempdir().expect("a directory");
        let (socket, fake) = (root.path().join("csi.sock"), Fake::default());
        let listener = tokio::net::UnixListener::bind(&socket).expect("a socket");
        let server = tonic::transport::Server::builder().add_service(NodeServer::new(fake.clone()));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        let drivers = Drivers::default();
        drivers.set("d", Some(socket));
        let driver = drivers.get("d").await.expect("the driver");
        Self { root, fake, driver, turns: Turns::default() }
    }

    /// Where the volume of a pod has its record, and where it is published.
    fn places(&self, pod: &str) -> (PathBuf, PathBuf) {
        let home = self.root.path().join("pods").join(pod).join("volumes/kubernetes.io~csi/pv");
        (home.clone(), home.join("mount"))
    }

    fn record(&self) -> Record {
        Record {
            driver_name: "d".into(),
            volume_handle: "h".into(),
            spec_vol_id: "pv".into(),
            node_name: "n".into(),
            volume_lifecycle_mode: "Persistent".into(),
            staged: self.root.path().join("globalmount").display().to_string(),
            attached: true,
            mounted: None,
            again: true,
        }
    }

    async fn publish(&mut self, pod: &str) {
        let ((home, target), record) = (self.places(pod), self.record());
        let stage =
            v1::NodeStageVolumeRequest { staging_target_path: record.staged.clone(), ..Default::default() };
        let publish =
            v1::NodePublishVolumeRequest { target_path: target.display().to_string(), ..Default::default() };
        let asked = Asked { stage: Some(stage), publish };
        let done = super::publish(&mut self.driver, &self.turns, &home, &record, asked).await;
        done.expect("published");
        write(&home, &Record { mounted: Some(false), ..record }).expect("written");
    }

    async fn give_back(&mut self, pod: &str) -> Result<(), String> {
        let ((home, target), record) = (self.places(pod), self.record());
        let (driver, root) = (&mut self.driver, self.root.path());
        let done = give_back(driver, &self.turns, root, (&home, &target), &record).await;
        done.map_err(|e| format!("{e:#}"))
    }
}

#[tokio::test]
async fn a_volume_that_cannot_be_unstaged_is_in_use_and_asked_for_again() {
    let mut rig = Rig::new().await;
    rig.publish("a").await;
    *rig.fake.fails.lock() = 1;
    let why = rig.give_back("a").await.expect_err("the driver fails");
    assert!(why.contains("busy"), "{why}");
    assert_eq!(in_use(rig.root.path()), ["kubernetes.io/csi/d^h"]);
    assert_eq!(rig.fake.asked(), ["stage", "publish", "unpublish"]);
    rig.give_back("a").await.expect("given back");
    assert_eq!(rig.fake.asked(), ["unpublish", "unstage"]);
    assert!(in_use(rig.root.path()).is_empty());
    assert_eq!(read(&rig.places("a").0), None);
}

#[tokio::test]
async fn the_last_pod_of_a_node_unstages_a_volume() {
    let mut rig = Rig::new().await;
    rig.publish("a").await;
    rig.publish("b").await;
    rig.fake.asked();
    rig.give_back("a").await.expect("given back");
    rig.give_back("b").await.expect("given back");
    assert_eq!(rig.fake.asked(), ["unpublish", "unpublish", "unstage"]);
}

#[tokio::test]
async fn what_is_published_again_is_not_staged_again() {
    let mut rig = Rig::new().await;
    let (home, target) = rig.places("a");
    let pod_dir = rig.root.path().join("pods/a");
    assert!(is_due(&home, &target) && !republishes(&pod_dir));
    rig.publish("a").await;
    assert!(is_due(&home, &target) && republishes(&pod_dir), "its driver asks for that");
    rig.publish("a").await;
    assert_eq!(rig.fake.asked(), ["stage", "publish", "publish"]);
    write(&home, &Record { mounted: Some(false), again: false, ..rig.record() }).expect("written");
    assert!(!is_due(&home, &target) && !republishes(&pod_dir), "and does not any more");
}
