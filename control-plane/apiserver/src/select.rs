//! Which objects of a collection a caller wants: label and field selectors over stored bytes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use bytes::Bytes;
use coracle_api::{Status, field, fields, labels};
use coracle_store::KeyValue;
use parking_lot::Mutex;
use serde::Deserialize;

use crate::codec;
use crate::query::Query;
use crate::state::Served;

const NAME: &str = "metadata.name";
const NAMESPACE: &str = "metadata.namespace";
/// Objects whose fields are remembered, for each resource that has selectable fields.
const FIELD_SLOTS: usize = 1024;

/// Conditions on labels and fields.
pub(crate) struct Selection {
    labels: labels::Selector,
    fields: fields::Selector,
    /// The one name that can match, where a field selector or the path says so.
    pub name: Option<String>,
    /// Whether a field beyond name and namespace is asked for, so that objects must be decoded.
    decodes: bool,
}

impl Selection {
    /// Reads `labelSelector` and `fieldSelector`. `name` is the name in the path of a watch of one object.
    pub fn of(served: &Served, query: &Query, name: Option<&str>) -> Result<Self, Status> {
        let labels = match query.text("labelSelector") {
            Some(text) => labels::Selector::parse(text)?,
            None => labels::Selector::everything(),
        };
        let fields = fields::Selector::parse(query.get("fieldSelector").unwrap_or(""))?;
        let selectable: Vec<&str> = served.def.strategy.all_selectable_fields().collect();
        let mut decodes = false;
        for requirement in fields.requirements() {
            let field = requirement.field.as_str();
            if field == NAME || field == NAMESPACE {
                continue;
            }
            if !selectable.contains(&field) {
                return Err(unknown_field(field, &selectable));
            }
            decodes = true;
        }
        let name = name.or_else(|| fields.exact(NAME)).map(str::to_owned);
        Ok(Self { labels, fields, name, decodes })
    }

    /// Whether every object matches.
    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything() && self.name.is_none()
    }

    /// Whether a stored object matches.
    pub fn matches(&self, served: &Served, kv: &KeyValue) -> Result<bool, Status> {
        if self.is_everything() {
            return Ok(true);
        }
        let (namespace, name) = codec::key_parts(&served.def, served.prefix.len(), &kv.key);
        if self.name.as_deref().is_some_and(|wanted| wanted != name) {
            return Ok(false);
        }
        if !self.labels.is_everything() && !self.labels_match(kv)? {
            return Ok(false);
        }
        if self.fields.is_everything() {
            return Ok(true);
        }
        let values = if self.decodes { Some(served.fields.values(served, kv)?) } else { None };
        Ok(self.fields.matches(|field| match field {
            NAME => Some(name.to_owned()),
            NAMESPACE => Some(namespace.unwrap_or("").to_owned()),
            other => {
                let at = served.def.strategy.all_selectable_fields().position(|f| f == other)?;
                values.as_ref()?.get(at).cloned()
            }
        }))
    }

    /// Whether an object that is not stored matches: by its labels, name and namespace.
    pub fn matches_value(&self, object: &serde_json::Value) -> bool {
        let text = |at: &str| object.pointer(at).and_then(|v| v.as_str()).map(str::to_owned);
        self.labels.matches_object(object)
            && self.fields.matches(|field| match field {
                NAME => text("/metadata/name"),
                NAMESPACE => text("/metadata/namespace"),
                _ => None,
            })
    }

    fn labels_match(&self, kv: &KeyValue) -> Result<bool, Status> {
        let found = labels_of(kv).map_err(crate::errors::corrupt)?;
        Ok(self.labels.matches(|key| found.get(key).map(|v| v.0.as_ref())))
    }
}

/// The selectable fields of objects that were looked at lately, so that many watchers of one event decode it once.
pub(crate) struct FieldCache {
    slots: Vec<Mutex<Option<Slot>>>,
    hasher: RandomState,
}

struct Slot {
    revision: u64,
    key: Bytes,
    values: Arc<[String]>,
}

impl FieldCache {
    /// A cache for a resource with so many selectable fields; none, no cache.
    pub fn new(fields: usize) -> Self {
        let slots = if fields == 0 { 0 } else { FIELD_SLOTS };
        Self { slots: (0..slots).map(|_| Mutex::new(None)).collect(), hasher: RandomState::new() }
    }

    /// The values of all selectable fields, in their order.
    fn values(&self, served: &Served, kv: &KeyValue) -> Result<Arc<[String]>, Status> {
        let hash = self.hasher.hash_one((kv.mod_revision, &kv.key)) as usize;
        let slot = hash.checked_rem(self.slots.len()).and_then(|at| self.slots.get(at));
        if let Some(found) = slot.and_then(|s| {
            let slot = s.lock();
            let hit = slot.as_ref().filter(|s| s.revision == kv.mod_revision && s.key == kv.key);
            hit.map(|s| s.values.clone())
        }) {
            return Ok(found);
        }
        let object = codec::decode(&served.def, kv).map_err(crate::errors::corrupt)?;
        let strategy = &served.def.strategy;
        let values: Arc<[String]> = strategy
            .all_selectable_fields()
            .map(|f| strategy.field(&object, f).unwrap_or_default())
            .collect();
        if let Some(slot) = slot {
            *slot.lock() =
                Some(Slot { revision: kv.mod_revision, key: kv.key.clone(), values: values.clone() });
        }
        Ok(values)
    }
}

fn unknown_field(field: &str, selectable: &[&str]) -> Status {
    if selectable.is_empty() {
        let field = field::go_quote(field);
        return Status::bad_request(format!(
            "{field} is not a known field selector: only \"{NAME}\", \"{NAMESPACE}\""
        ));
    }
    Status::bad_request(format!("field label not supported: {field}"))
}

/// A string of JSON, borrowed where it has no escapes.
#[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl std::borrow::Borrow<str> for Text<'_> {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[derive(Deserialize)]
struct Metadata<'a> {
    #[serde(borrow, default)]
    labels: Option<BTreeMap<Text<'a>, Text<'a>>>,
}

/// The labels of a stored object; only its metadata is read.
fn labels_of(kv: &KeyValue) -> Result<BTreeMap<Text<'_>, Text<'_>>, serde_json::Error> {
    let Some(metadata) = (kv.value.splice as usize).checked_sub(1).and_then(|at| kv.value.json.get(at..))
    else {
        return Ok(BTreeMap::new());
    };
    // The rest of the object follows; a deserializer stops after one value.
    let mut deserializer = serde_json::Deserializer::from_slice(metadata);
    Ok(Metadata::deserialize(&mut deserializer)?.labels.unwrap_or_default())
}
