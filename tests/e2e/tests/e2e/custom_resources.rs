//! Kinds that users make, and who owns which field: with kubectl, as users do it.

mod operators;

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, SOON, eventually, kubectl};

const DEFINITION: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: crontabs.stable.example.com}
spec:
  group: stable.example.com
  scope: Namespaced
  names: {plural: crontabs, singular: crontab, kind: CronTab, shortNames: [ct], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas, labelSelectorPath: .status.labelSelector}
    additionalPrinterColumns:
    - {name: Spec, type: string, description: The cron spec, jsonPath: .spec.cronSpec}
    - {name: Replicas, type: integer, jsonPath: .spec.replicas}
    - {name: Age, type: date, jsonPath: .metadata.creationTimestamp}
    selectableFields: [{jsonPath: .spec.image}]
    schema:
      openAPIV3Schema:
        type: object
        description: CronTab runs an image at times.
        properties:
          spec:
            type: object
            required: [cronSpec]
            x-kubernetes-validations:
            - {rule: "self.replicas <= self.most", message: replicas must not exceed most}
            - {rule: "self.image == oldSelf.image", message: image is immutable}
            properties:
              cronSpec: {type: string, pattern: '^(\d+|\*)(/\d+)?(\s+(\d+|\*)(/\d+)?){4}$', description: When it runs.}
              image: {type: string, default: hello}
              replicas: {type: integer, minimum: 1, maximum: 10, default: 1}
              most: {type: integer, default: 10}
              hosts:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [name]
                items:
                  type: object
                  required: [name]
                  properties: {name: {type: string}, port: {x-kubernetes-int-or-string: true}}
          status:
            type: object
            properties: {replicas: {type: integer}, labelSelector: {type: string}}
"#;

