//! How often the probes of this node's containers passed and failed, as the kubelet's `/metrics/probes` has it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;

use super::Kind;

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Labels {
    container: String,
    namespace: String,
    pod: String,
    uid: String,
    kind: &'static str,
    result: &'static str,
}

#[derive(Default)]
struct All {
    /// The uids of pods that are looked at.
    pods: BTreeSet<String>,
    by: BTreeMap<Labels, u64>,
}

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Counts(Arc<Mutex<All>>);

impl Counts {
    /// A pod is looked at from now on.
    pub(super) fn begin(&self, uid: &str) {
        self.0.lock().pods.insert(uid.to_owned());
    }

    /// One more look. One that ends after its pod is gone counts no more.
    pub(super) fn count(&self, pod: &Pod, container: &str, kind: Kind, passed: bool) {
        let meta = &pod.metadata;
        let labels = Labels {
            container: container.to_owned(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            pod: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            kind: kind.word(),
            result: if passed { "successful" } else { "failed" },
        };
        let mut all = self.0.lock();
        if all.pods.contains(&labels.uid) {
            *all.by.entry(labels).or_default() += 1;
        }
    }

    /// The pod is no more.
    pub(super) fn forget(&self, uid: &str) {
        let mut all = self.0.lock();
        all.pods.remove(uid);
        all.by.retain(|labels, _| labels.uid != uid);
    }

    /// Prometheus text.
    pub fn text(&self) -> String {
        let name = "prober_probe_total";
        let mut text = format!(
            "# HELP {name} [BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.\n\
             # TYPE {name} counter\n"
        );
        for (labels, count) in &self.0.lock().by {
            let Labels { container, namespace, pod, uid, kind, result } = labels;
            let _ = writeln!(
                text,
                "{name}{{container={container:?},namespace={namespace:?},pod={pod:?},pod_uid={uid:?},\
                 probe_type={kind:?},result={result:?}}} {count}"
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_counted_until_the_pod_is_gone() {
        let counts = Counts::default();
        let meta = serde_json::json!({"name": "p", "namespace": "ns", "uid": "u"});
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": meta})).expect("a Pod");
        counts.begin("u");
        for passed in [true, false, true] {
            counts.count(&pod, "a", Kind::Readiness, passed);
        }
        let text = counts.text();
        let labels = "container=\"a\",namespace=\"ns\",pod=\"p\",pod_uid=\"u\",probe_type=\"Readiness\"";
        for (result, count) in [("successful", 2), ("failed", 1)] {
            let line = format!("prober_probe_total{{{labels},result=\"{result}\"}} {count}");
            assert!(text.lines().any(|one| one == line), "no {line} in {text}");
        }
        counts.forget("u");
        // A look that was under way.
        counts.count(&pod, "a", Kind::Readiness, true);
        assert!(!counts.text().contains("ns"));
    }
}
