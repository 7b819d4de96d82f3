//! A kind has several versions, and what a manager owns is in the version in which it wrote: there it is compared.

use serde_json::Value;

use super::compare::{Comparison, compare};
use super::managed::{Entry, Scope, Writer, take};
use super::shape::Node;

/// What another version is, seen from the one that is written.
pub enum Form<'a> {
    /// The same fields.
    Same,
    /// It is served no more: what was owned in it means nothing.
    Gone,
    /// Fields of its own.
    Other(Node<'a>),
}

/// The versions of a kind.
pub trait Versions {
    /// What a version is: `apps/v1`.
    fn form(&self, api_version: &str) -> Form<'_>;

    /// An object of one version in another; `None` where that fails.
    fn convert(&self, obj: &Value, from: &str, to: &str) -> Option<Value>;
}

/// A kind whose versions do not differ.
pub struct OneVersion;

impl Versions for OneVersion {
    fn form(&self, _api_version: &str) -> Form<'_> {
        Form::Same
    }

    fn convert(&self, obj: &Value, _from: &str, _to: &str) -> Option<Value> {
        Some(obj.clone())
    }
}

/// The versions in which managers wrote, once each, but for `own` and those that are the same.
pub(super) fn others<'v>(
    versions: &'v dyn Versions,
    entries: &[Entry],
    own: &str,
) -> Vec<(String, Option<Node<'v>>)> {
    let mut all: Vec<(String, Option<Node<'v>>)> = Vec::new();
    for entry in entries {
        let version = entry.writer.api_version.as_str();
        if version == own || all.iter().any(|(known, _)| known == version) {
            continue;
        }
        match versions.form(version) {
            Form::Same => {}
            Form::Gone => all.push((version.to_owned(), None)),
            Form::Other(node) => all.push((version.to_owned(), Some(node))),
        }
    }
    all
}

/// What a write changed, as managers of other versions see it.
pub(super) struct Elsewhere(Vec<(String, Comparison)>, Vec<String>);

impl Elsewhere {
    /// From one state to the next, both of the writer's version.
    pub fn of(
        versions: &dyn Versions,
        entries: &mut Vec<Entry>,
        (old, new): (&Value, &Value),
        writer: &Writer,
        scope: Scope,
    ) -> Self {
        let own = writer.api_version.as_str();
        let (mut seen, mut blind) = (Vec::new(), Vec::new());
        for (version, node) in others(versions, entries, own) {
            let Some(node) = node else {
                entries.retain(|e| e.writer.api_version != version);
                continue;
            };
            let before = versions.convert(old, own, &version);
            let after = versions.convert(new, own, &version);
            match (before, after) {
                (Some(before), Some(after)) => {
                    let mut found = compare(node, &before, &after);
                    found.filter(|name| scope.keeps(name));
                    seen.push((version, found));
                }
                // What cannot be compared is left to who has it.
                _ => blind.push(version),
            }
        }
        Self(seen, blind)
    }

    /// Whether a manager's version is not the one that is written.
    pub fn covers(&self, entry: &Entry) -> bool {
        let version = &entry.writer.api_version;
        self.0.iter().any(|(known, _)| known == version) || self.1.contains(version)
    }

    /// What changed in a manager's version.
    pub fn change(&self, entry: &Entry) -> Option<&Comparison> {
        self.0.iter().find(|(version, _)| *version == entry.writer.api_version).map(|(_, found)| found)
    }

    /// Takes from managers of other versions what changed and what is gone, but from those that are `spared`.
    pub fn take(&self, entries: &mut Vec<Entry>, spared: impl Fn(&Entry) -> bool) {
        for (version, found) in &self.0 {
            let not_it = |e: &Entry| e.writer.api_version != *version || spared(e);
            take(entries, &found.removed, &found.changed(), not_it);
        }
    }
}
