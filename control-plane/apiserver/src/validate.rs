//! What must hold of `metadata` and of options, whatever the kind.

use coracle_api::field::{Error, Path};
use coracle_api::meta::{self, validation};
use coracle_api::{Gvk, Status};
use serde_json::{Value, json};

use crate::query::WriteOptions;
use crate::resource::ResourceDef;

/// Longest field manager, in bytes.
const MAX_FIELD_MANAGER: usize = 128;
/// Finalizers that need no domain.
const STANDARD_FINALIZERS: [&str; 3] = ["orphan", "foregroundDeletion", "kubernetes"];

/// Errors of `metadata` on create.
pub(crate) fn metadata(def: &ResourceDef, obj: &Value) -> Vec<Error> {
    let path = Path::new("metadata");
    let mut errors = Vec::new();
    if let Some(prefix) = meta::generate_name(obj) {
        let at = path.child("generateName");
        errors.extend(
            def.strategy.validate_name(prefix, true).into_iter().map(|w| Error::invalid(&at, prefix, w)),
        );
    }
    match meta::name(obj) {
        None => errors.push(Error::required(&path.child("name"), "name or generateName is required")),
        Some(name) => {
            let at = path.child("name");
            errors.extend(
                def.strategy.validate_name(name, false).into_iter().map(|w| Error::invalid(&at, name, w)),
            );
        }
    }
    match (def.namespaced, meta::namespace(obj)) {
        (true, None) => errors.push(Error::required(&path.child("namespace"), "")),
        (true, Some(namespace)) => {
            let at = path.child("namespace");
            errors.extend(
                validation::dns1123_label(namespace).into_iter().map(|w| Error::invalid(&at, namespace, w)),
            );
        }
        (false, Some(_)) => {
            errors.push(Error::forbidden(&path.child("namespace"), "not allowed on this type"))
        }
        (false, None) => {}
    }
    errors.extend(common(obj, &path));
    errors
}

fn common(obj: &Value, path: &Path) -> Vec<Error> {
    let get = |name: &str| meta::metadata(obj).and_then(|m| m.get(name));
    let mut errors = Vec::new();
    if meta::generation(obj) < 0 {
        let at = path.child("generation");
        errors.push(Error::invalid(&at, meta::generation(obj), "must be greater than or equal to 0"));
    }
    errors.extend(validation::labels(get("labels"), &path.child("labels")));
    errors.extend(validation::annotations(get("annotations"), &path.child("annotations")));
    errors.extend(owners(meta::owner_references(obj), &path.child("ownerReferences")));
    errors.extend(finalizers(obj, &path.child("finalizers")));
    errors
}

fn owners(owners: &[Value], path: &Path) -> Vec<Error> {
    let mut errors = Vec::new();
    let mut controller: Option<&str> = None;
    for (i, owner) in owners.iter().enumerate() {
        let at = path.index(i);
        let text = |name: &str| owner.get(name).and_then(Value::as_str).unwrap_or("");
        for (name, words) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if text(name).is_empty() {
                errors.push(Error::invalid(&at.child(name), "", words));
            }
        }
        if owner.get("controller") == Some(&Value::Bool(true)) {
            if let Some(first) = controller {
                errors.push(Error::invalid(
                    path,
                    owner.clone(),
                    format!("Only one reference can have Controller set to true. Found \"true\" in references for {first} and {}", text("name")),
                ));
            } else {
                controller = Some(text("name"));
            }
        }
    }
    errors
}

