//! Namespaces, quotas, limits, budgets, security levels, manifests of old: what the API server refuses, counts and converts.
//! Profile: loopback.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Profile, eventually, root, succeed};

const SOON: Duration = Duration::from_secs(60);

/// One of the manifests that introductions to Kubernetes show.
fn manifest(name: &str) -> Result<String> {
    let path = root().join("../shared/manifests").join(name);
    std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

fn pod(name: &str, resources: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: {name}}}\nspec:\n  nodeName: nowhere\n  containers:\n  - name: c\n    image: i\n    resources: {resources}\n"
    )
}

/// Row: quotas: CPU, memory and counts per namespace are refused when exceeded, by concurrent writers too, and freed by deletion
#[test]
fn mission_m18_quotas_are_refused_when_exceeded() -> Result<()> {
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
fn mission_m18_limits_fill_in_and_refuse() -> Result<()> {
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

/// Row: bad input: kubectl names the missing apiVersion, then the server the unknown field
#[test]
fn mission_m16_typos_are_named() -> Result<()> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    let text = manifest("09-nodeport-with-typos.yaml")?;
    let file = cluster.file("typos.yaml", &text)?;
    let said = cluster.kubectl_fails(&["apply", "-f", &file])?;
    ensure!(said.contains("apiVersion not set"), "{said}");
    let mended = text.replace("\npiVersion:", "\napiVersion:");
    ensure!(mended != text, "the manifest has no typo to mend");
    let file = cluster.file("typos.yaml", &mended)?;
    let said = cluster.kubectl_fails(&["apply", "-f", &file])?;
    ensure!(said.contains("unknown field \"spec.types\""), "{said}");
    ensure!(cluster.kubectl_fails(&["get", "service", "myapp-service"])?.contains("NotFound"));
    let file = cluster.file("typos.yaml", &mended.replace("types:", "type:"))?;
    cluster.kubectl(&["apply", "-f", &file])?;
    let service = cluster.get(&["service", "myapp-service"])?;
    ensure!(service["spec"]["ports"][0]["nodePort"] == 30008, "{service}");
    cluster.stop()
}

/// Row: namespaces: default, kube-system, kube-public and kube-node-lease exist; names are free in each; deletion takes all with it
#[test]
fn mission_m17_namespaces_keep_names_apart() -> Result<()> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        let namespace = cluster.get(&["namespace", name])?;
        ensure!(namespace["status"]["phase"] == "Active", "{namespace}");
    }
    eventually("the node renews a lease", SOON, || {
        let lease = cluster.get(&["lease", "node-1", "-n", "kube-node-lease"])?;
        Ok(lease["spec"]["holderIdentity"] == "node-1" && lease["spec"]["renewTime"].is_string())
    })?;
    let file = cluster.file("namespace.yaml", &manifest("10-namespace.yaml")?)?;
    cluster.kubectl(&["apply", "-f", &file])?;
    cluster.kubectl(&["create", "ns", "other"])?;
    for namespace in ["mynamespace", "other"] {
        let value = format!("--from-literal=where={namespace}");
        cluster.kubectl(&["create", "configmap", "same", &value, "-n", namespace])?;
    }
    for namespace in ["mynamespace", "other"] {
        let found = cluster.get(&["configmap", "same", "-n", namespace])?;
        ensure!(found["data"]["where"] == namespace, "{found}");
    }
    cluster.kubectl(&["delete", "ns", "other", "--timeout=60s"])?;
    ensure!(cluster.kubectl_fails(&["get", "ns", "other"])?.contains("NotFound"));
    ensure!(cluster.get(&["configmap", "same", "-n", "mynamespace"])?["data"]["where"] == "mynamespace");
    let said = cluster.kubectl_fails(&["delete", "ns", "kube-system"])?;
    ensure!(said.contains("this namespace may not be deleted"), "{said}");
    cluster.stop()
}

/// Row: Ingress: with --legacy-manifests a manifest of a removed version is accepted with a warning and stored as version 1
#[test]
fn mission_m15_manifests_of_old_are_converted_legacy() -> Result<()> {
    let mut cluster = Cluster::start_with(Profile::Loopback, &["--legacy-manifests"])?;
    let text = manifest("12-ingress-v1beta1.yaml")?;
    let file = cluster.file("ingress.yaml", &text)?;
    let mut apply = cluster.command(coracle_e2e::kubectl()?);
    let out = apply.args(["apply", "-f", &file]).output()?;
    let said = coracle_e2e::shown(&out);
    ensure!(out.status.success(), "{said}");
    ensure!(
        said.contains(
            "Warning: networking.k8s.io/v1beta1 Ingress is deprecated in v1.19+, unavailable in v1.22+"
        ),
        "{said}"
    );
    let stored = cluster.get(&["ingresses.v1.networking.k8s.io", "ml-product-ingress"])?;
    let path = &stored["spec"]["rules"][0]["http"]["paths"][0];
    ensure!(
        stored["apiVersion"] == "networking.k8s.io/v1" && path["pathType"] == "ImplementationSpecific",
        "{stored}"
    );
    let backend = &path["backend"]["service"];
    ensure!(backend["name"] == "user-interface-svc" && backend["port"]["number"] == 80, "{stored}");
    // As it was, for a client of old; and the other group of old.
    let old = text
        .replace("networking.k8s.io/v1beta1", "extensions/v1beta1")
        .replace("ml-product-ingress", "older");
    let older = cluster.file("older.yaml", &old)?;
    cluster.kubectl(&["apply", "-f", &older])?;
    let served = cluster.get(&["ingresses.v1beta1.extensions", "older"])?;
    ensure!(
        served["spec"]["rules"][0]["http"]["paths"][0]["backend"]["serviceName"] == "user-interface-svc",
        "{served}"
    );
    // A changed manifest is applied like any other.
    let changed = cluster.file("ingress.yaml", &text.replace("/app", "/other"))?;
    cluster.kubectl(&["apply", "-f", &changed])?;
    let stored = cluster.get(&["ingresses.v1.networking.k8s.io", "ml-product-ingress"])?;
    ensure!(stored["spec"]["rules"][0]["http"]["paths"][0]["path"] == "/other", "{stored}");
    cluster.stop()?;
    let mut strict = Cluster::start(Profile::Loopback)?;
    let file = strict.file("ingress.yaml", &text)?;
    let said = strict.kubectl_fails(&["apply", "-f", &file])?;
    ensure!(
        said.contains("no matches for kind \"Ingress\" in version \"networking.k8s.io/v1beta1\""),
        "{said}"
    );
    strict.stop()
}

