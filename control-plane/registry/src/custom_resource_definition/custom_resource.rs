//! The strategy of custom objects: everything that it does, their definition says.

use std::borrow::Cow;

use coracle_api::field::Error;
use coracle_api::meta::{self, Gvk};
use coracle_api::schema::structural::{self, Structural};
use coracle_api::status::Status;
use coracle_apiserver::strategy::{bump_generation, keep_status};
use coracle_apiserver::{Column, Strategy, StrategyContext};
use jiff::Timestamp;
use serde_json::Value;
use std::sync::Arc;

use super::conversion::Conversion;
use super::json_path::JsonPath;
use super::rules::Rules;
use crate::table;
use crate::value::{flag, items, number, present, text};

/// One served version of a custom kind.
pub(super) struct CustomResource {
    gvk: Gvk,
    /// `apiVersion` of stored objects.
    stored: String,
    /// How objects become those of other versions, where that is more than another name.
    conversion: Option<Conversion>,
    /// Whether stored objects may differ from what this version serves.
    converts: bool,
    schema: Arc<Structural>,
    rules: Option<Rules>,
    columns: Vec<Column>,
    cells: Vec<(String, JsonPath)>,
    has_status: bool,
    selectable: Vec<String>,
    fields: Vec<JsonPath>,
    terminating: bool,
    deprecation: Option<String>,
}

impl CustomResource {
    /// From a definition and one of its versions, which were validated.
    pub fn new(
        definition: &Value,
        version: &Value,
        schema: Arc<Structural>,
        conversion: Option<Conversion>,
    ) -> Self {
        let group = text(definition, "/spec/group");
        let gvk = Gvk::new(group, text(version, "/name"), text(definition, "/spec/names/kind"));
        let several = items(definition, "/spec/versions").len() > 1
            || items(definition, "/status/storedVersions").len() > 1;
        let storage = super::storage_version(definition).unwrap_or_default();
        let (columns, cells) = columns(version);
        let selectable: Vec<String> = items(version, "/selectableFields")
            .iter()
            .map(|f| text(f, "/jsonPath").trim_start_matches('.').to_owned())
            .collect();
        let fields = selectable.iter().filter_map(|f| JsonPath::parse(&format!(".{f}")).ok()).collect();
        let deprecation = flag(version, "/deprecated").then(|| match text(version, "/deprecationWarning") {
            "" => format!("{group}/{} {} is deprecated", gvk.version, gvk.kind),
            words => words.to_owned(),
        });
        Self {
            stored: format!("{group}/{storage}"),
            conversion,
            // An earlier schema may have left other fields or other defaults.
            converts: several || number(definition, "/metadata/generation") > 1,
            rules: Rules::of(&schema),
            schema,
            columns,
            cells,
            has_status: present(version, "/subresources/status"),
            selectable,
            fields,
            terminating: present(definition, "/metadata/deletionTimestamp"),
            deprecation,
            gvk,
        }
    }
}

impl CustomResource {
    /// What the rules say is added where the schema has nothing against an object: rules rely on its types.
    fn checked(&self, mut errors: Vec<Error>, obj: &Value, old: Option<&Value>) -> Vec<Error> {
        if let (Some(rules), true) = (&self.rules, errors.is_empty()) {
            errors.extend(rules.validate(&self.schema, obj, old));
        }
        errors
    }
}

