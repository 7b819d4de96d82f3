//! APIs that another server serves, behind an APIService. Profile: loopback.

mod server;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coracle_e2e::{Cluster, Ended, Profile, SOON, eventually};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};
use server::Flowers;

/// The Service without a selector, its endpoint, and the APIService.
fn objects(flowers: &Flowers, bundle: &str) -> Value {
    let port = flowers.address.port();
    let name = json!({"name": "flowers", "namespace": "default"});
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": name,
            "spec": {"ports": [{"port": 443, "targetPort": port}]}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "flowers", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "flowers"}},
            "endpoints": [{"addresses": [flowers.address.ip().to_string()]}],
            "ports": [{"name": "", "port": port, "protocol": "TCP"}]},
        {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": "v1.flowers.example.com"},
            "spec": {"group": server::GROUP, "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 10,
                "caBundle": STANDARD.encode(bundle), "service": {"name": "flowers", "namespace": "default"}}},
    ]})
}

fn condition(cluster: &Cluster) -> Result<Value> {
    let found = cluster.get(&["apiservice", "v1.flowers.example.com"])?;
    Ok(found["status"]["conditions"][0].clone())
}

/// Asks for an upgrade through the API server, and says something.
fn say(cluster: &Cluster, ca: &str, words: &str) -> Result<String> {
    let url =
        cluster.kubectl(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"])?;
    let token =
        cluster.kubectl(&["config", "view", "--minify", "--raw", "-o", "jsonpath={.users[0].user.token}"])?;
    let address = url.trim_start_matches("https://");
    let mut roots = RootCertStore::empty();
    for der in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(der?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (host, _) = address.rsplit_once(':').context("host and port")?;
    let connection = ClientConnection::new(Arc::new(config), ServerName::try_from(host.to_owned())?)?;
    let tcp = TcpStream::connect(address)?;
    tcp.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut stream = StreamOwned::new(connection, tcp);
    write!(
        stream,
        "GET /apis/flowers.example.com/v1/namespaces/default/roses/red/talk HTTP/1.1\r\nHost: {address}\r\n\
         Authorization: Bearer {token}\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
    )?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    ensure!(head.starts_with("HTTP/1.1 101"), "{head}");
    stream.write_all(words.as_bytes())?;
    stream.flush()?;
    let mut heard = vec![0; words.len()];
    stream.read_exact(&mut heard)?;
    Ok(String::from_utf8(heard)?)
}

/// Both versions of OpenAPI say what the other server serves.
fn described(cluster: &Cluster) -> Result<()> {
    const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
    let document = |path: &str| -> Result<Value> {
        Ok(serde_json::from_str(&cluster.kubectl(&["get", "--raw", path])?)?)
    };
    let path = "/apis/flowers.example.com/v1/namespaces/{namespace}/roses/{name}";
    let v2 = document("/openapi/v2")?;
    ensure!(v2["paths"][path]["get"]["operationId"] == "readRose");
    ensure!(v2["paths"]["/api/v1/namespaces/{namespace}/pods"].is_object());
    let definitions = &v2["definitions"];
    let rose = &definitions["com.example.flowers.v1.Rose"]["properties"];
    ensure!(rose["metadata"]["$ref"] == format!("#/definitions/{META}_v2"), "{rose}");
    ensure!(definitions[format!("{META}_v2")]["description"] == "Of flowers.");
    ensure!(definitions[META]["properties"]["labels"].is_object());
    // What is none of its group's business is not told.
    ensure!(definitions["com.example.flowers.v1.Weed"].is_null());
    ensure!(v2["paths"]["/version/"]["get"]["operationId"] != "foreignVersion");
    let index = document("/openapi/v3")?;
    let listed = &index["paths"]["apis/flowers.example.com/v1"]["serverRelativeURL"];
    let v3 = document(listed.as_str().context("the group is listed")?)?;
    ensure!(v3["paths"][path]["get"]["operationId"] == "readRose");
    // As protobuf, too.
    let explained = cluster.kubectl(&["explain", "rose.thorns", "--output=plaintext-openapiv2"])?;
    ensure!(explained.contains("How many."), "{explained}");
    Ok(())
}

/// Row: API: aggregated APIs: an APIService to a server behind a Service: conditions, discovery, OpenAPI, identity of the caller, upgrades, its end
#[test]
fn another_server_serves_a_group() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    let published = cluster.get(&["-n", "kube-system", "configmap", "extension-apiserver-authentication"])?;
    let front_ca =
        published["data"]["requestheader-client-ca-file"].as_str().context("the front proxy's authority")?;
    ensure!(published["data"]["requestheader-allowed-names"] == "[\"front-proxy-client\"]", "{published}");
    let flowers = Flowers::start("127.0.231.7".parse()?, front_ca)?;

    // Not with another's certificate.
    let file = cluster.file("flowers.json", &objects(&flowers, front_ca).to_string())?;
    cluster.kubectl(&["apply", "-f", &file])?;
    eventually("the certificate is refused", Duration::from_secs(30), || {
        Ok(condition(&cluster)?["reason"] == "FailedDiscoveryCheck")
    })?;
    let file = cluster.file("flowers.json", &objects(&flowers, &flowers.bundle).to_string())?;
    cluster.kubectl(&["apply", "-f", &file])?;
    cluster.kubectl(&[
        "wait",
        "--for=condition=Available",
        "apiservice/v1.flowers.example.com",
        "--timeout=30s",
    ])?;
    let local = cluster.kubectl(&["get", "apiservices"])?;
    ensure!(local.contains("v1.apps") && local.contains("default/flowers"), "{local}");

    // Discovery of both kinds, and kubectl's own.
    let groups = cluster.kubectl(&["get", "--raw", "/apis"])?;
    ensure!(groups.contains("flowers.example.com/v1"), "{groups}");
    let resources = cluster.kubectl(&["api-resources", "--api-group=flowers.example.com"])?;
    ensure!(resources.contains("roses") && resources.contains("Rose"), "{resources}");
    eventually("its documents are read", Duration::from_secs(30), || {
        let documents = [("/openapi/v3", "apis/flowers.example.com/v1"), ("/openapi/v2", "readRose")];
        for (path, words) in documents {
            if !cluster.kubectl(&["get", "--raw", path])?.contains(words) {
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    let explained = cluster.kubectl(&["explain", "rose.thorns"])?;
    ensure!(explained.contains("How many."), "{explained}");

    described(&cluster)?;

    // The other server knows who calls, and not by what.
    let red = cluster.get(&["ro", "red"])?;
    let caller = &red["metadata"]["annotations"];
    ensure!(caller["user"] == "kubernetes-admin" && caller["tokens"] == "", "{caller}");
    ensure!(caller["groups"].as_str().is_some_and(|g| g.contains("system:masters")), "{caller}");
    let refused = cluster.kubectl_fails(&["get", "roses", "--as=jane"])?;
    ensure!(
        refused.contains("roses.flowers.example.com is forbidden: User \"jane\" cannot list"),
        "{refused}"
    );
    cluster.kubectl(&[
        "create",
        "role",
        "gardener",
        "--verb=get,list",
        "--resource=roses.flowers.example.com",
    ])?;
    cluster.kubectl(&["create", "rolebinding", "jane", "--role=gardener", "--user=jane"])?;
    let red = cluster.get(&["rose", "red", "--as=jane"])?;
    ensure!(red["metadata"]["annotations"]["user"] == "jane", "{red}");
    let lost = cluster.kubectl_fails(&["get", "rose", "white"])?;
    ensure!(lost.contains("NotFound"), "{lost}");
    let ca = cluster.kubectl(&["get", "configmap", "kube-root-ca.crt", "-o", "jsonpath={.data.ca\\.crt}"])?;
    ensure!(say(&cluster, &ca, "hello rose")? == "hello rose");

    // Its end.
    drop(flowers);
    eventually("the API is not available", Duration::from_secs(40), || {
        Ok(condition(&cluster)?["status"] == "False")
    })?;
    let refused =
        cluster.kubectl_fails(&["get", "--raw", "/apis/flowers.example.com/v1/namespaces/default/roses"])?;
    ensure!(
        refused.contains("unable to handle the request") || refused.contains("reach service"),
        "{refused}"
    );
    cluster.kubectl(&["get", "pods", "-A"])?;
    cluster.kubectl(&["delete", "apiservice", "v1.flowers.example.com"])?;
    eventually("the group is gone", SOON, || {
        Ok(!cluster.kubectl(&["get", "--raw", "/apis"])?.contains("flowers"))
    })?;
    cluster.stop()
}
