//! OpenAPI v2 as the protobuf messages of gnostic's `openapi.v2`: the subset that our documents use. Field numbers are the
//! contract.

mod messages;

use prost::Message;
use serde_json::Value;

use messages::*;

/// Encodes a v2 document.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    document_of(document).encode_to_vec()
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_string()
}

fn texts(value: &Value, key: &str) -> Vec<String> {
    list(value, key).iter().filter_map(Value::as_str).map(String::from).collect()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn entries<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
    value.get(key).and_then(Value::as_object).into_iter().flatten()
}

fn flag(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or_default()
}

fn document_of(v: &Value) -> Document {
    let path =
        |(name, item): (&String, &Value)| NamedPathItem { name: name.clone(), value: Some(path_item(item)) };
    let info = v.get("info").map(|i| Info { title: text(i, "title"), version: text(i, "version") });
    Document {
        swagger: text(v, "swagger"),
        info,
        paths: Some(Paths { path: entries(v, "paths").map(path).collect() }),
        definitions: Some(named_schemas(v, "definitions")),
    }
}

fn path_item(v: &Value) -> PathItem {
    let operation = |method: &str| v.get(method).map(operation_of);
    PathItem {
        get: operation("get"),
        put: operation("put"),
        post: operation("post"),
        delete: operation("delete"),
        patch: operation("patch"),
        parameters: list(v, "parameters").iter().map(parameter).collect(),
    }
}

fn operation_of(v: &Value) -> Operation {
    let response = |(code, r): (&String, &Value)| NamedResponseValue {
        name: code.clone(),
        value: Some(ResponseValue {
            response: Some(Response {
                description: text(r, "description"),
                schema: r.get("schema").map(|s| SchemaItem { schema: Some(schema(s)) }),
            }),
        }),
    };
    Operation {
        operation_id: text(v, "operationId"),
        produces: texts(v, "produces"),
        consumes: texts(v, "consumes"),
        parameters: list(v, "parameters").iter().map(parameter).collect(),
        responses: Some(Responses { response_code: entries(v, "responses").map(response).collect() }),
        schemes: texts(v, "schemes"),
        vendor_extension: extensions(v),
    }
}

fn parameter(v: &Value) -> ParametersItem {
    let (name, place, kind) = (text(v, "name"), text(v, "in"), text(v, "type"));
    let required = flag(v, "required");
    let mut out = Parameter { body: None, other: None };
    match place.as_str() {
        "body" => {
            out.body = Some(BodyParameter { name, place, required, schema: v.get("schema").map(schema) })
        }
        "path" => {
            let path = Some(PathParameter { required, place, name, kind });
            out.other = Some(NonBodyParameter { query: None, path });
        }
        _ => {
            let query = Some(QueryParameter { place, name, kind, unique_items: flag(v, "uniqueItems") });
            out.other = Some(NonBodyParameter { query, path: None });
        }
    }
    ParametersItem { parameter: Some(out) }
}

fn named_schemas(v: &Value, key: &str) -> Schemas {
    let named = |(name, s): (&String, &Value)| NamedSchema { name: name.clone(), value: Some(schema(s)) };
    Schemas { named: entries(v, key).map(named).collect() }
}

fn schema(v: &Value) -> Schema {
    let inner = |s: &Value| Box::new(AdditionalProperties { schema: Some(Box::new(schema(s))) });
    let kind = text(v, "type");
    Schema {
        reference: text(v, "$ref"),
        format: text(v, "format"),
        description: text(v, "description"),
        default: v.get("default").map(any),
        required: texts(v, "required"),
        enumeration: list(v, "enum").iter().map(any).collect(),
        additional_properties: v.get("additionalProperties").map(inner),
        kind: (!kind.is_empty()).then(|| TypeItem { value: vec![kind] }),
        items: v.get("items").map(|i| Items { schema: vec![schema(i)] }),
        properties: v.get("properties").map(|_| named_schemas(v, "properties")),
        vendor_extension: extensions(v),
    }
}

fn extensions(v: &Value) -> Vec<NamedAny> {
    let object = v.as_object().into_iter().flatten().filter(|(k, _)| k.starts_with("x-"));
    object.map(|(k, v)| NamedAny { name: k.clone(), value: Some(any(v)) }).collect()
}

// JSON is YAML.
fn any(v: &Value) -> Any {
    Any { yaml: format!("{v}\n") }
}
