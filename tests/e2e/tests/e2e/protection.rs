//! What a cluster keeps to itself and what it tells: encryption at rest, the audit log, priority and fairness, metrics.
//! Profile: loopback.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use coracle_e2e::servers::Servers;
use coracle_e2e::{Cluster, Ended, Profile, SOON, eventually, succeed};
use serde_json::Value;

const PLAIN: &str = "correct-horse-battery-staple";
/// The same in base64, as it stands in manifests.
const ENCODED: &str = "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5LXN0YXBsZQ==";

/// Files below a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut folders, mut found) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            let kind = std::fs::symlink_metadata(&path)?.file_type();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// Files below a folder that hold the secret.
fn leaks(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = files(folder)?;
    found.retain(|path| {
        let bytes = std::fs::read(path).unwrap_or_default();
        [PLAIN, ENCODED].iter().any(|text| bytes.windows(text.len()).any(|w| w == text.as_bytes()))
    });
    Ok(found)
}

/// Row: security: Secrets are in no file of the state folder and in no snapshot; keys rotate; a restart reads them
#[test]
fn secrets_are_encrypted_at_rest() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    let manifest = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: door}}\ndata: {{password: {ENCODED}}}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: open}}\ndata: {{seen: in-the-open-for-all}}\n"
    );
    let file = cluster.file("secret.yaml", &manifest)?;
    // The annotation of apply holds the secret once more.
    cluster.kubectl(&["apply", "-f", &file])?;
    std::fs::remove_file(&file)?;
    let read = |cluster: &Cluster| cluster.get(&["secret", "door"]).map(|s| s["data"]["password"].clone());
    let first = cluster.get(&["secret", "door"])?;
    ensure!(read(&cluster)? == ENCODED);
    let snapshot = cluster.file("snapshot", "")?;
    std::fs::remove_file(&snapshot)?;
    cluster.coracle(&["snapshot", "save", &snapshot])?;
    cluster.stop()?;
    let open: Vec<PathBuf> = files(&cluster.data_dir())?
        .into_iter()
        .filter(|path| std::fs::read(path).is_ok_and(|b| b.windows(19).any(|w| w == b"in-the-open-for-all")))
        .collect();
    ensure!(!open.is_empty(), "the ConfigMap is not found: the search is blind");
    let found = leaks(cluster.data_dir().parent().context("folder")?)?;
    ensure!(found.is_empty(), "the secret is in {found:?}");

    let keys = files(&cluster.data_dir())?.into_iter().find(|p| p.ends_with("pki/encryption.yaml"));
    let keys = keys.context("pki/encryption.yaml is missing")?;
    ensure!(std::fs::metadata(&keys)?.permissions().mode() & 0o077 == 0, "others can read the key");
    let before = std::fs::read_to_string(&keys)?;
    let fresh = "      - name: fresh\n        secret: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n";
    let both = before.replacen("      - name:", &format!("{fresh}      - name:"), 1);
    ensure!(both != before, "{before}");
    std::fs::write(&keys, &both)?;
    cluster.up()?;
    ensure!(read(&cluster)? == ENCODED);
    // The start writes it again under the first key.
    let log = cluster.data_dir().join("logs/server.log");
    eventually("the secret is written again", SOON, || {
        Ok(std::fs::read_to_string(&log)?.contains("written again under the first key"))
    })?;
    let again = cluster.get(&["secret", "door"])?;
    ensure!(again["metadata"]["resourceVersion"] != first["metadata"]["resourceVersion"], "{again}");
    cluster.stop()?;
    // The old key goes.
    let lines: Vec<&str> = both.lines().collect();
    let old = lines.iter().position(|l| l.contains("- name: key-")).context("the old key")?;
    let kept: Vec<&str> =
        lines.iter().enumerate().filter(|(i, _)| *i != old && *i != old + 1).map(|(_, l)| *l).collect();
    std::fs::write(&keys, kept.join("\n"))?;
    cluster.up()?;
    ensure!(read(&cluster)? == ENCODED);
    cluster.stop()?;
    ensure!(leaks(&cluster.data_dir())?.is_empty());
    cluster.stop()
}

