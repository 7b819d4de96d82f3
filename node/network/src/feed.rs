//! Streams the table to the runtime whenever it changes.

use std::sync::Arc;
use std::time::Duration;

use coracle_cri_api::network as feed;
use coracle_cri_api::network::service_table_client::ServiceTableClient;
use kube::Client;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use crate::cache::Cache;
use crate::events::{self, Reporter};

const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// The table of now, once there is one; its generation is left 0.
pub type Latest = watch::Receiver<Option<Arc<feed::Table>>>;

/// What the feed needs to know.
pub struct Feed {
    /// Writes Events.
    pub client: Client,
    /// `unix:///path` of the CRI service, which serves the table too.
    pub runtime_endpoint: String,
    /// The name of this node, for Events.
    pub node_name: String,
    pub cache: Cache,
}

impl Feed {
    /// Sends tables for ever, over one connection after the other; a runtime that is away is waited for.
    pub async fn run(self, mut tables: Latest) {
        let mut session = Session { feed: &self, generation: 0, reporter: Reporter::default() };
        let mut delay = RETRY_MIN;
        loop {
            let started = tokio::time::Instant::now();
            if let Err(error) = session.connection(&mut tables).await {
                tracing::debug!(%error, "Service table stream interrupted");
            }
            if started.elapsed() > RETRY_MAX {
                delay = RETRY_MIN;
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RETRY_MAX);
        }
    }
}

struct Session<'a> {
    feed: &'a Feed,
    generation: u64,
    reporter: Reporter,
}

impl Session<'_> {
    /// One stream to the runtime, until it breaks.
    async fn connection(&mut self, tables: &mut Latest) -> anyhow::Result<()> {
        let channel = coracle_cri_api::connect(&self.feed.runtime_endpoint).await?;
        let mut client = ServiceTableClient::new(channel)
            .max_decoding_message_size(coracle_cri_api::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(coracle_cri_api::MAX_MESSAGE_BYTES);
        let (send, outgoing) = mpsc::channel(1);
        tables.wait_for(Option::is_some).await?;
        self.pass_on(tables, &send).await?;
        let mut applied = client.sync(ReceiverStream::new(outgoing)).await?.into_inner();
        loop {
            tokio::select! {
                answer = applied.message() => match answer? {
                    Some(answer) => self.report(&answer.errors).await,
                    None => anyhow::bail!("the runtime ended the stream"),
                },
                changed = tables.changed() => {
                    changed?;
                    self.pass_on(tables, &send).await?;
                }
            }
        }
    }

    async fn pass_on(&mut self, tables: &mut Latest, send: &mpsc::Sender<feed::Table>) -> anyhow::Result<()> {
        let table = tables.borrow_and_update().clone();
        if let Some(table) = table {
            self.generation += 1;
            send.send(feed::Table { generation: self.generation, ..(*table).clone() }).await?;
        }
        Ok(())
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
            let service = error.service.split_once('/').and_then(|(namespace, name)| {
                self.feed.cache.services.get(&ObjectRef::new(name).within(namespace))
            });
            if let Some(event) = events::event(&error, service.as_deref(), &self.feed.node_name) {
                events::write(&self.feed.client, event).await;
            }
        }
    }
}