fn finalizers(obj: &Value, path: &Path) -> Vec<Error> {
    let mut errors = Vec::new();
    let (mut orphan, mut foreground) = (false, false);
    for (i, finalizer) in meta::finalizers(obj).enumerate() {
        orphan |= finalizer == "orphan";
        foreground |= finalizer == "foregroundDeletion";
        let at = path.index(i);
        let wrong = validation::qualified_name(finalizer);
        if wrong.is_empty() && !finalizer.contains('/') && !STANDARD_FINALIZERS.contains(&finalizer) {
            let words = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(Error::invalid(&at, finalizer, words));
        }
        errors.extend(wrong.into_iter().map(|w| Error::invalid(path, finalizer, w)));
    }
    if orphan && foreground {
        let list: Vec<&str> = meta::finalizers(obj).collect();
        errors.push(Error::invalid(
            path,
            json!(list),
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
    errors
}

/// Errors of `metadata` on update. Kubernetes checks several times and names each error as often among the causes (the
/// message names it once); so does this.
pub(crate) fn metadata_update(new: &Value, old: &Value) -> Vec<Error> {
    let path = Path::new("metadata");
    let (changes, state) = (metadata_changes(new, old, &path), common(new, &path));
    [&state, &changes, &state, &changes, &state, &state].into_iter().flatten().cloned().collect()
}

/// What may not change, or not like this.
fn metadata_changes(new: &Value, old: &Value, path: &Path) -> Vec<Error> {
    let mut errors = Vec::new();
    if meta::deletion_timestamp(old).is_some() {
        let before: Vec<&str> = meta::finalizers(old).collect();
        let added: Vec<String> =
            meta::finalizers(new).filter(|f| !before.contains(f)).map(|f| format!("{f:?}")).collect();
        if !added.is_empty() {
            let words = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            );
            errors.push(Error::forbidden(&path.child("finalizers"), words));
        }
    }
    for name in
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        let (is, was) = (field(new, name), field(old, name));
        if is != was {
            let words = match name {
                "deletionTimestamp" | "deletionGracePeriodSeconds" => {
                    "field is immutable; may only be changed via deletion"
                }
                _ => "field is immutable",
            };
            errors.push(Error::invalid(&path.child(name), is.cloned().unwrap_or(Value::Null), words));
        }
    }
    errors
}

fn field<'a>(obj: &'a Value, name: &str) -> Option<&'a Value> {
    meta::metadata(obj).and_then(|m| m.get(name)).filter(|v| !v.is_null())
}

/// 422 for options that are wrong. `kind` is CreateOptions and so on; `apply` says whether `force` means something.
pub(crate) fn write_options(options: &WriteOptions, kind: &str, apply: bool) -> Result<(), Status> {
    let mut errors = Vec::new();
    if apply && options.field_manager.is_none() {
        errors.push(Error::required(&Path::new("fieldManager"), "is required for apply patch"));
    }
    if let Some(manager) = &options.field_manager {
        let at = Path::new("fieldManager");
        if manager.len() > MAX_FIELD_MANAGER {
            errors.push(Error::too_long(&at, MAX_FIELD_MANAGER));
        }
        if let Some(at_char) = manager.chars().position(|c| c.is_control()) {
            errors.push(Error::invalid(
                &at,
                manager.as_str(),
                format!("should only contain printable characters (character {at_char} is not)"),
            ));
        }
    }
    if options.force.is_some() && kind == "PatchOptions" && !apply {
        errors.push(Error::forbidden(&Path::new("force"), "may not be specified for non-apply patch"));
    }
    errors.extend(dry_run(&options.dry_run));
    match options.field_validation.as_deref() {
        None | Some("Ignore" | "Warn" | "Strict") => {}
        Some(other) => errors.push(Error::not_supported(
            &Path::new("fieldValidation"),
            other,
            &["", "Ignore", "Strict", "Warn"],
        )),
    }
    options_status(kind, errors)
}

/// Errors of `dryRun`.
pub(crate) fn dry_run(values: &[String]) -> Vec<Error> {
    if values.iter().all(|v| v == "All") {
        return Vec::new();
    }
    vec![Error::not_supported(&Path::new("dryRun"), json!(values), &["All"])]
}

/// 422 for options of `meta.k8s.io`, if there are errors.
pub(crate) fn options_status(kind: &str, errors: Vec<Error>) -> Result<(), Status> {
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Status::invalid(&Gvk::new("meta.k8s.io", "v1", kind), "", errors))
    }
}