fn columns(version: &Value) -> (Vec<Column>, Vec<(String, JsonPath)>) {
    let mut columns = vec![table::NAME];
    let mut cells = Vec::new();
    for column in items(version, "/additionalPrinterColumns") {
        let Ok(path) = JsonPath::parse(text(column, "/jsonPath")) else { continue };
        let own = |pointer: &str| Cow::Owned(text(column, pointer).to_owned());
        columns.push(Column {
            name: own("/name"),
            r#type: own("/type"),
            format: own("/format"),
            description: own("/description"),
            priority: i32::try_from(number(column, "/priority")).unwrap_or(0),
        });
        cells.push((text(column, "/type").to_owned(), path));
    }
    if cells.is_empty() {
        columns.push(Column { r#type: Cow::Borrowed("date"), ..table::AGE });
        cells.extend(JsonPath::parse(".metadata.creationTimestamp").map(|p| ("date".to_owned(), p)));
    }
    (columns, cells)
}

fn cell(kind: &str, found: Option<&Value>, now: Timestamp) -> Value {
    let Some(value) = found else { return Value::Null };
    match (kind, value) {
        ("date", Value::String(time)) => table::since(time, now).into(),
        ("string", Value::String(_))
        | ("boolean", Value::Bool(_))
        | ("number" | "integer", Value::Number(_)) => value.clone(),
        ("string", other) if !other.is_null() => other.to_string().into(),
        _ => Value::Null,
    }
}

#[async_trait::async_trait]
impl Strategy for CustomResource {
    async fn prepare_for_create(&self, _cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        if self.terminating {
            let words = "create not allowed while custom resource definition is terminating";
            return Err(Status::new(405, "MethodNotAllowed", words));
        }
        if self.has_status
            && let Some(map) = obj.as_object_mut()
        {
            map.remove("status");
        }
        Ok(())
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        if self.has_status {
            keep_status(new, old);
            bump_generation(new, old);
            return;
        }
        // Without a subresource of its own, the status is like any other field.
        bump_generation(new, old);
        if meta::generation(new) == meta::generation(old) && new.get("status") != old.get("status") {
            meta::set_generation(new, meta::generation(old) + 1);
        }
    }

    fn has_status(&self) -> bool {
        self.has_status
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        self.checked(structural::validate(&self.schema, obj), obj, None)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        self.checked(structural::validate_update(&self.schema, new, old), new, Some(old))
    }

    fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        self.validate_update(new, old)
    }

    fn deprecation(&self) -> Option<&str> {
        self.deprecation.as_deref()
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let cells = self.cells.iter().map(|(kind, path)| cell(kind, path.find(obj).first().copied(), now));
        std::iter::once(table::name(obj)).chain(cells).collect()
    }

    fn custom_selectable_fields(&self) -> &[String] {
        &self.selectable
    }

    fn field(&self, obj: &Value, path: &str) -> Option<String> {
        let at = self.selectable.iter().position(|f| f == path)?;
        let found = self.fields.get(at)?.find(obj).into_iter().next()?;
        Some(found.as_str().map_or_else(|| found.to_string(), str::to_owned))
    }

    fn converts(&self) -> bool {
        self.converts
    }

    fn read(&self, obj: &mut Value) -> Result<(), Status> {
        let own = self.gvk.api_version();
        if let Some(conversion) = self.conversion.as_ref().filter(|_| text(obj, "/apiVersion") != own) {
            conversion.one(obj, &own, true)?;
        }
        self.from_storage(obj);
        Ok(())
    }

    fn write(&self, obj: &mut Value) -> Result<(), Status> {
        if let Some(conversion) = self.conversion.as_ref().filter(|_| text(obj, "/apiVersion") != self.stored)
        {
            conversion.one(obj, &self.stored, false)?;
        }
        self.to_storage(obj);
        Ok(())
    }

    fn prepare_reads(&self, stored: &mut dyn Iterator<Item = Value>) -> Result<(), Status> {
        match &self.conversion {
            Some(conversion) => conversion.prepare(stored.collect(), &self.gvk.api_version()),
            None => Ok(()),
        }
    }

    fn from_storage(&self, obj: &mut Value) {
        meta::set_gvk(obj, &self.gvk);
        structural::prune(&self.schema, obj, true, &mut Vec::new());
        structural::apply_defaults(&self.schema, obj);
    }

    fn to_storage(&self, obj: &mut Value) {
        if let Some(map) = obj.as_object_mut() {
            map.insert("apiVersion".into(), self.stored.as_str().into());
        }
    }
}
