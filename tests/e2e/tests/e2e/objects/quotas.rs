//! Quotas and limits of a namespace. Profile: loopback.

use anyhow::{Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, eventually};

use super::{SOON, pod};

/// Row: quotas: CPU, memory and counts per namespace are refused when exceeded, by concurrent writers too, and freed by deletion
#[test]
fn mission_m18_quotas_are_refused_when_exceeded() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    cluster.kubectl(&["create", "namespace", "team"])?;
    let hard = "--hard=pods=3,requests.cpu=1,limits.memory=1Gi,count/secrets=5,services.nodeports=1";
    cluster.kubectl(&["create", "quota", "q", hard, "-n", "team"])?;
    let apply = |manifest: String| cluster.file("pod.yaml", &manifest);
    let silent = apply(pod("silent", "{}"))?;
    let said = cluster.kubectl_fails(&["apply", "-n", "team", "-f", &silent])?;
    ensure!(said.contains("pods \"silent\" is forbidden: failed quota: q: must specify limits.memory for: c; requests.cpu for: c"), "{said}");
    let big = "{requests: {cpu: 600m}, limits: {memory: 100Mi}}";
    let first = apply(pod("first", big))?;
    cluster.kubectl(&["apply", "-n", "team", "-f", &first])?;
    let second = apply(pod("second", big))?;
    let said = cluster.kubectl_fails(&["apply", "-n", "team", "-f", &second])?;
    ensure!(said.contains("exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=600m, limited: requests.cpu=1"), "{said}");
    let used = cluster.get(&["quota", "q", "-n", "team"])?;
    ensure!(used["status"]["used"]["pods"] == "1", "{used}");
    cluster.kubectl(&["delete", "pod", "first", "-n", "team", "--force", "--grace-period=0"])?;
    eventually("what was deleted is free again", SOON, || {
        cluster.kubectl(&["apply", "-n", "team", "-f", &second]).map(|_| true)
    })?;
    let memory = apply(pod("third", "{requests: {cpu: 1m}, limits: {memory: 1Gi}}"))?;
    let said = cluster.kubectl_fails(&["apply", "-n", "team", "-f", &memory])?;
    ensure!(
        said.contains("requested: limits.memory=1Gi, used: limits.memory=100Mi, limited: limits.memory=1Gi"),
        "{said}"
    );
    counts(&cluster)?;
    cluster.stop()
}

/// Twenty writers at once get what five may have.
fn counts(cluster: &Cluster) -> Result<()> {
    let created: usize = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..20)
            .map(|i| {
                let name = format!("s{i}");
                scope.spawn(move || {
                    cluster.kubectl(&["create", "secret", "generic", &name, "-n", "team"]).is_ok()
                })
            })
            .collect();
        tries.into_iter().filter_map(|t| t.join().ok()).filter(|created| *created).count()
    });
    ensure!(created == 5, "{created} secrets were created, not 5");
    let quota = cluster.get(&["quota", "q", "-n", "team"])?;
    ensure!(quota["status"]["used"]["count/secrets"] == "5", "{quota}");
    let said = cluster.kubectl_fails(&["create", "secret", "generic", "more", "-n", "team"])?;
    ensure!(
        said.contains(
            "exceeded quota: q, requested: count/secrets=1, used: count/secrets=5, limited: count/secrets=5"
        ),
        "{said}"
    );
    cluster.kubectl(&["create", "service", "nodeport", "a", "--tcp=80", "-n", "team"])?;
    let said = cluster.kubectl_fails(&["create", "service", "nodeport", "b", "--tcp=80", "-n", "team"])?;
    ensure!(said.contains("services.nodeports=1"), "{said}");
    Ok(())
}

const LIMITS: &str = "apiVersion: v1\nkind: LimitRange\nmetadata:\n  name: l\nspec:\n  limits:\n  - type: Container\n    default: {cpu: 200m, memory: 64Mi}\n    defaultRequest: {cpu: 100m}\n    max: {cpu: '1'}\n    min: {cpu: 10m}\n  - type: PersistentVolumeClaim\n    max: {storage: 1Gi}\n";

const CLAIM: &str = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata:\n  name: v\nspec:\n  accessModes: [ReadWriteOnce]\n  resources: {requests: {storage: 2Gi}}\n";

/// Row: limits: a LimitRange fills in what pods leave out and refuses what is too much or too little
#[test]
fn mission_m18_limits_fill_in_and_refuse() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    cluster.kubectl(&["create", "namespace", "team"])?;
    let limits = cluster.file("limits.yaml", LIMITS)?;
    cluster.kubectl(&["apply", "-n", "team", "-f", &limits])?;
    let plain = cluster.file("plain.yaml", &pod("plain", "{}"))?;
    cluster.kubectl(&["apply", "-n", "team", "-f", &plain])?;
    let made = cluster.get(&["pod", "plain", "-n", "team"])?;
    let resources = &made["spec"]["containers"][0]["resources"];
    ensure!(resources["requests"]["cpu"] == "100m" && resources["limits"]["memory"] == "64Mi", "{resources}");
    let table = [
        ("{limits: {cpu: 2}}", "maximum cpu usage per Container is 1, but limit is 2"),
        ("{requests: {cpu: 1m}}", "minimum cpu usage per Container is 10m, but request is 1m"),
    ];
    for (resources, words) in table {
        let file = cluster.file("bad.yaml", &pod("bad", resources))?;
        let said = cluster.kubectl_fails(&["apply", "-n", "team", "-f", &file])?;
        ensure!(said.contains(words), "{resources}: {said}");
    }
    let claim = cluster.file("claim.yaml", CLAIM)?;
    let said = cluster.kubectl_fails(&["apply", "-n", "team", "-f", &claim])?;
    ensure!(
        said.contains("maximum storage usage per PersistentVolumeClaim is 1Gi, but request is 2Gi"),
        "{said}"
    );
    cluster.stop()
}
