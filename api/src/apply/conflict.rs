//! A field that another manager owns, in Kubernetes' words.

use std::collections::BTreeMap;

use crate::field::go_quote;
use crate::status::Status;

use super::managed::{Operation, Writer};

/// A field that a configuration sets otherwise than its owner did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Who owns it, in words: `"kubectl" with subresource "status" using apps/v1`.
    pub manager: String,
    /// Which field: `.spec.replicas`.
    pub path: String,
}

/// A manager in the words of conflicts.
pub(super) fn manager(writer: &Writer) -> String {
    let mut text = go_quote(&writer.manager);
    if !writer.subresource.is_empty() {
        text.push_str(&format!(" with subresource {}", go_quote(&writer.subresource)));
    }
    if writer.operation == Operation::Update {
        text.push_str(&format!(" using {}", writer.api_version));
    }
    text
}

/// 409 with a cause for each conflict.
pub(super) fn status(conflicts: &[Conflict]) -> Status {
    let message = match conflicts {
        [one] => format!("Apply failed with 1 conflict: conflict with {}: {}", one.manager, one.path),
        many => {
            let mut by_manager: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for conflict in many {
                by_manager.entry(&conflict.manager).or_default().push(&conflict.path);
            }
            let mut lines = Vec::new();
            for (manager, paths) in by_manager {
                lines.push(format!("conflicts with {manager}:"));
                lines.extend(paths.into_iter().map(|p| format!("- {p}")));
            }
            format!("Apply failed with {} conflicts: {}", many.len(), lines.join("\n"))
        }
    };
    let status = Status::new(409, "Conflict", message).with_details(Default::default());
    conflicts.iter().fold(status, |status, c| {
        status.with_cause("FieldManagerConflict", format!("conflict with {}", c.manager), c.path.clone())
    })
}
