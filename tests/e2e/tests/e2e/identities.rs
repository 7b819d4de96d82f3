//! Who somebody is: OpenID Connect, token files, webhooks, impersonation, tokens in Secrets. Profile: loopback.

mod provider;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coracle_e2e::{Cluster, Ended, Profile, SOON, eventually, kubectl, shown};
use provider::{OPAQUE, Provider, forged};
use serde_json::json;

/// What a node reads that joins.
const CLUSTER_INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";

/// What kubectl says with a token instead of the administrator's credentials.
fn with(cluster: &Cluster, token: &str, args: &[&str]) -> Result<(bool, String)> {
    let server =
        cluster.kubectl(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"])?;
    let mut command = cluster.command(kubectl()?);
    command.args(["--kubeconfig=/dev/null", "--insecure-skip-tls-verify"]);
    let out =
        command.arg(format!("--server={server}")).arg(format!("--token={token}")).args(args).output()?;
    Ok((out.status.success(), shown(&out)))
}

fn whoami(cluster: &Cluster, token: &str) -> Result<String> {
    let (done, said) = with(cluster, token, &["auth", "whoami"])?;
    ensure!(done, "{said}");
    Ok(said)
}

fn is_nobody(cluster: &Cluster, token: &str) -> Result<()> {
    let (done, said) = with(cluster, token, &["auth", "whoami"])?;
    ensure!(!done && (said.contains("Unauthorized") || said.contains("You must be logged in")), "{said}");
    Ok(())
}

/// A folder whose files the cluster's user can read.
fn folder() -> Result<tempfile::TempDir> {
    let dir = tempfile::Builder::new().prefix("coracle-identities-").tempdir()?;
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(dir)
}

/// Row: authentication: OpenID Connect by flags, a file of static tokens, a webhook; impersonation of user, group, uid and extra
#[test]
fn others_say_who_somebody_is() -> Result<Ended> {
    let provider = Provider::start("127.0.231.9".parse()?)?;
    let dir = folder()?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = dir.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let webhook = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": format!("{}/review", provider.url),
            "certificate-authority-data": STANDARD.encode(&provider.ca)}}]});
    let flags = [
        format!("--oidc-issuer-url={}", provider.url),
        "--oidc-client-id=coracle".into(),
        format!("--oidc-ca-file={}", file("ca.pem", &provider.ca)?),
        "--oidc-groups-claim=groups".into(),
        "--oidc-groups-prefix=oidc:".into(),
        "--oidc-required-claim=hd=example.com".into(),
        format!("--token-auth-file={}", file("tokens.csv", "static-token,joe,7,\"ops,dev\"\n")?),
        format!("--authentication-token-webhook-config-file={}", file("webhook.json", &webhook.to_string())?),
    ];
    let mut cluster = Cluster::start_with(Profile::Loopback, &flags.each_ref().map(String::as_str))?;
    let claims =
        |audience: &str| json!({"sub": "jane", "aud": audience, "groups": ["dev"], "hd": "example.com"});

    let said = whoami(&cluster, &provider.token(claims("coracle"), 600)?)?;
    ensure!(said.contains(&format!("{}#jane", provider.url)) && said.contains("oidc:dev"), "{said}");
    is_nobody(&cluster, &provider.token(claims("others"), 600)?)?;
    is_nobody(&cluster, &provider.token(claims("coracle"), -600)?)?;
    is_nobody(&cluster, &forged(&provider, claims("coracle"))?)?;
    let mut elsewhere = claims("coracle");
    elsewhere["hd"] = "elsewhere.com".into();
    is_nobody(&cluster, &provider.token(elsewhere, 600)?)?;
    // What the group may do.
    let jane = provider.token(claims("coracle"), 600)?;
    let (done, said) = with(&cluster, &jane, &["get", "pods"])?;
    ensure!(!done && said.contains("Forbidden"), "{said}");
    cluster.kubectl(&["create", "clusterrolebinding", "dev", "--clusterrole=view", "--group=oidc:dev"])?;
    let (done, said) = with(&cluster, &jane, &["get", "pods"])?;
    ensure!(done, "{said}");

    let said = whoami(&cluster, "static-token")?;
    ensure!(said.contains("joe") && said.contains("ops") && said.contains('7'), "{said}");
    let said = whoami(&cluster, OPAQUE)?;
    ensure!(said.contains("hooked") && said.contains("hooks"), "{said}");
    is_nobody(&cluster, "another-token")?;

    let said = cluster.kubectl(&["auth", "whoami", "--as=jo", "--as-group=g", "--as-uid=9"])?;
    ensure!(said.contains("jo") && said.contains('g') && said.contains('9'), "{said}");
    cluster.stop()
}

