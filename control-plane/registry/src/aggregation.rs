//! Aggregated APIs: follows the APIServices, keeps an eye on the servers behind them, and passes calls on.

mod availability;
mod backend;
mod documents;
mod local;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use axum::body::Body;
use coracle_api::Status;
use coracle_apiserver::ca::Identity;
use coracle_apiserver::{ApiServer, Delegated, Delegates, Follower, Objects, ResourceDef, UserInfo};
use futures::future::join_all;
use http::{Request, Response};
use serde_json::Value;
use tokio::sync::Notify;

use crate::api_service::{GROUP, PLURAL};
use crate::value::{number, present, text};
use backend::Backend;

/// How often the servers are asked whether they are there.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long after a failure of the store it is read again.
const RETRY: Duration = Duration::from_secs(1);

/// Who serves the groups that this server does not.
pub struct Aggregator {
    /// The certificate by which other servers know this one.
    identity: Option<Identity>,
    /// Groups and versions of this project's own kinds: nobody takes their place.
    own: HashSet<(String, String)>,
    state: ArcSwap<State>,
    /// A server says something new of what it serves.
    news: Notify,
}

#[derive(Default)]
struct State {
    backends: HashMap<(String, String), Arc<Backend>>,
    /// The most important first.
    ranked: Vec<Arc<Backend>>,
    all: Arc<Vec<Delegated>>,
}

impl State {
    /// What these backends say now.
    fn of(ranked: &[Arc<Backend>]) -> Self {
        Self {
            backends: ranked.iter().map(|b| (b.key.clone(), b.clone())).collect(),
            ranked: ranked.to_vec(),
            all: Arc::new(ranked.iter().map(|b| b.delegated()).collect()),
        }
    }
}

impl Aggregator {
    /// An aggregator beside these resources.
    pub fn new(resources: &[ResourceDef], identity: Option<Identity>) -> Self {
        let own = resources.iter().map(|def| (def.group.clone(), def.version.clone())).collect();
        Self { identity, own, state: ArcSwap::default(), news: Notify::new() }
    }

    /// The servers that the APIServices name; those that are as they were are kept.
    fn backends(&self, services: &[Value]) -> Vec<Arc<Backend>> {
        let before = self.state.load();
        let foreign = services.iter().filter(|s| present(s, "/spec/service"));
        let mut all: Vec<Arc<Backend>> = foreign
            .filter(|s| !self.own.contains(&key(s)))
            .map(|service| match before.backends.get(&key(service)) {
                Some(known) if known.is(service) => known.clone(),
                _ => Arc::new(Backend::new(service, self.identity.as_ref())),
            })
            .collect();
        all.sort_by_key(|backend| backend.rank());
        all
    }

    /// Serves what the backends say now.
    fn publish(&self) {
        self.state.rcu(|state| State::of(&state.ranked));
    }

    /// Looks at every APIService once.
    async fn look(&self, server: &ApiServer) -> Result<(), Status> {
        let objects = server.objects();
        if let Err(error) = local::reconcile(server, &self.own).await {
            tracing::warn!(%error, "APIServices of groups that are served here are made later");
        }
        let services = objects.list(GROUP, PLURAL, None).await?;
        let backends = self.backends(&services);
        self.state.rcu(|_| State::of(&backends));
        let checks = services.iter().map(|service| async {
            let backend = backends.iter().find(|b| b.key == key(service));
            let (verdict, changed) = match backend {
                Some(backend) => backend.check(objects).await,
                None => (availability::Verdict::local(), false),
            };
            // One that takes its time keeps nobody else waiting.
            if changed {
                self.publish();
                self.news.notify_one();
            }
            if let Err(error) = availability::write(objects, service, &verdict).await {
                tracing::debug!(%error, service = text(service, "/metadata/name"), "availability is written later");
            }
        });
        join_all(checks).await;
        Ok(())
    }

    /// Reads once what the servers that are there say of their APIs, that of a whole server once for all its groups.
    async fn describe(&self, objects: &Objects) {
        let state = self.state.load_full();
        let mut servers: BTreeMap<String, Vec<Arc<Backend>>> = BTreeMap::new();
        for backend in state.ranked.iter().filter(|backend| backend.is_there()) {
            servers.entry(backend.server()).or_default().push(backend.clone());
        }
        let publish = |changed: bool| {
            if changed {
                self.publish()
            }
        };
        let of_servers = servers.values().map(|all| async {
            if let Some(first) = all.first() {
                publish(first.read_v2(objects, all).await);
            }
        });
        let of_groups = servers.values().flatten().map(|backend| async {
            publish(backend.read_v3(objects).await);
        });
        tokio::join!(join_all(of_servers), join_all(of_groups));
    }

    async fn watch(&self, server: &ApiServer) -> Result<(), Status> {
        let store = server.objects().store().clone();
        let prefix = format!("/registry/{GROUP}/{PLURAL}/");
        let mut watch = store.watch(prefix.into(), store.revision()).map_err(Status::internal)?;
        loop {
            self.look(server).await?;
            match tokio::time::timeout(INTERVAL, watch.next()).await {
                Ok(Err(error)) => return Err(Status::internal(error)),
                Ok(Ok(_)) => while let Ok(Some(_)) = watch.try_next() {},
                Err(_) => {}
            }
        }
    }
}

/// Group and version of an APIService.
fn key(service: &Value) -> (String, String) {
    (text(service, "/spec/group").to_owned(), text(service, "/spec/version").to_owned())
}

/// The most important first.
fn rank(service: &Value) -> (i64, String, i64) {
    (
        -number(service, "/spec/groupPriorityMinimum"),
        text(service, "/spec/group").to_owned(),
        -number(service, "/spec/versionPriority"),
    )
}

#[async_trait]
impl Delegates for Aggregator {
    fn has(&self, group: &str, version: &str) -> bool {
        let state = self.state.load();
        !state.backends.is_empty() && state.backends.contains_key(&(group.to_owned(), version.to_owned()))
    }

    fn all(&self) -> Arc<Vec<Delegated>> {
        self.state.load().all.clone()
    }

    async fn forward(
        &self,
        objects: &Objects,
        (group, version): (&str, &str),
        user: &UserInfo,
        request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        let backend = self.state.load().backends.get(&(group.to_owned(), version.to_owned())).cloned();
        let Some(backend) = backend else { return Err(Status::resource_not_found()) };
        backend.send(objects, user, request).await
    }
}

#[async_trait]
impl Follower for Aggregator {
    async fn follow(&self, server: ApiServer) {
        let watched = async {
            loop {
                if let Err(error) = self.watch(&server).await {
                    tracing::warn!(%error, "APIServices are looked at again in a moment");
                }
                tokio::time::sleep(RETRY).await;
            }
        };
        let described = async {
            loop {
                // Without news it is time all the same.
                let _ = tokio::time::timeout(INTERVAL, self.news.notified()).await;
                self.describe(server.objects()).await;
            }
        };
        tokio::join!(watched, described);
    }
}