fn crontab(name: &str, spec: &str) -> String {
    format!("apiVersion: stable.example.com/v1\nkind: CronTab\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

fn define(cluster: &Cluster) -> Result<()> {
    let file = cluster.file("crd.yaml", DEFINITION)?;
    cluster.kubectl(&["apply", "-f", &file])?;
    cluster.kubectl(&[
        "wait",
        "--for=condition=Established",
        "crd/crontabs.stable.example.com",
        "--timeout=10s",
    ])?;
    Ok(())
}

/// Row: custom resources: a CRD defined with kubectl: columns, explain, short names, bad objects refused with their paths, watch, scale, deletion
/// Profile: loopback
#[test]
fn mission_m23_kinds_that_users_define() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    define(&cluster)?;
    let good = cluster.file("good.yaml", &crontab("good", "{cronSpec: '* * * * */5', replicas: 2}"))?;
    cluster.kubectl(&["apply", "-f", &good])?;
    let table = cluster.kubectl(&["get", "ct"])?;
    for word in ["NAME", "SPEC", "REPLICAS", "AGE", "good", "* * * * */5"] {
        ensure!(table.contains(word), "no {word} in\n{table}");
    }
    ensure!(cluster.kubectl(&["get", "all"])?.contains("crontab.stable.example.com/good"));
    ensure!(cluster.kubectl(&["api-resources"])?.contains("crontabs"));
    let explained = cluster.kubectl(&["explain", "crontab.spec.cronSpec"])?;
    ensure!(explained.contains("When it runs."), "{explained}");
    ensure!(cluster.kubectl(&["describe", "ct", "good"])?.contains("Cron Spec"));

    let refused = |name: &str, spec: &str, words: &str| -> Result<()> {
        let file = cluster.file(&format!("{name}.yaml"), &crontab(name, spec))?;
        let said = cluster.kubectl_fails(&["apply", "-f", &file])?;
        ensure!(said.contains(words), "{spec}: no {words:?} in\n{said}");
        Ok(())
    };
    refused(
        "a",
        "{cronSpec: 'now'}",
        "spec.cronSpec: Invalid value: \"now\": spec.cronSpec in body should match",
    )?;
    refused(
        "b",
        "{cronSpec: '* * * * *', replicas: 11}",
        "spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10",
    )?;
    refused("c", "{}", "spec.cronSpec: Required value")?;
    refused("d", "{cronSpec: '* * * * *', bogus: 1}", "unknown field \"spec.bogus\"")?;
    refused(
        "e",
        "{cronSpec: '* * * * *', replicas: 5, most: 3}",
        "spec: Invalid value: \"object\": replicas must not exceed most",
    )?;
    let changed = cluster.kubectl_fails(&[
        "patch",
        "ct",
        "good",
        "--type=merge",
        "-p",
        "{\"spec\":{\"image\":\"x\"}}",
    ])?;
    ensure!(changed.contains("image is immutable"), "{changed}");
    let found = cluster.kubectl(&["get", "ct", "--field-selector=spec.image=hello", "-o", "name"])?;
    ensure!(found.trim() == "crontab.stable.example.com/good", "{found}");

    watched(&cluster)?;
    cluster.kubectl(&["scale", "ct/good", "--replicas=4"])?;
    ensure!(cluster.get(&["ct", "good"])?["spec"]["replicas"] == 4);
    ensure!(cluster.get(&["ct", "good"])?["metadata"]["generation"] == 2);

    // It is all there after a restart.
    cluster.kill("server")?;
    eventually("the kind is served again", Duration::from_secs(30), || {
        Ok(cluster.kubectl(&["get", "ct", "good"]).is_ok())
    })?;
    cluster.kubectl(&["delete", "crd", "crontabs.stable.example.com", "--timeout=30s"])?;
    let gone = cluster.kubectl_fails(&["get", "ct"])?;
    // kubectl remembers what there was for a while.
    let words = ["the server doesn't have a resource type", "could not find the requested resource"];
    ensure!(words.iter().any(|w| gone.contains(w)), "{gone}");
    define(&cluster)?;
    ensure!(
        cluster.get(&["ct"])?["items"].as_array().is_some_and(Vec::is_empty),
        "objects outlived their kind"
    );
    cluster.stop()
}

/// A watch sees an object come and go.
fn watched(cluster: &Cluster) -> Result<()> {
    let mut watch = cluster
        .command(kubectl()?)
        .args(["get", "ct", "--watch-only", "--output-watch-events", "--request-timeout=30s"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(watch.stdout.take().context("stdout")?).lines();
    let file = cluster.file("seen.yaml", &crontab("seen", "{cronSpec: '1 * * * *'}"))?;
    // The watch begins at some moment after its process; objects are made until it shows one.
    let (tell, told) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        while let Some(Ok(line)) = lines.next() {
            if tell.send(line).is_err() {
                return;
            }
        }
    });
    let mut seen = String::new();
    let result = eventually("the watch shows an object and its end", SOON, || {
        cluster.kubectl(&["apply", "-f", &file])?;
        cluster.kubectl(&["delete", "-f", &file])?;
        seen.extend(told.try_iter().map(|line| line + "\n"));
        Ok(seen.contains("ADDED") && seen.contains("DELETED") && seen.contains("1 * * * *"))
    });
    watch.kill()?;
    watch.wait()?;
    let _ = reader.join();
    result.with_context(|| seen.clone())
}

/// Row: API: server-side apply: owners, a conflict between two managers, force, a custom kind's lists merge by their keys
/// Profile: loopback
#[test]
fn server_side_apply_knows_who_owns_a_field() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    let config = |name: &str, mode: &str, more: &str| {
        let data = format!("{{mode: {mode}{more}}}");
        cluster.file(
            name,
            &format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: shared}}\ndata: {data}\n"),
        )
    };
    let one = config("one.yaml", "fast", ", one: \"1\"")?;
    let two = config("two.yaml", "slow", ", two: \"2\"")?;
    let apply = |file: &str, manager: &str| {
        let manager = format!("--field-manager={manager}");
        cluster.kubectl(&["apply", "--server-side", "-f", file, &manager])
    };
    ensure!(apply(&one, "first")?.contains("serverside-applied"));
    let said = cluster.kubectl_fails(&["apply", "--server-side", "-f", &two, "--field-manager=second"])?;
    for words in ["Apply failed with 1 conflict: conflict with \"first\": .data.mode", "--force-conflicts"] {
        ensure!(said.contains(words), "no {words:?} in\n{said}");
    }
    cluster.kubectl(&[
        "apply",
        "--server-side",
        "-f",
        &two,
        "--field-manager=second",
        "--force-conflicts",
    ])?;
    let shared = cluster.get(&["cm", "shared", "--show-managed-fields"])?;
    ensure!(shared["data"] == serde_json::json!({"mode": "slow", "one": "1", "two": "2"}), "{shared}");
    let owners = &shared["metadata"]["managedFields"];
    ensure!(
        owners[0]["manager"] == "first"
            && owners[0]["fieldsV1"] == serde_json::json!({"f:data": {"f:one": {}}}),
        "{owners}"
    );
    ensure!(owners[1]["manager"] == "second" && owners[1]["operation"] == "Apply", "{owners}");
    ensure!(cluster.get(&["cm", "shared"])?["metadata"].get("managedFields").is_none());
    // What a manager no longer sets goes.
    let less = cluster.file("less.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shared}\n")?;
    apply(&less, "first")?;
    ensure!(cluster.get(&["cm", "shared"])?["data"] == serde_json::json!({"mode": "slow", "two": "2"}));

    // From client-side apply to server-side apply and on, as kubectl migrates it.
    let plain = cluster.file(
        "plain.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: moved}\ndata: {a: \"1\", b: \"1\"}\n",
    )?;
    cluster.kubectl(&["apply", "-f", &plain])?;
    let next = cluster
        .file("next.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: moved}\ndata: {a: \"2\"}\n")?;
    cluster.kubectl(&["apply", "--server-side", "-f", &next])?;
    ensure!(cluster.get(&["cm", "moved"])?["data"] == serde_json::json!({"a": "2"}));

    define(&cluster)?;
    for (name, host) in [("x", "a"), ("y", "b")] {
        let spec = format!("{{cronSpec: '* * * * *', hosts: [{{name: {host}, port: 80}}]}}");
        apply(&cluster.file(&format!("{name}.yaml"), &crontab("shared", &spec))?, name)?;
    }
    let hosts = &cluster.get(&["ct", "shared"])?["spec"]["hosts"];
    ensure!(*hosts == serde_json::json!([{"name": "a", "port": 80}, {"name": "b", "port": 80}]), "{hosts}");
    cluster.stop()
}
