//! Whether a rule fits the schema that it stands in: fields that there are, values that can be compared, an answer that is yes or no.
//!
//! What cannot be told without running a rule is let through: what functions return, and what macros make.

use coracle_api::schema::structural::{Additional, JsonType, Structural};
use kube_cel::cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr,
};

use super::values::escaped;

/// What is known of the value of an expression.
#[derive(Clone, Copy)]
enum Type<'a> {
    Unknown,
    Scalar(&'static str),
    /// A value of a schema; true for a whole object, with its type and name.
    Of(&'a Structural, bool),
    /// The names that an object shows of its metadata.
    Metadata,
}

/// Operators over two values of one type.
const ALIKE: [&str; 10] = ["_<_", "_<=_", "_>_", "_>=_", "_==_", "_!=_", "_+_", "_-_", "_*_", "_/_"];

/// What is wrong with an expression over a schema, in words. `wanted` is `bool` or `string`; `old` says whether `oldSelf` is the
/// value itself (and not an optional one).
pub(super) fn check(
    root: &IdedExpr,
    schema: &Structural,
    object: bool,
    old: bool,
    wanted: &str,
) -> Result<(), String> {
    let mut checker = Checker { schema, object, old, scope: Vec::new(), wrong: None };
    let found = checker.of(root);
    if let Some(wrong) = checker.wrong {
        return Err(wrong);
    }
    match name(found) {
        Some(is) if is != wanted => Err(format!("must evaluate to a {wanted}")),
        _ => Ok(()),
    }
}

struct Checker<'a> {
    schema: &'a Structural,
    object: bool,
    old: bool,
    scope: Vec<(String, Type<'a>)>,
    wrong: Option<String>,
}

impl<'a> Checker<'a> {
    fn fail(&mut self, words: String) -> Type<'a> {
        self.wrong.get_or_insert(words);
        Type::Unknown
    }

    fn of(&mut self, at: &IdedExpr) -> Type<'a> {
        match &at.expr {
            Expr::Unspecified => Type::Unknown,
            Expr::Literal(literal) => match literal {
                LiteralValue::Boolean(_) => Type::Scalar("bool"),
                LiteralValue::Bytes(_) => Type::Scalar("bytes"),
                LiteralValue::Double(_) => Type::Scalar("double"),
                LiteralValue::Int(_) => Type::Scalar("int"),
                LiteralValue::UInt(_) => Type::Scalar("uint"),
                LiteralValue::String(_) => Type::Scalar("string"),
                LiteralValue::Null => Type::Unknown,
            },
            Expr::Ident(name) => self.ident(name),
            Expr::Select(select) => self.select(select),
            Expr::Call(call) => self.call(call),
            Expr::Comprehension(c) => self.comprehension(c),
            Expr::List(list) => {
                for element in &list.elements {
                    self.of(element);
                }
                Type::Unknown
            }
            Expr::Map(map) => {
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        self.of(&entry.key);
                        self.of(&entry.value);
                    }
                }
                Type::Unknown
            }
            Expr::Struct(_) => Type::Unknown,
        }
    }

    fn ident(&mut self, name: &str) -> Type<'a> {
        if let Some((_, found)) = self.scope.iter().rev().find(|(known, _)| known == name) {
            return *found;
        }
        match name {
            "self" => Type::Of(self.schema, self.object),
            "oldSelf" if self.old => Type::Of(self.schema, self.object),
            _ => Type::Unknown,
        }
    }

    fn select(&mut self, select: &SelectExpr) -> Type<'a> {
        let field = select.field.as_str();
        let found = match self.of(&select.operand) {
            Type::Unknown => Type::Unknown,
            Type::Scalar(is) => self.fail(format!("type '{is}' does not support field selection")),
            Type::Metadata if matches!(field, "name" | "generateName") => Type::Scalar("string"),
            Type::Metadata => self.fail(format!("undefined field '{field}'")),
            Type::Of(schema, object) => self.field(schema, object, field),
        };
        if select.test { Type::Scalar("bool") } else { found }
    }

    fn field(&mut self, schema: &'a Structural, object: bool, field: &str) -> Type<'a> {
        match schema.kind {
            _ if schema.int_or_string => return Type::Unknown,
            Some(JsonType::Object) => {}
            None => return Type::Unknown,
            Some(_) => {
                let is = name(Type::Of(schema, object)).unwrap_or("list");
                return self.fail(format!("type '{is}' does not support field selection"));
            }
        }
        if object && matches!(field, "apiVersion" | "kind") {
            return Type::Scalar("string");
        }
        if object && field == "metadata" {
            return Type::Metadata;
        }
        if let Some((_, found)) = schema.properties.iter().find(|(key, _)| escaped(key) == field) {
            return Type::Of(found, found.embedded);
        }
        match &schema.additional {
            Additional::Schema(inner) => Type::Of(inner, inner.embedded),
            Additional::Any => Type::Unknown,
            Additional::None if schema.preserve_unknown => Type::Unknown,
            Additional::None => self.fail(format!("undefined field '{field}'")),
        }
    }

    fn call(&mut self, call: &CallExpr) -> Type<'a> {
        if let Some(target) = &call.target {
            self.of(target);
        }
        let found: Vec<Type<'a>> = call.args.iter().map(|arg| self.of(arg)).collect();
        match (call.func_name.as_str(), found.as_slice()) {
            ("_[_]", [of, _]) => inner(*of),
            ("_&&_" | "_||_", [a, b]) => {
                for side in [a, b] {
                    if let Some(is) = name(*side).filter(|is| *is != "bool") {
                        self.fail(format!("expected type 'bool' but found '{is}'"));
                    }
                }
                Type::Scalar("bool")
            }
            ("!_", [_]) | ("@in", [_, _]) => Type::Scalar("bool"),
            (operator, [a, b]) if ALIKE.contains(&operator) => self.alike(operator, *a, *b),
            _ => Type::Unknown,
        }
    }

    fn alike(&mut self, operator: &str, a: Type<'a>, b: Type<'a>) -> Type<'a> {
        let compares = !matches!(operator, "_+_" | "_-_" | "_*_" | "_/_");
        let (Some(left), Some(right)) = (name(a), name(b)) else {
            return if compares { Type::Scalar("bool") } else { Type::Unknown };
        };
        let number = |is: &str| matches!(is, "int" | "uint" | "double");
        // Numbers of different types can be compared.
        if left != right && !(compares && number(left) && number(right)) {
            return self
                .fail(format!("found no matching overload for '{operator}' applied to '({left}, {right})'"));
        }
        if compares { Type::Scalar("bool") } else { a }
    }

    fn comprehension(&mut self, c: &ComprehensionExpr) -> Type<'a> {
        let range = self.of(&c.iter_range);
        self.of(&c.accu_init);
        let known = self.scope.len();
        let is_map = matches!(range, Type::Of(s, _) if s.kind == Some(JsonType::Object));
        let key = if is_map { Type::Scalar("string") } else { inner(range) };
        match &c.iter_var2 {
            Some(second) => {
                let first = if is_map { Type::Scalar("string") } else { Type::Scalar("int") };
                let first = if matches!(range, Type::Unknown) { Type::Unknown } else { first };
                self.scope.push((c.iter_var.clone(), first));
                self.scope.push((second.clone(), inner(range)));
            }
            None => self.scope.push((c.iter_var.clone(), key)),
        }
        self.scope.push((c.accu_var.clone(), Type::Unknown));
        for part in [&c.loop_cond, &c.loop_step, &c.result] {
            self.of(part);
        }
        self.scope.truncate(known);
        Type::Unknown
    }
}

