//! The node API on port 10250: logs, pods, health and resource metrics, for clients with a certificate of the cluster or a
//! token, and the right to it.

use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::Options;
use crate::context::Context;
use crate::cpus::Policy;
use crate::memory;
use crate::pods::source::Pods;
use crate::tuning::Tuning;
use auth::Auth;

mod auth;
mod cadvisor;
mod checkpoint;
mod container_logs;
mod metrics;
mod streams;
pub mod tls;

/// Connections at a time.
const MAX_CONNECTIONS: usize = 1024;
const HANDSHAKE: std::time::Duration = std::time::Duration::from_secs(10);

/// What the handlers share.
#[derive(Clone)]
struct Shared {
    context: Arc<Context>,
    pods: Pods,
}

/// The node API, bound and not yet serving.
pub struct Server {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    router: Router,
    auth: Arc<Auth>,
}

impl Server {
    /// Binds; the port is known afterwards.
    pub async fn bind(options: &Options, context: Arc<Context>, pods: Pods) -> anyhow::Result<Self> {
        let address = (options.node_ip, options.port);
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("bind the node API to {}:{}", options.node_ip, options.port))?;
        let acceptor = tls::acceptor(&options.serving_cert, &options.client_ca_pem)?;
        let auth = Arc::new(Auth::new(context.client.clone(), context.node_name.clone()));
        Ok(Self {
            auth,
            listener,
            acceptor,
            router: router(Shared { context, pods }).merge(options.more_routes.clone()),
        })
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.listener.local_addr().map_or(0, |a| a.port())
    }

    /// Serves until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let stream = tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "the node API could not accept a connection");
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                        continue;
                    }
                },
                () = shutdown.cancelled() => return,
            };
            let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
            let (acceptor, router, stop) = (self.acceptor.clone(), self.router.clone(), shutdown.clone());
            let auth = self.auth.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = serve(acceptor, router, auth, stream) => {}
                    () = stop.cancelled() => {}
                }
                drop(slot);
            });
        }
    }
}

async fn serve(acceptor: TlsAcceptor, router: Router, auth: Arc<Auth>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake with the node API failed"),
        Err(_) => return,
    };
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let certified = Arc::new(shown.and_then(tls::certified));
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (router, auth, certified) = (router.clone(), auth.clone(), certified.clone());
        async move {
            let may =
                auth.check((*certified).as_ref(), request.method(), request.uri().path(), request.headers());
            match may.await {
                Ok(()) => router.oneshot(request).await,
                Err(refusal) => Ok(refusal),
            }
        }
    });
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        tracing::debug!(error, "a connection to the node API ended");
    }
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/pods", get(pods))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(container_logs::get))
        .route("/configz", get(configz))
        .route("/checkpoint/{namespace}/{pod}/{container}", post(checkpoint::post))
        .route("/metrics", get(metrics::agent))
        .route("/metrics/cadvisor", get(cadvisor::get))
        .route("/metrics/probes", get(metrics::probes))
        .route("/metrics/resource", get(metrics::resource))
        .route("/stats/summary", get(metrics::summary))
        .route("/exec/{namespace}/{pod}/{container}", any(streams::exec))
        .route("/exec/{namespace}/{pod}/{uid}/{container}", any(streams::exec))
        .route("/attach/{namespace}/{pod}/{container}", any(streams::attach))
        .route("/attach/{namespace}/{pod}/{uid}/{container}", any(streams::attach))
        .route("/portForward/{namespace}/{pod}", any(streams::port_forward))
        .route("/portForward/{namespace}/{pod}/{uid}", any(streams::port_forward))
        .route("/run/{namespace}/{pod}/{container}", post(streams::run))
        .route("/run/{namespace}/{pod}/{uid}/{container}", post(streams::run))
        .with_state(shared)
}

/// What of the configuration others can see, in the form of a kubelet's.
async fn configz(State(shared): State<Shared>) -> Response {
    let context = &shared.context;
    let tuning = &context.tuning;
    let thresholds = |soft: bool| -> std::collections::BTreeMap<&str, String> {
        let all = tuning.eviction.thresholds.iter().filter(|t| t.grace.is_some() == soft);
        all.map(|t| (t.signal.name(), t.amount.words())).collect()
    };
    let config = json!({
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "address": context.node_ip,
        "clusterDomain": context.dns.domain,
        "clusterDNS": context.dns.servers,
        "containerLogMaxSize": tuning.logs.bytes.to_string(),
        "containerLogMaxFiles": tuning.logs.files,
        "maxPods": context.max_pods,
        "evictionHard": thresholds(false),
        "evictionSoft": thresholds(true),
        "evictionPressureTransitionPeriod": format!("{}s", tuning.eviction.transition.as_secs()),
        "imageGCHighThresholdPercent": tuning.images.high,
        "imageGCLowThresholdPercent": tuning.images.low,
        "imageMinimumGCAge": format!("{}s", tuning.images.min_age.as_secs()),
        "staticPodPath": tuning.static_pods,
        "shutdownGracePeriod": format!("{}s", tuning.shutdown.grace.as_secs()),
        "shutdownGracePeriodCriticalPods": format!("{}s", tuning.shutdown.critical.as_secs()),
        "kubeReserved": tuning.kube_reserved.words(),
        "systemReserved": tuning.system_reserved.words(),
        "cpuManagerPolicy": match tuning.cpus { Policy::None => "none", Policy::Static => "static" },
        "cpuManagerReconcilePeriod": "10s",
        "reservedSystemCPUs": Some(&tuning.reserved_cpus).filter(|set| !set.is_empty()).map(crate::cpus::set::words),
        "cpuManagerPolicyOptions": Some(tuning.cpu_options.words()).filter(|given| !given.is_empty()),
        "topologyManagerPolicy": tuning.topology.policy.word(),
        "topologyManagerScope": tuning.topology.scope.word(),
        "topologyManagerPolicyOptions": Some(tuning.topology.options.words()).filter(|given| !given.is_empty()),
        "featureGates": Some(tuning.gates.words()).filter(|given| !given.is_empty()),
        "memoryManagerPolicy": match tuning.memory { memory::Policy::None => "None", memory::Policy::Static => "Static" },
        "reservedMemory": Some(reserved_memory(tuning)).filter(|list| !list.is_empty()),
        "seccompDefault": tuning.seccomp_default,
        "enforceNodeAllocatable": if tuning.enforce { ["pods"] } else { ["none"] },
        "allowedUnsafeSysctls": tuning.sysctls.words(),
        "nodeStatusReportFrequency": "5m0s",
        "nodeLeaseDurationSeconds": 40,
    });
    axum::Json(json!({"kubeletconfig": config})).into_response()
}

fn reserved_memory(tuning: &Tuning) -> Vec<serde_json::Value> {
    let words = |of: &memory::machine::Amounts| -> std::collections::BTreeMap<String, String> {
        of.iter().map(|(name, bytes)| (name.clone(), memory::words(*bytes))).collect()
    };
    tuning.reserved_memory.iter().map(|(node, of)| json!({"numaNode": node, "limits": words(of)})).collect()
}

async fn pods(State(shared): State<Shared>) -> Response {
    let items: Vec<_> = shared.pods.list().iter().map(|p| p.as_ref().clone()).collect();
    axum::Json(json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})).into_response()
}
