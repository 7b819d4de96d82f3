//! Admission policies in CEL: parameters, actions, changes. Profile: loopback.

use anyhow::{Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, kubectl, shown};
use serde_json::json;

const LIMITS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: limits, labels: {role: limits}}
data: {most: '3'}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: few}
spec:
  paramKind: {apiVersion: v1, kind: ConfigMap}
  matchConstraints:
    resourceRules:
    - {apiGroups: [apps], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [deployments]}
  matchConditions: [{name: people, expression: \"!('system:nodes' in request.userInfo.groups)\"}]
  variables: [{name: most, expression: int(params.data.most)}]
  validations:
  - expression: object.spec.replicas <= variables.most
    messageExpression: \"'at most ' + string(variables.most) + ' in ' + namespaceObject.metadata.name\"
    reason: Forbidden
  - expression: authorizer.group('apps').resource('deployments').check('delete').allowed()
  auditAnnotations: [{key: replicas, valueExpression: string(object.spec.replicas)}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: few}
spec:
  policyName: few
  validationActions: [Deny]
  paramRef: {name: limits, parameterNotFoundAction: Deny}
";

const CHANGES: &str = "
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {name: sidecar}
spec:
  reinvocationPolicy: IfNeeded
  matchConstraints:
    resourceRules:
    - {apiGroups: [''], apiVersions: [v1], operations: [CREATE], resources: [pods]}
  matchConditions: [{name: wanted, expression: object.metadata.name.startsWith('with')}]
  mutations:
  - patchType: ApplyConfiguration
    applyConfiguration:
      expression: >
        Object{
          metadata: Object.metadata{labels: {'changed': 'yes'}},
          spec: Object.spec{
            initContainers: [Object.spec.initContainers{name: 'mesh', image: 'mesh:1', restartPolicy: 'Always'}]
          }
        }
  - patchType: JSONPatch
    jsonPatch:
      expression: >
        [
          JSONPatch{op: 'test', path: '/metadata/labels/changed', value: 'yes'},
          JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('example.com/by'), value: request.userInfo.username.replace(':', '.')},
          JSONPatch{op: 'add', path: '/spec/containers/0/env', value: [Object.spec.containers.env{name: 'A', value: 'b'}]}
        ]
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {name: sidecar}
spec: {policyName: sidecar}
";

fn run(cluster: &Cluster, args: &[&str]) -> Result<String> {
    Ok(shown(&cluster.command(kubectl()?).args(args).output()?))
}

/// Row: admission: a ValidatingAdmissionPolicy with parameters, messages, reasons and the authorizer; actions Deny, Warn and Audit
#[test]
fn policies_take_parameters() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    let file = cluster.file("limits.yaml", LIMITS)?;
    cluster.kubectl(&["apply", "-f", &file])?;
    let create = |name: &str, replicas: &str| {
        run(&cluster, &["create", "deployment", name, "--image=i", &format!("--replicas={replicas}")])
    };
    let said = create("d", "4")?;
    ensure!(said.contains("deployments.apps \"d\" is forbidden: ValidatingAdmissionPolicy 'few' with binding 'few' denied request: at most 3 in default"), "{said}");
    ensure!(create("d", "3")?.contains("created"));
    cluster.kubectl(&["patch", "configmap", "limits", "-p", "{\"data\": {\"most\": \"9\"}}"])?;
    ensure!(create("e", "9")?.contains("created"));
    cluster.kubectl(&["delete", "configmap", "limits"])?;
    let said = create("f", "1")?;
    ensure!(said.contains("failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"), "{said}");
    let selector = json!({"spec": {"validationActions": ["Warn", "Audit"], "paramRef": {"name": null, "selector": {"matchLabels": {"role": "limits"}}, "parameterNotFoundAction": "Allow"}}});
    let binding = "validatingadmissionpolicybinding/few";
    cluster.kubectl(&["patch", binding, "--type=merge", "-p", &selector.to_string()])?;
    ensure!(create("f", "1")?.contains("created"), "without parameters the policy does not hold");
    for most in ["1", "2"] {
        cluster.kubectl(&[
            "create",
            "configmap",
            &format!("limits-{most}"),
            &format!("--from-literal=most={most}"),
        ])?;
        cluster.kubectl(&["label", "configmap", &format!("limits-{most}"), "role=limits"])?;
    }
    let said = create("g", "2")?;
    ensure!(said.contains("Warning: Validation failed for ValidatingAdmissionPolicy 'few' with binding 'few': at most 1 in default"), "{said}");
    ensure!(said.contains("deployment.apps/g created") && !said.contains("at most 2"), "{said}");
    let table = cluster.kubectl(&["get", "validatingadmissionpolicies"])?;
    ensure!(table.contains("v1/ConfigMap"), "{table}");
    let bad =
        cluster.file("bad.yaml", &LIMITS.replace("int(params.data.most)", "int(parameters.data.most)"))?;
    let said = run(&cluster, &["apply", "-f", &bad])?;
    ensure!(said.contains("spec.variables[0].expression: Invalid value: \"int(parameters.data.most)\": compilation failed: undeclared reference to 'parameters'"), "{said}");
    cluster.stop()
}

/// Row: admission: a MutatingAdmissionPolicy merges configurations into objects and patches them
#[test]
fn policies_change_objects() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    let file = cluster.file("changes.yaml", CHANGES)?;
    cluster.kubectl(&["apply", "-f", &file])?;
    let pod = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"own": "1"}}, "spec": {"containers": [{"name": "c", "image": "none"}]}}).to_string()
    };
    for name in ["with", "none"] {
        let file = cluster.file("pod.json", &pod(name))?;
        cluster.kubectl(&["apply", "-f", &file])?;
    }
    let with = cluster.get(&["pod", "with"])?;
    ensure!(
        with["metadata"]["labels"]
            == json!({"own": "1", "changed": "yes", "example.com/by": "kubernetes-admin"}),
        "{}",
        with["metadata"]
    );
    let spec = &with["spec"];
    ensure!(
        spec["initContainers"][0]["name"] == "mesh" && spec["containers"][0]["image"] == "none",
        "{spec}"
    );
    ensure!(spec["containers"][0]["env"] == json!([{"name": "A", "value": "b"}]), "{spec}");
    ensure!(spec["initContainers"][0]["imagePullPolicy"] == "IfNotPresent", "defaults are set again: {spec}");
    ensure!(cluster.get(&["pod", "none"])?["metadata"]["labels"] == json!({"own": "1"}));
    let bad = CHANGES.replace(
        "op: 'test', path: '/metadata/labels/changed', value: 'yes'",
        "op: 'test', path: '/metadata/labels/changed', value: 'no'",
    );
    let file = cluster.file("changes.yaml", &bad)?;
    cluster.kubectl(&["apply", "-f", &file])?;
    let file = cluster.file("pod.json", &pod("with-2"))?;
    let said = run(&cluster, &["apply", "-f", &file])?;
    ensure!(said.contains("policy 'sidecar' with binding 'sidecar' denied request: "), "{said}");
    cluster.kubectl(&[
        "patch",
        "mutatingadmissionpolicy",
        "sidecar",
        "--type=merge",
        "-p",
        "{\"spec\": {\"failurePolicy\": \"Ignore\"}}",
    ])?;
    cluster.kubectl(&["apply", "-f", &file])?;
    let plain = cluster.get(&["pod", "with-2"])?;
    ensure!(
        plain["metadata"]["labels"] == json!({"own": "1"}),
        "nothing of a failed policy is kept: {}",
        plain["metadata"]
    );
    cluster.stop()
}