/// Row: security: servers that join share the key of Secrets; any of them reads what another sealed, also when one is lost
#[test]
fn servers_share_the_key_of_secrets() -> Result<Ended> {
    let mut servers = Servers::start(3)?;
    let literal = format!("--from-literal=password={PLAIN}");
    // The second server hands the write on to the leader, already sealed.
    for index in 0..3 {
        let name = format!("door-{index}");
        servers.kubectl(index, &["create", "secret", "generic", &name, &literal])?;
    }
    let read = |servers: &Servers, index: usize, name: &str| {
        servers.kubectl(index, &["get", "secret", name, "-o", "jsonpath={.data.password}"])
    };
    for index in 0..3 {
        for name in ["door-0", "door-1", "door-2"] {
            ensure!(read(&servers, index, name)? == ENCODED, "server {index} serves another {name}");
        }
    }
    servers.kill(0)?;
    eventually("the others go on", SOON, || Ok(read(&servers, 1, "door-0")? == ENCODED))?;
    servers.restart(0)?;
    ensure!(read(&servers, 0, "door-2")? == ENCODED);
    for index in 0..3 {
        servers.stop(index)?;
        let found = leaks(&servers.data_dir(index))?;
        ensure!(found.is_empty(), "the secret is in {found:?}");
    }
    servers.end()
}

/// Row: security: a snapshot carries the keys of --encryption-provider-config: a server restored from it reads Secrets without the file
#[test]
fn a_snapshot_carries_the_keys_of_the_users_file() -> Result<Ended> {
    let mut servers = Servers::start_with(0, &["--encryption-provider-config=keys.yaml"])?;
    let keys = servers.dir().join("keys.yaml");
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    std::fs::write(
        &keys,
        format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n  - aesgcm: {{keys: [{{name: mine, secret: {key}}}]}}\n"
        ),
    )?;
    let server = servers.add()?;
    let literal = format!("--from-literal=password={PLAIN}");
    servers.kubectl(server, &["create", "secret", "generic", "door", &literal])?;
    let saved = servers.dir().join("saved").display().to_string();
    servers.coracle(server, &["snapshot", "save", &saved])?;
    servers.kill(server)?;
    let lost = servers.data_dir(server);
    std::fs::remove_dir_all(&lost)?;
    std::fs::remove_file(&keys)?;

    let data_dir = lost.display().to_string();
    let whole = std::fs::read(&saved)?;
    let half = servers.dir().join("half").display().to_string();
    std::fs::write(&half, whole.get(..whole.len() / 2).context("nothing was saved")?)?;
    let refused = servers.coracle(server, &["snapshot", "restore", &half, "--data-dir", &data_dir]);
    ensure!(refused.is_err() && std::fs::read_dir(&lost)?.next().is_none(), "{refused:?}");
    servers.coracle(server, &["snapshot", "restore", &saved, "--data-dir", &data_dir])?;
    // As if the power had failed while it was restored.
    let unfinished = lost.join(".coracle-restoring");
    succeed(servers.command("touch").arg(&unfinished))?;
    ensure!(servers.restart(server).is_err(), "a server starts on what was restored in part");
    std::fs::remove_file(&unfinished)?;
    // As if it had been killed while it saved.
    let left = lost.join(".coracle-tmp/.tmp-left");
    succeed(servers.command("mkdir").arg("-p").arg(&left))?;
    servers.set_flags(&[]);
    servers.restart(server)?;
    ensure!(!left.exists(), "{} is still there", left.display());
    let path = "jsonpath={.data.password}";
    ensure!(servers.kubectl(server, &["get", "secret", "door", "-o", path])? == ENCODED);
    servers.end()
}

/// Row: security: the audit log tells calls as its policy says, with the caller, the object, and what came of it
#[test]
fn calls_are_audited() -> Result<Ended> {
    let folder = tempfile::tempdir()?;
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777))?;
    let policy = folder.path().join("policy.yaml");
    std::fs::write(
        &policy,
        "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n- level: Request\n  users: [kubernetes-admin]\n  resources: [{group: '', resources: [configmaps]}]\n- level: Metadata\n  users: [kubernetes-admin]\n  verbs: [create]\n  resources: [{group: '', resources: [pods]}]\n- level: None\n",
    )?;
    std::fs::set_permissions(&policy, PermissionsExt::from_mode(0o644))?;
    let log = folder.path().join("audit.log");
    let flags =
        [format!("--audit-policy-file={}", policy.display()), format!("--audit-log-path={}", log.display())];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut cluster = Cluster::start_with(Profile::Loopback, &flags)?;
    cluster.kubectl(&["create", "configmap", "told", "--from-literal=k=v"])?;
    cluster.kubectl(&["create", "namespace", "untold"])?;
    cluster.kubectl_fails(&["create", "configmap", "told"])?;
    let label = "pod-security.kubernetes.io/audit=restricted";
    cluster.kubectl(&["label", "namespace", "untold", label])?;
    eventually("the namespace has its service account", SOON, || {
        Ok(cluster.kubectl(&["run", "loose", "-n", "untold", "--image=none.invalid/none"]).is_ok())
    })?;
    cluster.stop()?;
    let text = std::fs::read_to_string(&log)?;
    let events: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let (pods, others): (Vec<&Value>, Vec<&Value>) =
        events.iter().partition(|e| e["objectRef"]["resource"] == "pods");
    let violations = &pods.last().context("the pod is not told")?["annotations"];
    let violations = &violations["pod-security.kubernetes.io/audit-violations"];
    let words = "would violate PodSecurity \"restricted:latest\"";
    ensure!(violations.as_str().is_some_and(|v| v.starts_with(words)), "{text}");
    let created: Vec<&Value> = others.into_iter().filter(|e| e["verb"] == "create").collect();
    ensure!(created.len() == 2, "{text}");
    let (first, second) = (created[0], created[1]);
    ensure!(first["requestObject"]["data"]["k"] == "v" && first["objectRef"]["name"] == "told", "{first}");
    ensure!(first["user"]["username"] == "kubernetes-admin", "{first}");
    ensure!(first["userAgent"].as_str().is_some_and(|a| a.starts_with("kubectl/")), "{first}");
    ensure!(first["annotations"]["authorization.k8s.io/decision"] == "allow", "{first}");
    ensure!(second["responseStatus"]["reason"] == "AlreadyExists", "{second}");
    ensure!(!text.contains("\"resource\":\"namespaces\""), "{text}");
    cluster.stop()
}

