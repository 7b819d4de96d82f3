//! Who may do what: users, groups, service accounts. Profile: loopback.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coracle_e2e::{Cluster, Ended, Profile, SOON, eventually, kubectl, shown};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::{Value, json};

/// The API as somebody with a bearer token, by hand: status code and body.
fn curl_api(
    cluster: &Cluster,
    token: Option<&str>,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<(u16, Value)> {
    let server =
        cluster.kubectl(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"])?;
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--insecure",
        "--max-time",
        "10",
        "--write-out",
        "\n%{http_code}",
        "-X",
        method,
    ]);
    if let Some(token) = token {
        command.arg("-H").arg(format!("Authorization: Bearer {token}"));
    }
    if let Some(body) = body {
        command.args(["-H", "Content-Type: application/json", "-d"]).arg(body.to_string());
    }
    let out = coracle_e2e::succeed(command.arg(format!("{server}{path}")))?;
    let (text, code) = out.rsplit_once('\n').context("no code")?;
    Ok((code.parse()?, serde_json::from_str(text).unwrap_or_else(|_| text.into())))
}

/// A certificate for a user, got as a person gets it: a request, approved by the administrator.
fn certificate(cluster: &Cluster, user: &str) -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    let pem = params.serialize_request(&key)?.pem()?;
    let object = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": user},
        "spec": {"request": STANDARD.encode(pem), "signerName": "kubernetes.io/kube-apiserver-client",
            "usages": ["client auth"], "expirationSeconds": 3600},
    });
    cluster.kubectl(&["create", "-f", &cluster.file("csr.json", &object.to_string())?])?;
    ensure!(cluster.kubectl(&["get", "csr", user])?.contains("Pending"));
    cluster.kubectl(&["certificate", "approve", user])?;
    let mut issued = String::new();
    eventually("the certificate is issued", SOON, || {
        issued = cluster.kubectl(&["get", "csr", user, "-o", "jsonpath={.status.certificate}"])?;
        Ok(!issued.is_empty())
    })?;
    ensure!(cluster.kubectl(&["get", "csr", user])?.contains("Approved,Issued"));
    let cert = String::from_utf8(STANDARD.decode(issued)?)?;
    Ok((cluster.file("user.crt", &cert)?, cluster.file("user.key", &key.serialize_pem())?))
}