/// Row: pod security: a namespace's level refuses pods, warns of templates, and names what is wrong
#[test]
fn pod_security_levels_are_enforced() -> Result<()> {
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

/// Row: kinds: each built-in kind is created by kubectl, listed in its columns and described
#[test]
fn every_kind_is_made_and_listed() -> Result<()> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    let template = "template: {metadata: {labels: {a: b}}, spec: {nodeSelector: {none: such}, containers: [{name: c, image: i}]}}";
    let selected = format!("selector: {{matchLabels: {{a: b}}}}, {template}");
    let job = template.replace("nodeSelector", "restartPolicy: Never, nodeSelector");
    let kinds = [
        ("apps/v1", "StatefulSet", format!("{{serviceName: s, {selected}}}"), "0/1"),
        ("apps/v1", "DaemonSet", format!("{{{selected}}}"), "none=such"),
        ("batch/v1", "Job", format!("{{{job}}}"), "0/1"),
        ("batch/v1", "CronJob", format!("{{schedule: '0 0 1 1 *', jobTemplate: {{spec: {{{job}}}}}}}"), "0 0 1 1 *"),
        ("v1", "ReplicationController", format!("{{replicas: 0, {template}}}"), "x"),
        ("autoscaling/v2", "HorizontalPodAutoscaler", "{maxReplicas: 3, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: d}}".into(), "Deployment/d"),
        ("policy/v1", "PodDisruptionBudget", "{minAvailable: 1, selector: {matchLabels: {a: z}}}".into(), "N/A"),
        ("v1", "PersistentVolume", "{accessModes: [ReadWriteOnce], capacity: {storage: 1Gi}, storageClassName: none, hostPath: {path: /tmp}}".into(), "RWO"),
        ("v1", "PersistentVolumeClaim", "{accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}".into(), "Pending"),
        ("networking.k8s.io/v1", "Ingress", "{defaultBackend: {service: {name: s, port: {number: 80}}}}".into(), "*"),
        ("networking.k8s.io/v1", "NetworkPolicy", "{podSelector: {matchLabels: {a: b}}}".into(), "a=b"),
        ("networking.k8s.io/v1", "IngressClass", "{controller: example.com/c}".into(), "example.com/c"),
    ];
    for (version, kind, spec, shown) in kinds {
        let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}\nspec: {spec}\n");
        let file = cluster.file("object.yaml", &text)?;
        cluster.kubectl(&["apply", "-f", &file]).with_context(|| kind.to_owned())?;
        let plural = kind.to_lowercase();
        let listed = cluster.kubectl(&["get", &plural, "x", "-o", "wide"])?;
        ensure!(listed.contains(shown), "{kind}: {listed}");
        let described = cluster.kubectl(&["describe", &plural, "x"])?;
        ensure!(described.contains("Name:"), "{kind}: {described}");
        // Applied again, nothing changes.
        let again = cluster.kubectl(&["apply", "-f", &file])?;
        ensure!(again.contains("unchanged"), "{kind}: {again}");
    }
    for (kind, name) in
        [("priorityclass", "system-node-critical"), ("runtimeclass", "wasm"), ("storageclass", "local")]
    {
        cluster.kubectl(&["get", kind, name])?;
    }
    let claim = cluster.get(&["pvc", "x"])?;
    ensure!(claim["spec"]["storageClassName"] == "local", "{claim}");
    cluster.stop()
}

/// Row: budgets: an eviction that a PodDisruptionBudget does not allow is refused, one that it allows takes from it
#[test]
fn evictions_honour_budgets() -> Result<()> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    super::hello::deploy(&cluster)?;
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

/// Row: bad input: a pod that names a class that is not there is refused by the name of the class
#[test]
fn classes_that_are_missing_are_named() -> Result<()> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    for (field, words) in [
        ("runtimeClassName", "pod rejected: RuntimeClass \"nope\" not found"),
        ("priorityClassName", "no PriorityClass with name nope was found"),
    ] {
        let text = pod("p", "{}").replace("spec:\n", &format!("spec:\n  {field}: nope\n"));
        let file = cluster.file("pod.yaml", &text)?;
        let said = cluster.kubectl_fails(&["apply", "-f", &file])?;
        ensure!(said.contains(words), "{field}: {said}");
    }
    cluster.kubectl(&["create", "priorityclass", "high", "--value=1000", "--preemption-policy=Never"])?;
    let text =
        pod("p", "{}").replace("spec:\n", "spec:\n  priorityClassName: high\n  runtimeClassName: wasm\n");
    let file = cluster.file("pod.yaml", &text)?;
    cluster.kubectl(&["apply", "-f", &file])?;
    let made = cluster.get(&["pod", "p"])?;
    ensure!(made["spec"]["priority"] == 1000 && made["spec"]["preemptionPolicy"] == "Never", "{made}");
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
fn mission_m01_admission_policies_are_enforced() -> Result<()> {
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