/// Row: authentication: providers from a file of kind AuthenticationConfiguration, with claims mapped and checked by CEL, and who may call without saying who he is
#[test]
fn providers_from_a_file() -> Result<Ended> {
    let provider = Provider::start("127.0.231.10".parse()?)?;
    let dir = folder()?;
    let path = dir.path().join("authentication.json");
    let configuration = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
        "anonymous": {"enabled": true, "conditions": [{"path": "/livez"}, {"path": "/readyz"}, {"path": CLUSTER_INFO}]}, "jwt": [{
        "issuer": {"url": provider.url, "certificateAuthority": provider.ca, "audiences": ["coracle"]},
        "claimMappings": {"username": {"expression": "'idp:' + claims.sub"}, "groups": {"expression": "claims.roles.split(',')"},
            "extra": [{"key": "example.com/tenant", "valueExpression": "claims.tenant"}]},
        "claimValidationRules": [{"expression": "claims.tenant != 'none'", "message": "no tenant"}],
        "userValidationRules": [{"expression": "!user.groups.exists(g, g.startsWith('system:masters'))", "message": "no masters"}],
    }]});
    std::fs::write(&path, configuration.to_string())?;
    let flag = format!("--authentication-config={}", path.display());
    let mut cluster = Cluster::start_with(Profile::Loopback, &[&flag])?;
    let claims = |roles: &str, tenant: &str| json!({"sub": "jane", "aud": "coracle", "roles": roles, "tenant": tenant});
    let said = whoami(&cluster, &provider.token(claims("a,b", "t1"), 600)?)?;
    ensure!(
        said.contains("idp:jane") && said.contains("example.com/tenant") && said.contains("t1"),
        "{said}"
    );
    is_nobody(&cluster, &provider.token(claims("a,b", "none"), 600)?)?;
    is_nobody(&cluster, &provider.token(claims("system:masters", "t1"), 600)?)?;
    // Who says nothing sees what the file names.
    for (path, code) in
        [("/livez", "200"), (CLUSTER_INFO, "200"), ("/version", "401"), ("/livez/ping", "401")]
    {
        ensure!(nobodys(&cluster, path)? == code, "{path} is answered with {}", nobodys(&cluster, path)?);
    }
    cluster.stop()
}

/// The code with which a call without credentials is answered.
fn nobodys(cluster: &Cluster, path: &str) -> Result<String> {
    let server =
        cluster.kubectl(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"])?;
    let url = format!("{server}{path}");
    let args = ["-sk", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "10", &url];
    coracle_e2e::succeed(cluster.command("curl").args(args))
}

/// Row: authentication: a Secret gets the token of its account, which ends with either; discovery of keys is for accounts
#[test]
fn tokens_in_secrets() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
        "metadata": {"name": "robot", "annotations": {"kubernetes.io/service-account.name": "robot"}}});
    // The account comes later.
    cluster.kubectl(&["create", "-f", &cluster.file("secret.json", &secret.to_string())?])?;
    cluster.kubectl(&["create", "serviceaccount", "robot"])?;
    let mut token = String::new();
    eventually("the Secret has its token", SOON, || {
        token = cluster.kubectl(&["get", "secret", "robot", "-o", "jsonpath={.data.token}"])?;
        Ok(!token.is_empty())
    })?;
    let data = cluster.get(&["secret", "robot"])?["data"].clone();
    ensure!(data["namespace"] == STANDARD.encode("default") && data["ca.crt"].is_string(), "{data}");
    let token = String::from_utf8(STANDARD.decode(token)?)?;
    ensure!(whoami(&cluster, &token)?.contains("system:serviceaccount:default:robot"));
    let (done, keys) = with(&cluster, &token, &["get", "--raw", "/openid/v1/jwks"])?;
    ensure!(done && keys.contains("\"kty\":\"EC\""), "{keys}");
    let (done, told) = with(&cluster, &token, &["get", "--raw", "/.well-known/openid-configuration"])?;
    ensure!(done && told.contains("jwks_uri"), "{told}");
    let server =
        told.split("https://").nth(2).and_then(|rest| rest.split("/openid").next()).context("address")?;
    let code = coracle_e2e::succeed(cluster.command("curl").args([
        "-sk",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        &format!("https://{server}/openid/v1/jwks"),
    ]))?;
    ensure!(code == "403", "nobody is answered with {code}");
    cluster.kubectl(&["delete", "serviceaccount", "robot"])?;
    is_nobody(&cluster, &token)?;
    eventually("the Secret goes with its account", SOON, || {
        Ok(cluster.kubectl_fails(&["get", "secret", "robot"])?.contains("NotFound"))
    })?;
    cluster.stop()
}