/// Row: authorization: a user with a certificate of her own does what a role grants and nothing else; can-i, whoami, impersonation, escalation
#[test]
fn mission_m24_a_user_may_do_only_what_a_role_grants() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    let (cert, key) = certificate(&cluster, "jane")?;
    let as_jane = |args: &[&str]| {
        let mut command = cluster.command(kubectl()?);
        // The token of the administrator must not be sent along.
        command
            .arg("--token=")
            .arg(format!("--client-certificate={cert}"))
            .arg(format!("--client-key={key}"));
        let out = command.args(args).output()?;
        anyhow::Ok((out.status.success(), shown(&out)))
    };
    let (done, said) = as_jane(&["auth", "whoami"])?;
    ensure!(done && said.contains("jane"), "{said}");
    let (done, said) = as_jane(&["get", "pods"])?;
    let words = "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"";
    ensure!(!done && said.contains(words), "{said}");
    cluster.kubectl(&["create", "role", "reader", "--verb=get,list", "--resource=pods"])?;
    cluster.kubectl(&["create", "rolebinding", "jane-reads", "--role=reader", "--user=jane"])?;
    let (done, said) = as_jane(&["get", "pods"])?;
    ensure!(done, "{said}");
    for args in [
        &["delete", "pod", "any"][..],
        &["-n", "kube-system", "get", "pods"],
        &["get", "pods", "-A"],
        &["get", "secrets"],
        &["get", "nodes"],
        &["get", "--raw", "/metrics"],
    ] {
        let (done, said) = as_jane(args)?;
        ensure!(!done && said.contains("Forbidden"), "{args:?}: {said}");
    }
    let (done, said) = as_jane(&["auth", "can-i", "list", "pods"])?;
    ensure!(done && said.contains("yes"), "{said}");
    ensure!(cluster.kubectl_fails(&["auth", "can-i", "delete", "pods", "--as=jane"])?.contains("no"));
    ensure!(cluster.kubectl(&["auth", "can-i", "--list", "--as=jane"])?.contains("pods"));
    // Nobody gives what he does not hold.
    cluster.kubectl(&[
        "create",
        "role",
        "granter",
        "--verb=create",
        "--resource=roles.rbac.authorization.k8s.io,rolebindings.rbac.authorization.k8s.io",
    ])?;
    cluster.kubectl(&["create", "rolebinding", "jane-grants", "--role=granter", "--user=jane"])?;
    let (done, said) = as_jane(&["create", "role", "more", "--verb=delete", "--resource=pods"])?;
    let words = "is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}";
    ensure!(!done && said.contains(words), "{said}");
    let (done, said) =
        as_jane(&["create", "rolebinding", "up", "--clusterrole=cluster-admin", "--user=jane"])?;
    ensure!(!done && said.contains("not currently held"), "{said}");
    let (done, said) = as_jane(&["create", "role", "same", "--verb=get", "--resource=pods"])?;
    ensure!(done, "{said}");
    let (done, said) = as_jane(&["get", "pods", "--as=system:admin"])?;
    ensure!(!done && said.contains("cannot impersonate resource \"users\""), "{said}");
    // Groups, and a role that ends.
    cluster.kubectl(&["create", "clusterrolebinding", "ops", "--clusterrole=view", "--group=ops"])?;
    cluster.kubectl(&["get", "services", "-A", "--as=joe", "--as-group=ops"])?;
    cluster.kubectl_fails(&["get", "secrets", "-A", "--as=joe", "--as-group=ops"])?;
    cluster.kubectl(&["delete", "rolebinding", "jane-reads"])?;
    let (done, said) = as_jane(&["get", "pods"])?;
    ensure!(!done && said.contains("Forbidden"), "{said}");
    // What was taken from a default role comes back; what is asked for is reconciled.
    let role = "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: reader, namespace: default}\nrules: [{apiGroups: [''], resources: [services], verbs: [get]}]\n";
    cluster.kubectl(&["auth", "reconcile", "-f", &cluster.file("role.yaml", role)?])?;
    let rules = cluster.get(&["role", "reader"])?["rules"].clone();
    ensure!(rules.to_string().contains("services") && rules.to_string().contains("pods"), "{rules}");
    cluster.stop()
}