/// Row: load: calls belong to flow schemas and priority levels, as headers and metrics tell; levels can be changed
#[test]
fn calls_belong_to_priority_levels() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    let table = cluster.kubectl(&["get", "flowschemas"])?;
    ensure!(table.lines().count() == 12, "{table}");
    ensure!(table.lines().skip(1).all(|l| l.trim_end().ends_with("False")), "{table}");
    let levels = cluster.kubectl(&["get", "prioritylevelconfigurations"])?;
    ensure!(levels.contains("workload-low      Limited   100"), "{levels}");
    let uid = cluster.get(&["flowschema", "exempt"])?["metadata"]["uid"].as_str().context("uid")?.to_owned();
    let mut kubectl = cluster.command(coracle_e2e::kubectl()?);
    let told = kubectl.args(["get", "namespaces", "-v=8"]).stdin(Stdio::null()).output()?;
    let told = String::from_utf8_lossy(&told.stderr).to_lowercase();
    let header = told.lines().find(|l| l.contains("x-kubernetes-pf-flowschema-uid")).context("the header")?;
    ensure!(header.contains(&uid), "{header} is not {uid}");
    ensure!(told.contains("audit-id"), "{told}");

    let refused = cluster.kubectl_fails(&["delete", "namespace", "kube-system"])?;
    ensure!(refused.contains("orbidden"), "{refused}");
    let wrong = "apiVersion: flowcontrol.apiserver.k8s.io/v1\nkind: FlowSchema\nmetadata: {name: mine}\nspec:\n  matchingPrecedence: 1\n  priorityLevelConfiguration: {name: nowhere}\n  rules:\n  - subjects: [{kind: User, user: {name: jane}}]\n    resourceRules: [{verbs: ['*'], apiGroups: ['*'], resources: ['*'], namespaces: ['*']}]\n";
    let file = cluster.file("schema.yaml", wrong)?;
    let said = cluster.kubectl_fails(&["apply", "-f", &file])?;
    ensure!(said.contains("only the schema named 'exempt' may have matchingPrecedence 1"), "{said}");
    let file = cluster
        .file("schema.yaml", &wrong.replace("matchingPrecedence: 1\n", "matchingPrecedence: 600\n"))?;
    cluster.kubectl(&["apply", "-f", &file])?;
    let table = cluster.kubectl(&["get", "flowschema", "mine"])?;
    ensure!(table.contains("True"), "its level does not exist: {table}");

    let metrics = cluster.kubectl(&["get", "--raw", "/metrics"])?;
    for line in [
        "apiserver_flowcontrol_nominal_limit_seats{priority_level=\"workload-low\"} 245",
        "apiserver_storage_objects{resource=\"namespaces\"}",
        "apiserver_longrunning_requests{component=\"apiserver\",group=\"\",resource=\"pods\"",
        "process_resident_memory_bytes",
    ] {
        ensure!(metrics.contains(line), "{line} is missing:\n{metrics}");
    }
    let counted = metrics.lines().any(|l| {
        l.starts_with("apiserver_request_total{code=\"201\",component=\"apiserver\",dry_run=\"\",group=\"flowcontrol.apiserver.k8s.io\"")
    });
    ensure!(counted, "{metrics}");
    cluster.stop()
}
