//! Validation rules in the Common Expression Language (`x-kubernetes-validations`).
//!
//! The interpreter counts no costs, so bounds are set before it runs: on the length and depth of a rule, and on how often its
//! loops could turn over the object at hand.

pub(crate) mod compile;
mod types;
pub(crate) mod values;

use std::collections::BTreeMap;

use coracle_api::field::{Error, Path, root};
use coracle_api::schema::structural::{Additional, Rule, Structural, item_key};
use kube_cel::KubeCelExt;
use kube_cel::cel::objects::OptionalValue;
use kube_cel::cel::{Context, Value as Cel};
use serde_json::Value;
use std::sync::Arc;

use super::json_path::JsonPath;
use compile::{Expression, Place, compile, with_stack};
use values::{Extent, to_cel};

/// The most errors that are reported.
const MAX_ERRORS: usize = 100;
/// Rules nested deeper than this run on a thread that has a stack for it.
const SHALLOW: usize = 16;

const OVER_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// The rules of a schema, compiled.
#[derive(Default)]
pub(super) struct Rules {
    own: Vec<Compiled>,
    properties: BTreeMap<String, Rules>,
    additional: Option<Box<Rules>>,
    items: Option<Box<Rules>>,
}

struct Compiled {
    rule: Rule,
    program: Expression,
    message: Option<Expression>,
    /// Whether it speaks of the object as it was.
    transition: bool,
}

/// Everything wrong with the rules of a schema.
pub(super) fn check(schema: &Structural, path: &Path) -> Vec<Error> {
    let mut errors = Vec::new();
    if schema.has_rules() && with_stack(|| drop(Rules::build(schema, path, true, &mut errors))).is_none() {
        errors.push(Error::internal(path, "the rules of the schema could not be read"));
    }
    errors
}

impl Rules {
    /// The rules of a schema that was checked; `None` where there are none.
    pub fn of(schema: &Structural) -> Option<Self> {
        schema
            .has_rules()
            .then(|| with_stack(|| Self::build(schema, &root(), true, &mut Vec::new())).unwrap_or_default())
    }

    fn build(schema: &Structural, path: &Path, object: bool, errors: &mut Vec<Error>) -> Self {
        let mut own = Vec::new();
        for (i, rule) in schema.rules.iter().enumerate() {
            let path = path.child("x-kubernetes-validations").index(i);
            let place = Place { schema, object, optional_old: rule.optional_old_self };
            let mut read = |text: &str, name: &'static str, wanted: &str| match compile(text, &place, wanted)
            {
                Ok(program) => Some(program),
                Err(words) => {
                    errors.push(Error::invalid(
                        &path.child(name),
                        text,
                        format!("compilation failed: {words}"),
                    ));
                    None
                }
            };
            let program = read(&rule.rule, "rule", "bool");
            let message = match rule.message_expression.as_str() {
                "" => None,
                text => read(text, "messageExpression", "string"),
            };
            if let Some(program) = program {
                let transition = program.uses_old;
                own.push(Compiled { rule: rule.clone(), program, message, transition });
            }
        }
        let mut child = |schema: &Structural, path: &Path| {
            schema.has_rules().then(|| Self::build(schema, path, schema.embedded, errors))
        };
        let mut properties = BTreeMap::new();
        for (name, property) in &schema.properties {
            let at = path.child("properties").key(name.as_str());
            properties.extend(child(property, &at).map(|rules| (name.clone(), rules)));
        }
        let additional = match &schema.additional {
            Additional::Schema(inner) => child(inner, &path.child("additionalProperties")).map(Box::new),
            _ => None,
        };
        let items = schema.items.as_ref().and_then(|i| child(i, &path.child("items"))).map(Box::new);
        Self { own, properties, additional, items }
    }

    /// Everything that the rules say against an object; `old` is what it was before an update.
    pub fn validate(&self, schema: &Structural, object: &Value, old: Option<&Value>) -> Vec<Error> {
        let mut run = Run { context: Context::default().with_all(), errors: Vec::new(), stopped: false };
        run.node(self, schema, object, old, &root(), true);
        run.errors
    }
}

struct Run<'a> {
    context: Context<'a>,
    errors: Vec<Error>,
    stopped: bool,
}

