//! Who owns whom, by uid. Pure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::ObjectMeta;

use super::{FOREGROUND, ORPHAN};
use crate::discovery::Served;

/// An object as the collector sees it.
#[derive(Clone, Debug)]
pub struct Object {
    pub served: Arc<Served>,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    pub owners: Vec<OwnerReference>,
    pub finalizers: Vec<String>,
    pub deleting: bool,
}

impl Object {
    /// Reads an object's metadata.
    pub fn new(served: Arc<Served>, meta: ObjectMeta) -> Self {
        Self {
            served,
            namespace: meta.namespace.unwrap_or_default(),
            name: meta.name.unwrap_or_default(),
            uid: meta.uid.unwrap_or_default(),
            resource_version: meta.resource_version.unwrap_or_default(),
            owners: meta.owner_references.unwrap_or_default(),
            finalizers: meta.finalizers.unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
        }
    }

    /// Its path in the API.
    pub fn path(&self) -> String {
        self.served.path(&self.namespace, &self.name)
    }

    /// Whether it waits for its dependents to be deleted.
    pub fn waits_for_dependents(&self) -> bool {
        self.deleting && self.has_finalizer(FOREGROUND)
    }

    /// Whether it waits for its dependents to be let go.
    pub fn orphans_dependents(&self) -> bool {
        self.deleting && self.has_finalizer(ORPHAN)
    }

    /// Whether a finalizer holds it.
    pub fn has_finalizer(&self, finalizer: &str) -> bool {
        self.finalizers.iter().any(|f| f == finalizer)
    }
}

/// All objects, and the dependents of each uid.
#[derive(Default)]
pub struct Graph {
    objects: HashMap<String, Object>,
    dependents: HashMap<String, HashSet<String>>,
}

impl Graph {
    /// The object with a uid.
    pub fn get(&self, uid: &str) -> Option<&Object> {
        self.objects.get(uid)
    }

    /// The objects that name this uid as an owner.
    pub fn dependents(&self, uid: &str) -> impl Iterator<Item = &Object> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|d| self.objects.get(d))
    }

    /// An object is new or changed. Answers the uids that must be looked at.
    pub fn set(&mut self, object: Object) -> Vec<String> {
        let uid = object.uid.clone();
        let before = self.objects.get(&uid);
        let owners_changed = before.is_none_or(|b| b.owners != object.owners);
        let began_waiting = object.waits_for_dependents() && before.is_none_or(|b| !b.waits_for_dependents());
        let mut look = Vec::new();
        if owners_changed {
            self.unlink(&uid);
            for owner in &object.owners {
                self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
            }
        }
        let uncertain =
            |o: &OwnerReference| self.objects.get(&o.uid).is_none_or(Object::waits_for_dependents);
        if object.waits_for_dependents()
            || object.orphans_dependents()
            || (owners_changed && object.owners.iter().any(uncertain))
        {
            look.push(uid.clone());
        }
        if began_waiting {
            look.extend(self.dependents.get(&uid).into_iter().flatten().cloned());
        }
        // An owner that waits for this one may have waited for this very change.
        look.extend(
            object
                .owners
                .iter()
                .filter(|o| self.get(&o.uid).is_some_and(Object::waits_for_dependents))
                .map(|o| o.uid.clone()),
        );
        self.objects.insert(uid, object);
        look
    }

    /// An object is gone. Answers the uids that must be looked at.
    pub fn remove(&mut self, uid: &str) -> Vec<String> {
        self.unlink(uid);
        let Some(object) = self.objects.remove(uid) else { return Vec::new() };
        let mut look: Vec<String> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        let waiting =
            object.owners.iter().filter(|o| self.get(&o.uid).is_some_and(Object::waits_for_dependents));
        look.extend(waiting.map(|o| o.uid.clone()));
        look
    }

    /// The uids of all objects of a resource.
    pub fn of(&self, served: &Arc<Served>) -> Vec<String> {
        self.objects.values().filter(|o| Arc::ptr_eq(&o.served, served)).map(|o| o.uid.clone()).collect()
    }

    fn unlink(&mut self, uid: &str) {
        let Some(object) = self.objects.get(uid) else { return };
        for owner in &object.owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
    }
}
