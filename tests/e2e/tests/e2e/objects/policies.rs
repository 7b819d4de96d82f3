//! What cluster administrators forbid: security levels, admission policies, evictions beyond a budget. Profile: loopback.

use anyhow::{Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, eventually, succeed};

use super::{SOON, pod};
use crate::hello;

/// Row: pod security: a namespace's level refuses pods, warns of templates, and names what is wrong
#[test]
fn pod_security_levels_are_enforced() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    cluster.kubectl(&["create", "namespace", "strict"])?;
    let label = "pod-security.kubernetes.io/enforce=baseline";
    let warn = "pod-security.kubernetes.io/warn=restricted";
    cluster.kubectl(&["label", "namespace", "strict", label, warn])?;
    let said = cluster.kubectl_fails(&[
        "label",
        "namespace",
        "default",
        "pod-security.kubernetes.io/enforce=nope",
    ])?;
    ensure!(said.contains("must be one of privileged, baseline, restricted"), "{said}");
    let bad =
        pod("bad", "{}").replace("    image: i\n", "    image: i\n    securityContext: {privileged: true}\n");
    let bad = cluster.file("bad.yaml", &bad)?;
    let said = cluster.kubectl_fails(&["apply", "-n", "strict", "-f", &bad])?;
    ensure!(said.contains("pods \"bad\" is forbidden: violates PodSecurity \"baseline:latest\": privileged (container \"c\" must not set securityContext.privileged=true)"), "{said}");
    let plain = cluster.file("plain.yaml", &pod("plain", "{}"))?;
    let mut apply = cluster.command(coracle_e2e::kubectl()?);
    let out = apply.args(["apply", "-n", "strict", "-f", &plain]).output()?;
    let said = coracle_e2e::shown(&out);
    ensure!(
        out.status.success()
            && said.contains(
                "Warning: would violate PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false"
            ),
        "{said}"
    );
    succeed(cluster.command(coracle_e2e::kubectl()?).args(["apply", "-f", &bad]))?;
    cluster.stop()
}

const POLICY: &str = "apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: few}
spec:
  matchConstraints:
    resourceRules:
    - {apiGroups: [apps], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [deployments, deployments/scale]}
  variables: [{name: wanted, expression: object.spec.replicas}]
  validations:
  - {expression: variables.wanted <= 3, messageExpression: \"'at most 3 replicas, not ' + string(variables.wanted)\"}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: few-in-team}
spec:
  policyName: few
  validationActions: [Deny]
  matchResources: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: team}}}
";

/// Row: admission: a ValidatingAdmissionPolicy refuses what its expression says, where its binding makes it hold
#[test]
fn mission_m01_admission_policies_are_enforced() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    cluster.kubectl(&["create", "namespace", "team"])?;
    let file = cluster.file("policy.yaml", POLICY)?;
    cluster.kubectl(&["apply", "-f", &file])?;
    let create = |namespace: &str, replicas: &str| -> Vec<String> {
        ["create", "deployment", "d", "--image=i", "-n", namespace, replicas].map(String::from).to_vec()
    };
    let many = create("team", "--replicas=4");
    let said = cluster.kubectl_fails(&many.iter().map(String::as_str).collect::<Vec<_>>())?;
    let words = "deployments.apps \"d\" is forbidden: ValidatingAdmissionPolicy 'few' with binding 'few-in-team' denied request: at most 3 replicas, not 4";
    ensure!(said.contains(words), "{said}");
    for (namespace, replicas) in [("team", "--replicas=1"), ("default", "--replicas=4")] {
        let args = create(namespace, replicas);
        cluster.kubectl(&args.iter().map(String::as_str).collect::<Vec<_>>())?;
    }
    let said = cluster.kubectl_fails(&["scale", "deployment", "d", "-n", "team", "--replicas=7"])?;
    ensure!(said.contains("at most 3 replicas, not 7"), "{said}");
    let bad = cluster.file("bad.yaml", &POLICY.replace("variables.wanted <= 3", "params.most <= 3"))?;
    let said = cluster.kubectl_fails(&["apply", "-f", &bad])?;
    ensure!(said.contains("compilation failed: undeclared reference to 'params'"), "{said}");
    cluster.kubectl(&["delete", "validatingadmissionpolicybinding", "few-in-team"])?;
    cluster.kubectl(&["scale", "deployment", "d", "-n", "team", "--replicas=7"])?;
    cluster.stop()
}

/// Row: budgets: an eviction that a PodDisruptionBudget does not allow is refused, one that it allows takes from it
#[test]
fn evictions_honour_budgets() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    hello::deploy(&cluster)?;
    cluster.kubectl(&["-n", "hello", "create", "pdb", "b", "--selector=app=hello", "--min-available=3"])?;
    let budget = |allowed: i64| {
        eventually(&format!("the budget allows {allowed}"), SOON, || {
            let budget = cluster.get(&["-n", "hello", "pdb", "b"])?;
            let status = &budget["status"];
            Ok(status["expectedPods"] == 3
                && status["disruptionsAllowed"] == allowed
                && status["observedGeneration"] == budget["metadata"]["generation"])
        })
    };
    budget(0)?;
    let pods = cluster.kubectl(&["-n", "hello", "get", "pods", "-l", "app=hello", "-o", "name"])?;
    let names: Vec<&str> = pods.lines().filter_map(|l| l.strip_prefix("pod/")).collect();
    let [first, second, ..] = names[..] else { anyhow::bail!("no pods: {pods}") };
    let eviction = |name: &str| -> Result<(String, String)> {
        let body = format!(
            "{{\"apiVersion\": \"policy/v1\", \"kind\": \"Eviction\", \"metadata\": {{\"name\": \"{name}\"}}}}"
        );
        let path = format!("/api/v1/namespaces/hello/pods/{name}/eviction");
        Ok((path, cluster.file("eviction.json", &body)?))
    };
    let (path, file) = eviction(first)?;
    let said = cluster.kubectl_fails(&["create", "--raw", &path, "-f", &file])?;
    ensure!(said.contains("Cannot evict pod as it would violate the pod's disruption budget."), "{said}");
    cluster.kubectl(&["-n", "hello", "patch", "pdb", "b", "-p", "{\"spec\": {\"minAvailable\": 2}}"])?;
    budget(1)?;
    cluster.kubectl(&["create", "--raw", &path, "-f", &file])?;
    let (path, file) = eviction(second)?;
    let said = cluster.kubectl_fails(&["create", "--raw", &path, "-f", &file])?;
    ensure!(said.contains("Cannot evict pod"), "{said}");
    eventually("the evicted pod goes and is replaced", SOON, || {
        let gone = cluster.kubectl_fails(&["-n", "hello", "get", "pod", first]).is_ok();
        Ok(gone && cluster.get(&["-n", "hello", "pdb", "b"])?["status"]["disruptionsAllowed"] == 1)
    })?;
    cluster.stop()
}