impl Run<'_> {
    fn node(
        &mut self,
        rules: &Rules,
        schema: &Structural,
        value: &Value,
        old: Option<&Value>,
        path: &Path,
        object: bool,
    ) {
        if value.is_null() {
            return;
        }
        self.own(rules, schema, value, old, path, object);
        match value {
            Value::Object(map) => {
                for (key, member) in map {
                    if let (Some(inner), Some(rules)) =
                        (schema.member(key), rules.properties.get(key).or(rules.additional.as_deref()))
                    {
                        let was = old.and_then(|o| o.get(key));
                        self.node(rules, inner, member, was, &path.child(key.clone()), inner.embedded);
                    }
                }
            }
            Value::Array(list) => {
                let (Some(items), Some(rules)) = (&schema.items, rules.items.as_deref()) else { return };
                let before = old.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                // Items of other lists cannot be told apart, so they have no past.
                let known: BTreeMap<String, &Value> = match schema.list_map_keys.is_empty() {
                    true => BTreeMap::new(),
                    false => before.iter().map(|v| (item_key(schema, v).to_string(), v)).collect(),
                };
                for (i, item) in list.iter().enumerate() {
                    let was = known.get(&item_key(schema, item).to_string()).copied();
                    self.node(rules, items, item, was, &path.index(i), items.embedded);
                }
            }
            _ => {}
        }
    }

    fn own(
        &mut self,
        rules: &Rules,
        schema: &Structural,
        value: &Value,
        old: Option<&Value>,
        path: &Path,
        object: bool,
    ) {
        let due = |r: &&Compiled| match (r.transition, old) {
            (true, None) => r.rule.optional_old_self,
            (true, Some(_)) => true,
            // What did not change is not checked again.
            (false, old) => old != Some(value),
        };
        let mut due = rules.own.iter().filter(due).peekable();
        if due.peek().is_none() {
            return;
        }
        let extent = Extent::of(value, old);
        let this = to_cel(schema, value, object);
        let before = old.map(|o| to_cel(schema, o, object));
        for rule in due {
            if self.stopped || self.errors.len() >= MAX_ERRORS {
                return;
            }
            let afforded =
                [Some(&rule.program), rule.message.as_ref()].into_iter().flatten().all(|e| extent.affords(e));
            if !afforded {
                self.errors.push(Error::invalid(path, kind(schema), OVER_BUDGET));
                self.stopped = true;
                return;
            }
            let mut scope = self.context.new_inner_scope();
            scope.add_variable_from_value("self", this.clone());
            if rule.rule.optional_old_self {
                let optional = before.clone().map_or_else(OptionalValue::none, OptionalValue::of);
                scope.add_variable_from_value("oldSelf", Cel::Opaque(Arc::new(optional)));
            } else if let Some(before) = &before {
                scope.add_variable_from_value("oldSelf", before.clone());
            }
            let wrong = match execute(&rule.program, &scope) {
                Ok(Cel::Bool(true)) => continue,
                Ok(Cel::Bool(false)) => message(rule, &scope),
                Ok(_) => format!("rule does not evaluate to bool: {}", rule.rule.rule),
                Err(words) => {
                    let rule =
                        if rule.rule.message.is_empty() { &rule.rule.rule } else { &rule.rule.message };
                    format!("{words} evaluating rule: {rule}")
                }
            };
            drop(scope);
            self.errors.push(error(rule, schema, path, wrong));
        }
    }
}

fn execute(expression: &Expression, scope: &Context<'_>) -> Result<Cel, String> {
    if expression.depth <= SHALLOW {
        return expression.run(scope);
    }
    with_stack(|| expression.run(scope)).unwrap_or_else(|| Err("evaluation failed".to_owned()))
}

/// What a broken rule says.
fn message(rule: &Compiled, scope: &Context<'_>) -> String {
    if let Some(expression) = &rule.message
        && let Ok(Cel::String(text)) = execute(expression, scope)
    {
        let text = text.trim();
        if !text.is_empty() && !text.contains('\n') {
            return text.chars().take(5 * 1024).collect();
        }
    }
    match rule.rule.message.as_str() {
        "" => format!("failed rule: {}", rule.rule.rule),
        words => words.to_owned(),
    }
}

fn error(rule: &Compiled, schema: &Structural, path: &Path, words: String) -> Error {
    let inner = JsonPath::parse(&rule.rule.field_path).ok();
    let fields = inner.as_ref().and_then(JsonPath::fields).unwrap_or_default();
    let path = fields.into_iter().fold(path.clone(), |path, name| path.child(name.to_owned()));
    match rule.rule.reason.as_str() {
        "FieldValueForbidden" => Error::forbidden(&path, words),
        "FieldValueRequired" => Error::required(&path, words),
        "FieldValueDuplicate" => Error::duplicate(&path, kind(schema)),
        _ => Error::invalid(&path, kind(schema), words),
    }
}

fn kind(schema: &Structural) -> &'static str {
    schema.kind.map_or("", |k| k.as_str())
}

#[cfg(test)]
mod tests;