/// What a list or a map holds.
fn inner(of: Type<'_>) -> Type<'_> {
    let Type::Of(schema, _) = of else { return Type::Unknown };
    match (&schema.items, &schema.additional) {
        (Some(items), _) => Type::Of(items, items.embedded),
        (None, Additional::Schema(value)) if schema.properties.is_empty() => Type::Of(value, value.embedded),
        _ => Type::Unknown,
    }
}

/// The name of a type, where it is sure.
fn name(of: Type<'_>) -> Option<&'static str> {
    match of {
        Type::Unknown => None,
        Type::Scalar(is) => Some(is),
        Type::Metadata => Some("object"),
        Type::Of(schema, _) if schema.int_or_string || schema.nullable => None,
        Type::Of(schema, _) => match (schema.kind?, schema.format.as_str()) {
            (JsonType::String, "date-time" | "date" | "datetime") => Some("timestamp"),
            (JsonType::String, "duration") => Some("duration"),
            (JsonType::String, "byte") => Some("bytes"),
            (JsonType::String, _) => Some("string"),
            (JsonType::Integer, _) => Some("int"),
            (JsonType::Number, _) => Some("double"),
            (JsonType::Boolean, _) => Some("bool"),
            (JsonType::Array, _) => Some("list"),
            (JsonType::Object, _) => Some("object"),
        },
    }
}
