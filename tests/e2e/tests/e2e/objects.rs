//! Namespaces, kinds, manifests of old: what the API server keeps apart, lists, refuses and converts.
//! Profile: loopback.

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, SOON, eventually, root};

mod policies;
mod quotas;

/// One of the manifests that introductions to Kubernetes show.
fn manifest(name: &str) -> Result<String> {
    let path = root().join("tests/e2e/manifests").join(name);
    std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

fn pod(name: &str, resources: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: {name}}}\nspec:\n  nodeName: nowhere\n  containers:\n  - name: c\n    image: i\n    resources: {resources}\n"
    )
}

/// Row: bad input: kubectl names the missing apiVersion, then the server the unknown field
#[test]
fn mission_m16_typos_are_named() -> Result<Ended> {
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
fn mission_m17_namespaces_keep_names_apart() -> Result<Ended> {
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
fn mission_m15_manifests_of_old_are_converted_legacy() -> Result<Ended> {
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

/// Row: kinds: each built-in kind is created by kubectl, listed in its columns and described
#[test]
fn every_kind_is_made_and_listed() -> Result<Ended> {
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

/// Row: bad input: a pod that names a class that is not there is refused by the name of the class
#[test]
fn classes_that_are_missing_are_named() -> Result<Ended> {
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
