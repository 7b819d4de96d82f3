//! Watches Services and EndpointSlices and streams the table to the runtime whenever it changes.

use std::hash::Hash;
use std::time::Duration;

use coracle_cri_api::network as feed;
use coracle_cri_api::network::service_table_client::ServiceTableClient;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::events::{self, Reporter};
use crate::plan::{self, Settings};

/// Changes that arrive within this time are sent as one table.
const COALESCE: Duration = Duration::from_millis(5);
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What the feed needs to know.
#[derive(Clone)]
pub struct Options {
    /// Reads Services and EndpointSlices, writes Events.
    pub client: Client,
    /// `unix:///path` of the CRI service, which serves the table too.
    pub runtime_endpoint: String,
    /// The name of this node, for Events.
    pub node_name: String,
    /// Where NodePorts listen.
    pub node_ip: String,
    /// Such as `cluster.local`.
    pub cluster_domain: String,
}

/// [`run_with`] for the first node of a `loopback` cluster: node `node-1` at 127.0.1.1, domain `cluster.local`.
pub async fn run(
    client: Client,
    runtime_endpoint: String,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let options = Options {
        client,
        runtime_endpoint,
        node_name: "node-1".into(),
        node_ip: "127.0.1.1".into(),
        cluster_domain: "cluster.local".into(),
    };
    run_with(options, shutdown).await
}

/// Runs until `shutdown`; a server or runtime that is away is waited for.
pub async fn run_with(options: Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    let (changed, changes) = watch::channel(0_u64);
    let services = reflect::<Service>(&options.client, changed.clone());
    let slices = reflect::<EndpointSlice>(&options.client, changed);
    let (services, watch_services) = services;
    let (slices, watch_slices) = slices;
    let send = send(&options, services, slices, changes);
    tokio::select! {
        () = watch_services => {}
        () = watch_slices => {}
        () = send => {}
        () = shutdown.cancelled() => {}
    }
    Ok(())
}

fn reflect<K>(client: &Client, changed: watch::Sender<u64>) -> (Store<K>, impl Future<Output = ()>)
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone,
{
    let (store, writer) = reflector::store();
    let stream = watcher(Api::<K>::all(client.clone()), watcher::Config::default()).default_backoff();
    let drive = reflector::reflector(writer, stream).for_each(move |event| {
        match event {
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
            Ok(_) => changed.send_modify(|n| *n += 1),
            Err(error) => tracing::debug!(%error, kind = std::any::type_name::<K>(), "watch interrupted"),
        }
        futures::future::ready(())
    });
    (store, drive)
}

/// Sends tables for ever, over one connection after the other.
async fn send(
    options: &Options,
    services: Store<Service>,
    slices: Store<EndpointSlice>,
    mut changes: watch::Receiver<u64>,
) {
    if services.wait_until_ready().await.is_err() || slices.wait_until_ready().await.is_err() {
        return;
    }
    let mut session = Session {
        options,
        settings: Settings {
            node_ip: options.node_ip.clone(),
            cluster_domain: options.cluster_domain.clone(),
        },
        services,
        slices,
        generation: 0,
        reporter: Reporter::default(),
    };
    let mut delay = RETRY_MIN;
    loop {
        let started = tokio::time::Instant::now();
        if let Err(error) = session.connection(&mut changes).await {
            tracing::debug!(%error, "Service table stream interrupted");
        }
        if started.elapsed() > RETRY_MAX {
            delay = RETRY_MIN;
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(RETRY_MAX);
    }
}

struct Session<'a> {
    options: &'a Options,
    settings: Settings,
    services: Store<Service>,
    slices: Store<EndpointSlice>,
    generation: u64,
    reporter: Reporter,
}

impl Session<'_> {
    fn table(&self) -> feed::Table {
        let services = self.services.state();
        let slices = self.slices.state();
        plan::table(services.iter().map(AsRef::as_ref), slices.iter().map(AsRef::as_ref), &self.settings)
    }

    /// One stream to the runtime, until it breaks.
    async fn connection(&mut self, changes: &mut watch::Receiver<u64>) -> anyhow::Result<()> {
        let channel = coracle_cri_api::connect(&self.options.runtime_endpoint).await?;
        let mut client = ServiceTableClient::new(channel)
            .max_decoding_message_size(coracle_cri_api::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(coracle_cri_api::MAX_MESSAGE_BYTES);
        let (tables, outgoing) = mpsc::channel(1);
        changes.mark_unchanged();
        let mut last = self.table();
        self.generation += 1;
        tables.send(feed::Table { generation: self.generation, ..last.clone() }).await?;
        let mut applied = client.sync(ReceiverStream::new(outgoing)).await?.into_inner();
        loop {
            tokio::select! {
                answer = applied.message() => match answer? {
                    Some(answer) => self.report(&answer.errors).await,
                    None => anyhow::bail!("the runtime ended the stream"),
                },
                changed = changes.changed() => {
                    changed?;
                    tokio::time::sleep(COALESCE).await;
                    changes.mark_unchanged();
                    let table = self.table();
                    if table != last {
                        self.generation += 1;
                        tables.send(feed::Table { generation: self.generation, ..table.clone() }).await?;
                        last = table;
                    }
                }
            }
        }
    }

    async fn report(&mut self, errors: &[feed::ListenerError]) {
        for error in self.reporter.fresh(errors) {
            tracing::warn!(
                service = error.service,
                address = error.address,
                port = error.port,
                reason = error.reason,
                "{}",
                error.message
            );
            let service = error
                .service
                .split_once('/')
                .and_then(|(namespace, name)| self.services.get(&ObjectRef::new(name).within(namespace)));
            if let Some(event) = events::event(&error, service.as_deref(), &self.options.node_name) {
                events::write(&self.options.client, event).await;
            }
        }
    }
}
