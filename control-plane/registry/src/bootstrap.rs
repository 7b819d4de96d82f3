//! Objects that every cluster has from its first second: the system's namespaces, and the Service through which pods find the
//! API server. Default service accounts are a controller's business.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coracle_api::status::Status;
use coracle_apiserver::{ApiServer, UserInfo};
use http::{Method, Request, header};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::namespace::SYSTEM;
use crate::networking::{GROUP, service_cidr};
use crate::options::RegistryOptions;
use crate::value::{items, text};

/// Most bytes of an answer.
const ANSWER_MAX: usize = 1 << 20;

/// What can run pods: a shared process for wasm, one process for each wasm pod, Linux containers.
const RUNTIMES: [&str; 3] = ["wasm", "wasm-isolated", "runc"];

/// Who makes volumes of the class `local`: a controller of this project.
const LOCAL_PROVISIONER: &str = "coracle.dev/local";

/// The identity that creates these objects.
const USER: &str = "system:apiserver";

/// Creates what is missing. Safe to repeat. The endpoints of `kubernetes` are kept by who knows which servers live.
///
/// # Errors
/// The first answer of the server that is neither a success nor "already exists".
pub async fn bootstrap(server: &ApiServer, options: &RegistryOptions) -> Result<(), Status> {
    for name in SYSTEM {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        ensure(server, "/api/v1/namespaces", &namespace).await?;
    }
    crate::authz::defaults::reconcile(server).await?;
    for (path, object) in crate::flow_control::defaults() {
        ensure(server, path, &object).await?;
    }
    for (path, object) in classes(options) {
        ensure(server, path, &object).await?;
    }
    services(server, options).await?;
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let wanted = kubernetes_slice(options);
    ensure(server, slices, &wanted).await?;
    if let Some(ca_pem) = &options.ca_pem {
        let path = "/api/v1/namespaces/kube-system/configmaps";
        ensure(server, path, &extension_authentication(ca_pem)).await?;
        ensure(server, "/api/v1/namespaces/kube-public/configmaps", &cluster_info(options, ca_pem)).await?;
    }
    Ok(())
}

/// Makes the range of Service addresses and the system's Services again when somebody deleted them: looks every `period` until
/// `shutdown`.
pub async fn keep_services(
    server: &ApiServer,
    options: &RegistryOptions,
    period: Duration,
    shutdown: impl Future<Output = ()>,
) {
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            () = tokio::time::sleep(period) => {}
            () = &mut shutdown => return,
        }
        if let Err(error) = services(server, options).await {
            tracing::debug!(%error, "the system's Services are looked at again later");
        }
    }
}

/// The range first: the Services have addresses of it. While it is being deleted, or where another Service has the address, a
/// missing one cannot be made: that stops nobody, and is tried again.
async fn services(server: &ApiServer, options: &RegistryOptions) -> Result<(), Status> {
    ensure(server, "/apis/networking.k8s.io/v1/servicecidrs", &service_cidr(options)).await?;
    service_cidr_is_ready(server).await?;
    for (namespace, service) in
        [("default", kubernetes_service(options)), ("kube-system", dns_service(options))]
    {
        match ensure(server, &format!("/api/v1/namespaces/{namespace}/services"), &service).await {
            Err(error) if error.code == 422 => {
                tracing::warn!(%error, namespace, "a Service of the system cannot be made yet");
            }
            done => done?,
        }
    }
    Ok(())
}

/// What a node that joins is told before it can trust anybody: where the cluster is, and its authority. The token that it
/// joins with has signed it.
fn cluster_info(options: &RegistryOptions, ca_pem: &str) -> Value {
    let server = format!("https://{}", SocketAddr::from(options.api_server));
    let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "clusters": [{"name": "", "cluster": {
        "server": server, "certificate-authority-data": STANDARD.encode(ca_pem),
    }}]});
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "cluster-info", "namespace": "kube-public"},
        "data": {"kubeconfig": format!("{kubeconfig:#}\n")},
    })
}

/// How the servers of aggregated APIs know this one, and its callers.
fn extension_authentication(ca_pem: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": {
            "client-ca-file": ca_pem,
            "requestheader-client-ca-file": ca_pem,
            "requestheader-allowed-names": json!([crate::FRONT_PROXY]).to_string(),
            "requestheader-username-headers": "[\"X-Remote-User\"]",
            "requestheader-uid-headers": "[\"X-Remote-Uid\"]",
            "requestheader-group-headers": "[\"X-Remote-Group\"]",
            "requestheader-extra-headers-prefix": "[\"X-Remote-Extra-\"]",
        },
    })
}

