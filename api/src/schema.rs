//! The table of types of Kubernetes 1.36: what fields a type has, of which kind, how lists merge, and which fields are
//! written when empty. Strict decoding, strategic merge, defaults and OpenAPI all read it.
//!
//! `table.json` is generated (`cargo run -p coracle-api --example generate_schema`); it is loaded on first use.

mod decode;
mod defaults;
pub mod structural;
mod table;
mod words;

use serde_json::Value;

use crate::meta::Gvk;

pub(crate) use decode::decode_any;
pub(crate) use words::json_type;

pub use decode::{Decoded, Input, Validation, decode, decode_patched, decode_value};
pub use defaults::apply_defaults;
pub use words::json_syntax_error;

/// A named type.
#[derive(Debug)]
pub struct Type {
    /// The name of the definition: `io.k8s.api.core.v1.Pod`.
    pub name: String,
    /// The group-version-kinds that have this type; empty for a part of an object.
    pub gvks: Vec<Gvk>,
    /// What it is when it is not an object with fields (`Quantity`, `Time`).
    pub leaf: Option<Kind>,
    /// Sorted by name.
    pub fields: Vec<Field>,
    /// Apply: owned as a whole, wherever it is a field.
    pub atomic: bool,
}

/// A field of a [`Type`].
#[derive(Debug)]
pub struct Field {
    pub name: String,
    pub schema: Schema,
    /// OpenAPI calls it required.
    pub required: bool,
    /// Written even when nobody set it.
    pub always: bool,
    /// An explicit zero (`false`, `0`, `""`) is kept.
    pub pointer: bool,
}

/// What a field, a list item or a map value may be.
#[derive(Debug)]
pub struct Schema {
    pub kind: Kind,
    /// Apply: `atomic`, `set` or `map`.
    pub list_type: Option<ListType>,
    /// Apply: the keys of a list of type `map`.
    pub list_map_keys: Vec<String>,
    /// Apply: a map or struct is owned as a whole.
    pub map_atomic: bool,
    /// Apply: a struct that is otherwise owned as a whole is owned by its fields here.
    pub map_granular: bool,
    /// Strategic merge: lists merge instead of being replaced.
    pub patch_merge: bool,
    /// Strategic merge: keys that the patch does not name are dropped on `$retainKeys`.
    pub patch_retain_keys: bool,
    /// Strategic merge: the one key of a merging list of objects.
    pub patch_merge_key: Option<String>,
    pub default: Option<Value>,
    /// Sorted; empty where any string will do.
    pub enum_values: Vec<String>,
}

/// How apply treats a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType {
    Atomic,
    Set,
    Map,
}

/// The kind of a value.
#[derive(Debug)]
pub enum Kind {
    String,
    /// Base64.
    Bytes,
    Boolean,
    Int32,
    Int64,
    Number,
    Quantity,
    IntOrString,
    /// RFC 3339 with seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    List(Box<Schema>),
    Map(Box<Schema>),
    Object(TypeRef),
    /// Any JSON.
    Any,
}

/// A reference to a type of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeRef(usize);

impl TypeRef {
    /// The type.
    pub fn get(self) -> &'static Type {
        table::at(self.0)
    }
}

impl Type {
    /// The field of this name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        let at = self.fields.binary_search_by(|f| f.name.as_str().cmp(name)).ok()?;
        self.fields.get(at)
    }

    /// The last part of the name: `Pod`.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }

    /// The group-version-kind, for a type that has exactly one.
    pub fn gvk(&self) -> Option<&Gvk> {
        match self.gvks.as_slice() {
            [gvk] => Some(gvk),
            _ => None,
        }
    }
}

/// The type of a kind. `DeleteOptions` and `WatchEvent` are registered in every group.
pub fn for_gvk(gvk: &Gvk) -> Option<&'static Type> {
    table::for_gvk(gvk)
}

/// The type of a definition: `io.k8s.api.core.v1.Pod`.
pub fn by_name(name: &str) -> Option<&'static Type> {
    table::by_name(name)
}

/// Every type, sorted by name.
pub fn types() -> &'static [Type] {
    table::all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_loads() {
        assert!(types().len() > 500);
        let pod = for_gvk(&Gvk::new("", "v1", "Pod")).unwrap();
        assert_eq!(pod.name, "io.k8s.api.core.v1.Pod");
        let Kind::Object(spec) = &pod.field("spec").unwrap().schema.kind else { panic!("spec is an object") };
        let containers = &spec.get().field("containers").unwrap().schema;
        assert_eq!(containers.patch_merge_key.as_deref(), Some("name"));
        assert_eq!(containers.list_type, Some(ListType::Map));
        assert!(for_gvk(&Gvk::new("apps", "v1", "DeleteOptions")).is_some());
        assert!(for_gvk(&Gvk::new("", "v1", "Nothing")).is_none());
    }
}
