//! OpenAPI v2 as the protobuf messages of gnostic's `openapi.v2`: the subset that our documents use. Field numbers are the
//! contract.

use prost::Message;
use serde_json::Value;

/// Encodes a v2 document.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    document_of(document).encode_to_vec()
}

#[derive(Clone, PartialEq, Message)]
struct Document {
    #[prost(string, tag = "1")]
    swagger: String,
    #[prost(message, optional, tag = "2")]
    info: Option<Info>,
    #[prost(message, optional, tag = "8")]
    paths: Option<Paths>,
    #[prost(message, optional, tag = "9")]
    definitions: Option<Schemas>,
}

#[derive(Clone, PartialEq, Message)]
struct Info {
    #[prost(string, tag = "1")]
    title: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct Paths {
    #[prost(message, repeated, tag = "2")]
    path: Vec<NamedPathItem>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedPathItem {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<PathItem>,
}

#[derive(Clone, PartialEq, Message)]
struct PathItem {
    #[prost(message, optional, tag = "2")]
    get: Option<Operation>,
    #[prost(message, optional, tag = "3")]
    put: Option<Operation>,
    #[prost(message, optional, tag = "4")]
    post: Option<Operation>,
    #[prost(message, optional, tag = "5")]
    delete: Option<Operation>,
    #[prost(message, optional, tag = "8")]
    patch: Option<Operation>,
    #[prost(message, repeated, tag = "9")]
    parameters: Vec<ParametersItem>,
}

#[derive(Clone, PartialEq, Message)]
struct Operation {
    #[prost(string, tag = "5")]
    operation_id: String,
    #[prost(string, repeated, tag = "6")]
    produces: Vec<String>,
    #[prost(string, repeated, tag = "7")]
    consumes: Vec<String>,
    #[prost(message, repeated, tag = "8")]
    parameters: Vec<ParametersItem>,
    #[prost(message, optional, tag = "9")]
    responses: Option<Responses>,
    #[prost(string, repeated, tag = "10")]
    schemes: Vec<String>,
    #[prost(message, repeated, tag = "13")]
    vendor_extension: Vec<NamedAny>,
}

// A oneof with one case in use is a message with one optional field.
#[derive(Clone, PartialEq, Message)]
struct ParametersItem {
    #[prost(message, optional, tag = "1")]
    parameter: Option<Parameter>,
}

#[derive(Clone, PartialEq, Message)]
struct Parameter {
    #[prost(message, optional, tag = "1")]
    body: Option<BodyParameter>,
    #[prost(message, optional, tag = "2")]
    other: Option<NonBodyParameter>,
}

#[derive(Clone, PartialEq, Message)]
struct BodyParameter {
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    place: String,
    #[prost(bool, tag = "4")]
    required: bool,
    #[prost(message, optional, tag = "5")]
    schema: Option<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct NonBodyParameter {
    #[prost(message, optional, tag = "3")]
    query: Option<QueryParameter>,
    #[prost(message, optional, tag = "4")]
    path: Option<PathParameter>,
}

#[derive(Clone, PartialEq, Message)]
struct QueryParameter {
    #[prost(string, tag = "2")]
    place: String,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(string, tag = "6")]
    kind: String,
    #[prost(bool, tag = "20")]
    unique_items: bool,
}

#[derive(Clone, PartialEq, Message)]
struct PathParameter {
    #[prost(bool, tag = "1")]
    required: bool,
    #[prost(string, tag = "2")]
    place: String,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(string, tag = "5")]
    kind: String,
}

#[derive(Clone, PartialEq, Message)]
struct Responses {
    #[prost(message, repeated, tag = "1")]
    response_code: Vec<NamedResponseValue>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedResponseValue {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<ResponseValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ResponseValue {
    #[prost(message, optional, tag = "1")]
    response: Option<Response>,
}

#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(string, tag = "1")]
    description: String,
    #[prost(message, optional, tag = "2")]
    schema: Option<SchemaItem>,
}

#[derive(Clone, PartialEq, Message)]
struct SchemaItem {
    #[prost(message, optional, tag = "1")]
    schema: Option<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct Schemas {
    #[prost(message, repeated, tag = "1")]
    named: Vec<NamedSchema>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedSchema {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct Schema {
    #[prost(string, tag = "1")]
    reference: String,
    #[prost(string, tag = "2")]
    format: String,
    #[prost(string, tag = "4")]
    description: String,
    #[prost(message, optional, tag = "5")]
    default: Option<Any>,
    #[prost(string, repeated, tag = "19")]
    required: Vec<String>,
    #[prost(message, repeated, tag = "20")]
    enumeration: Vec<Any>,
    #[prost(message, optional, boxed, tag = "21")]
    additional_properties: Option<Box<AdditionalProperties>>,
    #[prost(message, optional, tag = "22")]
    kind: Option<TypeItem>,
    #[prost(message, optional, tag = "23")]
    items: Option<Items>,
    #[prost(message, optional, tag = "25")]
    properties: Option<Schemas>,
    #[prost(message, repeated, tag = "31")]
    vendor_extension: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
struct AdditionalProperties {
    #[prost(message, optional, boxed, tag = "1")]
    schema: Option<Box<Schema>>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeItem {
    #[prost(string, repeated, tag = "1")]
    value: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Items {
    #[prost(message, repeated, tag = "1")]
    schema: Vec<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedAny {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "2")]
    yaml: String,
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