/// Row: authentication: a pod acts as its account with the token that is mounted into it; the token ends with the pod; reviews and keys
#[test]
fn mission_m24_pods_act_as_their_account() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    cluster.push("probe", "probe:v1")?;
    cluster.kubectl(&["create", "serviceaccount", "robot"])?;
    cluster.kubectl(&["create", "role", "maps", "--verb=get,list", "--resource=configmaps"])?;
    cluster.kubectl(&["create", "rolebinding", "maps", "--role=maps", "--serviceaccount=default:robot"])?;
    let path = "/var/run/secrets/kubernetes.io/serviceaccount";
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
        "serviceAccountName": "robot", "restartPolicy": "Never",
        "containers": [
            {"name": "token", "image": "probe:v1", "args": ["read", format!("{path}/token")]},
            {"name": "namespace", "image": "probe:v1", "args": ["read", format!("{path}/namespace")]},
            {"name": "ca", "image": "probe:v1", "args": ["read", format!("{path}/ca.crt")]},
            {"name": "stay", "image": "probe:v1", "args": ["sleep", "600000"]},
        ],
    }});
    cluster.kubectl(&["create", "-f", &cluster.file("pod.json", &pod.to_string())?])?;
    let read = |container: &str| {
        let mut text = String::new();
        eventually(&format!("{container} has printed"), Duration::from_secs(60), || {
            text = cluster.kubectl(&["logs", "p", "-c", container])?.trim().to_owned();
            Ok(!text.is_empty())
        })?;
        anyhow::Ok(text)
    };
    let token = read("token")?;
    ensure!(read("namespace")?.contains("default") && read("ca")?.contains("BEGIN CERTIFICATE"));
    // The guest prints it as Rust does: Ok("...").
    let token = token.split('"').nth(1).context("no token")?;
    let get = |path: &str| curl_api(&cluster, Some(token), "GET", path, None);
    ensure!(get("/api/v1/namespaces/default/configmaps")?.0 == 200);
    let (code, status) = get("/api/v1/namespaces/default/secrets")?;
    let words = "User \"system:serviceaccount:default:robot\" cannot list resource \"secrets\"";
    ensure!(code == 403 && status["message"].as_str().is_some_and(|m| m.contains(words)), "{status}");
    ensure!(curl_api(&cluster, Some("nonsense"), "GET", "/api/v1/namespaces", None)?.0 == 401);
    // Who is it? And who checks by himself finds the key.
    let review =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let reviewed: Value = serde_json::from_str(&cluster.kubectl(&[
        "create",
        "-o",
        "json",
        "-f",
        &cluster.file("review.json", &review.to_string())?,
    ])?)?;
    let user = &reviewed["status"]["user"];
    ensure!(user["username"] == "system:serviceaccount:default:robot", "{reviewed}");
    ensure!(user["extra"]["authentication.kubernetes.io/pod-name"][0] == "p", "{reviewed}");
    ensure!(get("/openid/v1/jwks")?.1["keys"][0]["kty"] == "EC");
    ensure!(get("/.well-known/openid-configuration")?.1["issuer"].is_string());
    // Anonymous callers see whether the server is well, and what is public.
    ensure!(curl_api(&cluster, None, "GET", "/readyz", None)?.0 == 200);
    ensure!(
        curl_api(&cluster, None, "GET", "/api/v1/namespaces/kube-public/configmaps/cluster-info", None)?.0
            == 200
    );
    let (code, status) = curl_api(&cluster, None, "GET", "/api/v1/namespaces", None)?;
    ensure!(
        code == 403 && status["message"].as_str().is_some_and(|m| m.contains("system:anonymous")),
        "{status}"
    );
    // A token that was asked for, for another audience, is no credential here.
    let other = cluster.kubectl(&["create", "token", "robot", "--audience=elsewhere"])?;
    ensure!(
        curl_api(&cluster, Some(other.trim()), "GET", "/api/v1/namespaces/default/configmaps", None)?.0
            == 401
    );
    let own = cluster.kubectl(&["create", "token", "robot", "--duration=10m"])?;
    ensure!(
        curl_api(&cluster, Some(own.trim()), "GET", "/api/v1/namespaces/default/configmaps", None)?.0 == 200
    );
    cluster.kubectl(&["delete", "pod", "p", "--grace-period=0", "--force"])?;
    eventually("the pod's token is void", SOON, || {
        Ok(get("/api/v1/namespaces/default/configmaps")?.0 == 401)
    })?;
    cluster.kubectl(&["delete", "serviceaccount", "robot"])?;
    ensure!(
        curl_api(&cluster, Some(own.trim()), "GET", "/api/v1/namespaces/default/configmaps", None)?.0 == 401
    );
    cluster.stop()
}

/// Row: certificates: a request that is denied gets none, system:masters cannot be asked for, and who may not approve cannot
#[test]
fn certificates_are_not_for_everybody() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    let request = |name: &str, organization: &str| {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, organization);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.serialize_request(&key)?.pem()?;
        let object = json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
            "spec": {"request": STANDARD.encode(pem), "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]},
        });
        cluster.file(&format!("{name}.json"), &object.to_string())
    };
    let said = cluster.kubectl_fails(&["create", "-f", &request("root", "system:masters")?])?;
    ensure!(said.contains("system:masters group is not allowed"), "{said}");
    cluster.kubectl(&["create", "-f", &request("joe", "people")?])?;
    cluster.kubectl(&[
        "create",
        "clusterrole",
        "approver",
        "--verb=get,list,update",
        "--resource=certificatesigningrequests,certificatesigningrequests/approval",
    ])?;
    cluster.kubectl(&[
        "create",
        "clusterrolebinding",
        "approver",
        "--clusterrole=approver",
        "--user=jane",
    ])?;
    let said = cluster.kubectl_fails(&["certificate", "approve", "joe", "--as=jane"])?;
    ensure!(said.contains("not permitted to approve requests with signerName"), "{said}");
    cluster.kubectl(&["certificate", "deny", "joe"])?;
    let shown = cluster.kubectl(&["get", "csr", "joe"])?;
    ensure!(shown.contains("Denied") && !shown.contains("Issued"), "{shown}");
    let said = cluster.kubectl_fails(&["certificate", "approve", "joe"])?;
    ensure!(said.contains("mutually exclusive") || said.contains("Denied"), "{said}");
    cluster.stop()
}
