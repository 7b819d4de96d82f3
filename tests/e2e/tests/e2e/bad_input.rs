//! Bad input gets a status, a reason and words that kubectl users know. Profile: loopback.

use std::time::Duration;

use anyhow::{Result, ensure};
use coracle_e2e::{Cluster, Profile, eventually};

/// Manifest, flags of `kubectl apply`, words in the answer.
const REFUSED: [(&str, &[&str], &[&str]); 5] = [
    ("apiVersion: v1\nkind: ConfigMap\nmetadata: [", &[], &["error"]),
    (
        "apiVersion: v1\nkind: Nonsense\nmetadata:\n  name: x\n",
        &[],
        &["no matches for kind \"Nonsense\" in version \"v1\""],
    ),
    (
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: x\nspec:\n  types: NodePort\n  ports:\n  - port: 80\n",
        &[],
        &["unknown field \"spec.types\""],
    ),
    ("kind: Service\nmetadata:\n  name: x\n", &[], &["apiVersion not set"]),
    (
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: Not_A_Name\nspec:\n  containers:\n  - name: a\n    image: b\n",
        &[],
        &["metadata.name", "Invalid value"],
    ),
];

/// Row: bad input: malformed, unknown and wrong manifests are refused in known words
#[test]
fn manifests_are_refused_in_known_words() -> Result<()> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    for (manifest, flags, words) in REFUSED {
        let file = cluster.file("bad.yaml", manifest)?;
        let mut args = vec!["apply", "-f", &file];
        args.extend(flags);
        let said = cluster.kubectl_fails(&args)?;
        for word in words {
            ensure!(said.contains(word), "no {word:?} for {manifest:?} in {said}");
        }
    }
    cluster.stop()
}

/// Row: bad input: an image that does not exist: ErrImagePull and an Event
#[test]
fn an_image_that_does_not_exist_is_told() -> Result<()> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    let file = cluster.file(
        "pod.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: lost\nspec:\n  containers:\n  - name: a\n    image: nowhere:v1\n",
    )?;
    cluster.kubectl(&["apply", "-f", &file])?;
    eventually("the pod waits with ErrImagePull or ImagePullBackOff", Duration::from_secs(20), || {
        let pod = cluster.get(&["pod", "lost"])?;
        let reason = pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].to_string();
        Ok(reason.contains("ErrImagePull") || reason.contains("ImagePullBackOff"))
    })?;
    eventually("an event says what failed", Duration::from_secs(10), || {
        Ok(cluster.kubectl(&["describe", "pod", "lost"])?.contains("Failed to pull image \"nowhere:v1\""))
    })?;
    cluster.kubectl(&["delete", "pod", "lost", "--timeout=30s"])?;
    cluster.stop()
}
