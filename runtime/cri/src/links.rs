//! Which containers of a pod import from which: the annotation, and what is wrong with one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tonic::Status;

/// On a pod: which container imports what which other exports: `web=auth, web=store, auth=store`.
pub const ANNOTATION: &str = "coracle.dev/links";

/// Why a component that only exports interfaces is refused in other pods.
pub const NOTHING_TO_START: &str = "the component exports neither a wasi:http handler nor wasi:cli/run, and the pod has no \
     annotation coracle.dev/links by which other containers import from it: there is nothing to start";

/// The most links of a pod.
const MAX_LINKS: usize = 100;

/// The importing containers, and those that each imports from in the order given.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Links(BTreeMap<String, Vec<String>>);

impl Links {
    /// Those that this container imports from.
    pub fn of(&self, container: &str) -> Vec<String> {
        self.0.get(container).cloned().unwrap_or_default()
    }

    /// Whether others import from this container.
    pub fn to(&self, container: &str) -> bool {
        self.0.values().flatten().any(|name| name == container)
    }
}

/// Reads the annotation of a pod; without one there are no links.
pub fn parse(annotations: &HashMap<String, String>) -> Result<Links, Status> {
    let Some(text) = annotations.get(ANNOTATION) else { return Ok(Links::default()) };
    let invalid = |why: String| Status::invalid_argument(format!("annotation {ANNOTATION}: {why}"));
    let mut links = Links::default();
    let items: Vec<_> = text.split([',', '\n']).map(str::trim).filter(|item| !item.is_empty()).collect();
    if items.len() > MAX_LINKS {
        return Err(invalid(format!("more than {MAX_LINKS} links")));
    }
    for item in items {
        let named = item.split_once('=').map(|(one, other)| (one.trim(), other.trim()));
        let (importer, exporter) = named
            .filter(|(one, other)| !one.is_empty() && !other.is_empty() && !other.contains('='))
            .ok_or_else(|| invalid(format!("{item:?} is not IMPORTING-CONTAINER=EXPORTING-CONTAINER")))?;
        let of = links.0.entry(importer.to_owned()).or_default();
        if !of.iter().any(|name| name == exporter) {
            of.push(exporter.to_owned());
        }
    }
    match circle(&links) {
        Some(name) => Err(invalid(format!("container {name} would import from itself"))),
        None => Ok(links),
    }
}

/// A container that can be reached from itself.
fn circle(links: &Links) -> Option<&str> {
    links.0.keys().map(String::as_str).find(|start| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![*start]);
        while let Some(name) = open.pop() {
            for next in links.0.get(name).into_iter().flatten() {
                if next == start {
                    return true;
                }
                if seen.insert(next.as_str()) {
                    open.push(next);
                }
            }
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Links, String> {
        let annotations = [(ANNOTATION.to_owned(), text.to_owned())].into();
        parse(&annotations).map_err(|status| status.message().to_owned())
    }

    #[test]
    fn links_are_pairs_of_containers() {
        let links = read(" web=auth, web = store\nauth=store,").unwrap();
        assert_eq!(links.of("web"), ["auth", "store"]);
        assert_eq!(links.of("store"), Vec::<String>::new());
        assert_eq!(["web", "auth", "store"].map(|name| links.to(name)), [false, true, true]);
        assert_eq!(parse(&HashMap::new()).unwrap(), Links::default());
    }

    #[test]
    fn nonsense_and_circles_are_refused() {
        for (text, words) in [
            ("web", "\"web\" is not"),
            ("web=", "is not"),
            ("=auth", "is not"),
            ("a=b=c", "is not"),
            ("a=a", "container a would import from itself"),
            ("a=b,b=c,c=a", "would import from itself"),
        ] {
            let said = read(text).unwrap_err();
            assert!(said.contains(words), "{text}: {said}");
        }
        let many: String = (0..=MAX_LINKS).map(|n| format!("a=b{n},")).collect();
        assert!(read(&many).unwrap_err().contains("more than"));
    }
}
