//! Records by what they are asked for by: of the thousands that a node has, few are looked through.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::record::{ContainerRecord, SandboxRecord};

/// What a list of sandboxes or containers is narrowed to.
#[derive(Default)]
pub struct Filter<'a> {
    /// How the id begins; empty: all.
    pub id: &'a str,
    /// As `id`, of the sandbox that a container belongs to.
    pub sandbox_id: &'a str,
    pub labels: Option<&'a HashMap<String, String>>,
}

/// The label by which an agent asks for what is of one pod, again and again.
const POD: &str = "io.kubernetes.pod.uid";

impl Filter<'_> {
    fn matches(&self, record: &impl Listed) -> bool {
        record.sandbox_id().starts_with(self.sandbox_id)
            && record.id().starts_with(self.id)
            && self.labels.is_none_or(|wanted| wanted.iter().all(|(k, v)| record.labels().get(k) == Some(v)))
    }
}

/// A record that is listed.
pub(super) trait Listed {
    fn id(&self) -> &str;
    /// Of the sandbox that it belongs to; a sandbox's own is its.
    fn sandbox_id(&self) -> &str;
    fn labels(&self) -> &HashMap<String, String>;
    /// The pod that its maker says it is of.
    fn uid(&self) -> Option<&str>;

    /// What it is asked for by: its pod and its sandbox, whose names no two have.
    fn keys(&self) -> impl Iterator<Item = &str> {
        let pod = self.labels().get(POD).map(String::as_str);
        [Some(self.sandbox_id()), pod, self.uid()].into_iter().flatten().filter(|key| !key.is_empty())
    }
}

impl Listed for SandboxRecord {
    fn id(&self) -> &str {
        &self.id
    }
    fn sandbox_id(&self) -> &str {
        &self.id
    }
    fn labels(&self) -> &HashMap<String, String> {
        &self.config.labels
    }
    fn uid(&self) -> Option<&str> {
        self.config.metadata.as_ref().map(|metadata| metadata.uid.as_str())
    }
}

impl Listed for ContainerRecord {
    fn id(&self) -> &str {
        &self.id
    }
    fn sandbox_id(&self) -> &str {
        &self.sandbox_id
    }
    fn labels(&self) -> &HashMap<String, String> {
        &self.config.labels
    }
    fn uid(&self) -> Option<&str> {
        None
    }
}

/// Records by id, and which of them each pod and sandbox has: thousands are not looked through for the few of one.
pub(super) struct Records<T> {
    pub by_id: BTreeMap<String, T>,
    by_key: HashMap<String, BTreeSet<String>>,
}

impl<T: Listed> Records<T> {
    pub fn new() -> Self {
        Self { by_id: BTreeMap::new(), by_key: HashMap::new() }
    }

    pub fn insert(&mut self, record: T) {
        let id = record.id().to_owned();
        for key in record.keys() {
            self.by_key.entry(key.to_owned()).or_default().insert(id.clone());
        }
        self.by_id.insert(id, record);
    }

    pub fn remove(&mut self, id: &str) -> Option<T> {
        let record = self.by_id.remove(id)?;
        for key in record.keys() {
            if let Some(ids) = self.by_key.get_mut(key) {
                ids.remove(id);
                if ids.is_empty() {
                    self.by_key.remove(key);
                }
            }
        }
        Some(record)
    }

    pub fn get_mut(&mut self, id: &str) -> Option<&mut T> {
        self.by_id.get_mut(id)
    }

    /// Those of a pod, or of a sandbox.
    pub fn of(&self, key: &str) -> impl Iterator<Item = &T> {
        self.by_key.get(key).into_iter().flatten().filter_map(|id| self.by_id.get(id))
    }

    /// Those that a filter leaves.
    pub fn matching<'a>(&'a self, filter: &'a Filter<'_>) -> impl Iterator<Item = &'a T> {
        let pod = filter.labels.and_then(|labels| labels.get(POD)).filter(|pod| !pod.is_empty());
        // The beginning of an id is no key.
        let key =
            pod.map(String::as_str).or(Some(filter.sandbox_id).filter(|id| self.by_key.contains_key(*id)));
        let all = key.is_none().then(|| self.by_id.values()).into_iter().flatten();
        let of_key = key.into_iter().flat_map(|key| self.of(key));
        all.chain(of_key).filter(|record| filter.matches(*record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Record {
        id: String,
        sandbox: String,
        labels: HashMap<String, String>,
    }

    impl Listed for Record {
        fn id(&self) -> &str {
            &self.id
        }
        fn sandbox_id(&self) -> &str {
            &self.sandbox
        }
        fn labels(&self) -> &HashMap<String, String> {
            &self.labels
        }
        fn uid(&self) -> Option<&str> {
            Some("")
        }
    }

    fn labels(of: &[(&str, &str)]) -> HashMap<String, String> {
        of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn records_of_a_pod_or_a_sandbox_are_found_among_all() {
        let mut records = Records::new();
        for (id, sandbox, of) in [
            ("1", "s1", &[(POD, "a"), ("n", "x")][..]),
            ("2", "s2", &[(POD, "b"), ("n", "x")]),
            ("3", "s1", &[(POD, "a")]),
            ("4", "s3", &[]),
        ] {
            let (id, sandbox) = (id.to_owned(), sandbox.to_owned());
            records.insert(Record { id, sandbox, labels: labels(of) });
        }
        let ids = |records: &Records<Record>, filter: &Filter<'_>| {
            records.matching(filter).map(|record| record.id.clone()).collect::<String>()
        };
        let labelled = |records: &Records<Record>, wanted: &[(&str, &str)]| {
            ids(records, &Filter { labels: Some(&labels(wanted)), ..Filter::default() })
        };
        let within = |records: &Records<Record>, sandbox_id: &str| {
            ids(records, &Filter { sandbox_id, ..Filter::default() })
        };
        assert_eq!(ids(&records, &Filter::default()), "1234");
        assert_eq!(labelled(&records, &[]), "1234");
        assert_eq!(labelled(&records, &[("n", "x")]), "12");
        assert_eq!(labelled(&records, &[(POD, "a")]), "13");
        assert_eq!(labelled(&records, &[(POD, "a"), ("n", "x")]), "1");
        assert_eq!(labelled(&records, &[(POD, "c")]), "");
        assert_eq!(labelled(&records, &[(POD, "")]), "");
        assert_eq!(within(&records, "s1"), "13");
        assert_eq!(within(&records, "s"), "1234", "the beginning of an id");
        assert_eq!(within(&records, "s4"), "");
        assert_eq!(ids(&records, &Filter { id: "3", sandbox_id: "s1", labels: None }), "3");
        for id in ["1", "3"] {
            assert!(records.remove(id).is_some());
        }
        assert_eq!(
            (labelled(&records, &[(POD, "a")]), within(&records, "s1")),
            (String::new(), String::new())
        );
        assert_eq!(records.by_key.len(), 3, "one pod and two sandboxes");
    }
}
