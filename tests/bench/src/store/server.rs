//! The store behind etcd's API, as far as it is measured.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;

use anyhow::{Context, Result};
use coracle_store::{Error, EventKind, KeyValue, Options, Peering, Range, Store, Txn, Value, Watch, Way};
use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::api::kv_server::{Kv, KvServer};
use super::api::watch_request::RequestUnion;
use super::api::watch_server::{Watch as WatchApi, WatchServer};
use super::api::{self, event};
use super::served::certificates;

/// Most events of one answer.
const BATCH: usize = 256;

struct Served(Store);

fn failed(error: Error) -> Status {
    Status::unavailable(error.to_string())
}

fn header(revision: u64) -> Option<api::ResponseHeader> {
    Some(api::ResponseHeader { revision: revision as i64, ..Default::default() })
}

fn shown(kv: &KeyValue) -> api::KeyValue {
    api::KeyValue {
        key: kv.key.to_vec(),
        create_revision: kv.create_revision as i64,
        mod_revision: kv.mod_revision as i64,
        version: kv.version as i64,
        value: kv.value.json.to_vec(),
        lease: 0,
    }
}

#[tonic::async_trait]
impl Kv for Served {
    async fn range(&self, ask: Request<api::RangeRequest>) -> Result<Response<api::RangeResponse>, Status> {
        let ask = ask.into_inner();
        self.0.linearizable().await.map_err(failed)?;
        let mut answer = api::RangeResponse { header: header(self.0.revision()), ..Default::default() };
        if ask.range_end.is_empty() {
            answer.kvs = self.0.get(&ask.key).iter().map(|kv| shown(kv)).collect();
            answer.count = answer.kvs.len() as i64;
        } else {
            let range = Range {
                start: ask.key.into(),
                end: Some(ask.range_end.into()),
                limit: ask.limit as usize,
                revision: u64::try_from(ask.revision).ok().filter(|revision| *revision > 0),
            };
            let found = self.0.range(&range).map_err(failed)?;
            answer.kvs = found.kvs.iter().map(|kv| shown(kv)).collect();
            (answer.more, answer.count) = (found.more, found.count as i64);
        }
        Ok(Response::new(answer))
    }

    async fn put(&self, ask: Request<api::PutRequest>) -> Result<Response<api::PutResponse>, Status> {
        let ask = ask.into_inner();
        let txn = Txn::put(ask.key.into(), Value::raw(ask.value));
        let done = self.0.txn(txn).await.map_err(failed)?;
        Ok(Response::new(api::PutResponse { header: header(done.revision) }))
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<api::WatchResponse, Status>> + Send>>;

#[tonic::async_trait]
impl WatchApi for Served {
    type WatchStream = Answers;

    async fn watch(&self, asks: Request<Streaming<api::WatchRequest>>) -> Result<Response<Answers>, Status> {
        let mut asks = asks.into_inner();
        let ask = asks.message().await?.and_then(|ask| ask.request_union);
        let Some(RequestUnion::CreateRequest(create)) = ask else {
            return Err(Status::invalid_argument("a watch begins with its making"));
        };
        let after = match u64::try_from(create.start_revision) {
            Ok(revision) if revision > 0 => revision - 1,
            _ => self.0.revision(),
        };
        let watch = self.0.watch(create.key.into(), after).map_err(failed)?;
        let created = api::WatchResponse { header: header(after), created: true, ..Default::default() };
        let events = futures::stream::try_unfold((watch, asks), async |(mut watch, asks)| {
            let answer = next(&mut watch).await.map_err(failed)?;
            Ok(Some((answer, (watch, asks))))
        });
        Ok(Response::new(futures::stream::iter([Ok(created)]).chain(events).boxed()))
    }
}

/// What there is, at least one event.
async fn next(watch: &mut Watch) -> Result<api::WatchResponse, Error> {
    let mut some = vec![watch.next().await?];
    while some.len() < BATCH
        && let Some(event) = watch.try_next()?
    {
        some.push(event);
    }
    let revision = some.last().map_or(0, |event| event.revision);
    let events = some.iter().map(|event| {
        let kind = match event.kind {
            EventKind::Put => event::EventType::Put,
            EventKind::Delete => event::EventType::Delete,
        };
        api::Event { r#type: kind.into(), kv: Some(shown(&event.kv)) }
    });
    Ok(api::WatchResponse { header: header(revision), events: events.collect(), ..Default::default() })
}

/// What a member of a cluster is told; nothing where it is alone.
#[derive(Default, clap::Args)]
pub struct Cluster {
    /// Its id, and where it listens for the others: `ID@ADDRESS`.
    #[arg(long, hide = true, requires = "certificates")]
    member: Option<Peer>,
    /// A member that runs already.
    #[arg(long, hide = true)]
    join: Option<Peer>,
    /// Where its certificates lie.
    #[arg(long, hide = true)]
    certificates: Option<PathBuf>,
}

/// A member and its address.
#[derive(Clone)]
struct Peer(u64, String);

impl FromStr for Peer {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (id, address) = text.split_once('@').context("not ID@ADDRESS")?;
        Ok(Self(id.parse()?, address.to_owned()))
    }
}

/// Serves a store until the process ends.
///
/// # Errors
/// When the store or the address does not open.
pub async fn serve(dir: &Path, address: SocketAddr, cluster: Cluster) -> Result<()> {
    let store = match (cluster.member, cluster.certificates) {
        (Some(Peer(node_id, peer)), Some(tls)) => {
            let listener = tokio::net::TcpListener::bind(&peer).await?;
            let peering = Peering {
                way: Way::Sockets { listener, tls: certificates(&tls)?, dial: None },
                address: peer,
                cluster: "bench".into(),
                join: cluster.join.into_iter().map(|Peer(id, address)| (id, address)).collect(),
                routes: Default::default(),
            };
            Store::open_member(Options { node_id, ..Options::new(dir) }, peering).await?
        }
        _ => Store::open(Options::new(dir)).await?,
    };
    let mut server = tonic::transport::Server::builder().tcp_nodelay(true);
    let routes =
        server.add_service(KvServer::new(Served(store.clone()))).add_service(WatchServer::new(Served(store)));
    Ok(routes.serve(address).await?)
}