fn service_cidr(options: &RegistryOptions) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": service_cidr::DEFAULT},
        "spec": {"cidrs": [options.service_cidr.to_string()]},
    })
}

async fn service_cidr_is_ready(server: &ApiServer) -> Result<(), Status> {
    let now = coracle_api::time::now();
    let done = server.objects().update(GROUP, "servicecidrs", None, service_cidr::DEFAULT, |range| {
        if items(range, "/status/conditions").is_empty() {
            crate::value::set(
                range,
                "status",
                json!({"conditions": [{
                    "type": "Ready", "status": "True", "lastTransitionTime": now,
                    "reason": "", "message": "Kubernetes Service CIDR is ready",
                }]}),
            );
        }
        Ok(())
    });
    done.await.map(drop)
}

/// The classes that every cluster has: priorities of the system, the runtimes of this project, storage on the nodes' own disks.
fn classes(options: &RegistryOptions) -> Vec<(&'static str, Value)> {
    let mut all = Vec::new();
    for (name, value, description) in crate::priority_class::SYSTEM {
        all.push((
            "/apis/scheduling.k8s.io/v1/priorityclasses",
            json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
                "value": value, "description": description}),
        ));
    }
    for name in RUNTIMES {
        all.push((
            "/apis/node.k8s.io/v1/runtimeclasses",
            json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name}, "handler": name}),
        ));
    }
    if options.default_storage_class {
        all.push((
            "/apis/storage.k8s.io/v1/storageclasses",
            json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
                "metadata": {"name": "local", "annotations": {crate::storage::DEFAULT_CLASS: "true"}},
                "provisioner": LOCAL_PROVISIONER, "volumeBindingMode": "WaitForFirstConsumer"}),
        ));
    }
    all
}

/// The Service `default/kubernetes`: the first address of the range, port 443.
fn kubernetes_service(options: &RegistryOptions) -> Value {
    let first = match options.service_cidr.base {
        IpAddr::V4(ip) => IpAddr::from((u32::from(ip) + 1).to_be_bytes()),
        IpAddr::V6(ip) => IpAddr::from((u128::from(ip) + 1).to_be_bytes()),
    };
    let (_, port) = options.api_server;
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {"type": "ClusterIP", "clusterIP": first.to_string(), "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}]},
    })
}

/// The Service `kube-system/kube-dns`: the tenth address of the range. It has no endpoints: every node answers there by
/// itself.
fn dns_service(options: &RegistryOptions) -> Value {
    let tenth = match options.service_cidr.base {
        IpAddr::V4(ip) => IpAddr::from((u32::from(ip) + 10).to_be_bytes()),
        IpAddr::V6(ip) => IpAddr::from((u128::from(ip) + 10).to_be_bytes()),
    };
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system",
            "labels": {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"}},
        "spec": {"type": "ClusterIP", "clusterIP": tenth.to_string(), "sessionAffinity": "None", "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
            {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
        ]},
    })
}

fn kubernetes_slice(options: &RegistryOptions) -> Value {
    let (address, port) = options.api_server;
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [address.to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    })
}

/// Creates an object unless it exists.
async fn ensure(server: &ApiServer, path: &str, object: &Value) -> Result<(), Status> {
    let name = text(object, "/metadata/name");
    match call(server, Method::GET, &format!("{path}/{name}"), None).await {
        Ok(_) => return Ok(()),
        Err(status) if status.is_not_found() => {}
        Err(status) => return Err(status),
    }
    match call(server, Method::POST, path, Some(object)).await {
        Err(status) if !status.is_already_exists() => Err(status),
        _ => Ok(()),
    }
}

pub(crate) async fn call(
    server: &ApiServer,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, Status> {
    let body = body.map_or_else(Body::empty, |b| Body::from(b.to_string()));
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, "coracle-bootstrap")
        .body(body)
        .map_err(Status::internal)?;
    let service = server.service_as(UserInfo::new(USER, &["system:masters"]));
    let response = match service.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let failed = !response.status().is_success();
    let bytes = axum::body::to_bytes(response.into_body(), ANSWER_MAX).await.map_err(Status::internal)?;
    let value: Value = serde_json::from_slice(&bytes).map_err(Status::internal)?;
    if failed {
        return Err(
            Status::from_value(&value).unwrap_or_else(|| Status::internal(format!("{path}: {value}")))
        );
    }
    Ok(value)
}
