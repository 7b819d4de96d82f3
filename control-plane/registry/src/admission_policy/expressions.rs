//! The expressions of a policy: read once, evaluated for each call that the policy covers.

use coracle_api::field::{Error, Path};
use coracle_api::schema::structural::Structural;
use kube_cel::KubeCelExt;
use kube_cel::cel::objects::{Key, Map};
use kube_cel::cel::{Context, Value as Cel};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;

use crate::custom_resource_definition::rules::compile::{Expression, compile_for, with_stack};
use crate::custom_resource_definition::rules::values::{Extent, to_cel};
use crate::value::{items, text};

/// What expressions may speak of.
const VARIABLES: [&str; 5] = ["object", "oldObject", "request", "namespaceObject", "variables"];
/// Most expressions of one policy.
const EXPRESSIONS_MAX: usize = 256;
const TOO_COSTLY: &str = "the expression would cost too much on this object";

/// A policy that was read.
pub struct Compiled {
    conditions: Vec<(String, Expression)>,
    variables: Vec<(String, Expression)>,
    validations: Vec<Validation>,
}

struct Validation {
    source: String,
    rule: Expression,
    message: String,
    words: Option<Expression>,
    reason: String,
}

/// A rule that is broken, or could not be evaluated.
pub struct Broken {
    /// What the client is told.
    pub message: String,
    /// `Invalid`, `Forbidden`, `Unauthorized` or `RequestEntityTooLarge`.
    pub reason: String,
    /// Whether evaluation itself failed, so that `failurePolicy` decides.
    pub failed: bool,
}

/// Everything wrong with the expressions of a policy.
pub fn check(spec: &Value, path: &Path) -> Vec<Error> {
    let mut errors = Vec::new();
    let read = with_stack(|| drop(Compiled::read(spec, path, &mut errors)));
    if read.is_none() {
        return vec![Error::internal(path, "the expressions could not be read")];
    }
    errors
}

impl Compiled {
    /// The expressions of a policy that was checked.
    pub fn of(spec: &Value) -> Option<Self> {
        with_stack(|| Self::read(spec, &Path::new("spec"), &mut Vec::new()))
    }

    fn read(spec: &Value, path: &Path, errors: &mut Vec<Error>) -> Self {
        let mut count = 0;
        let mut read = |value: &Value, field: &'static str, path: &Path| {
            let source = text(value, &format!("/{field}"));
            let path = path.child(field);
            count += 1;
            if source.trim().is_empty() {
                errors.push(Error::required(&path, format!("{field} is not specified")));
                return None;
            }
            if count > EXPRESSIONS_MAX {
                errors.push(Error::too_many(&path, count, EXPRESSIONS_MAX));
                return None;
            }
            match compile_for(source, &VARIABLES) {
                Ok(expression) => Some(expression),
                Err(why) => {
                    errors.push(Error::invalid(&path, source, format!("compilation failed: {why}")));
                    None
                }
            }
        };
        let mut named = |field: &'static str| -> Vec<(String, Expression)> {
            let list = items(spec, &format!("/{field}")).iter().enumerate();
            list.filter_map(|(i, v)| {
                let expression = read(v, "expression", &path.child(field).index(i))?;
                Some((text(v, "/name").to_owned(), expression))
            })
            .collect()
        };
        let (conditions, variables) = (named("matchConditions"), named("variables"));
        let mut validations = Vec::new();
        for (i, v) in items(spec, "/validations").iter().enumerate() {
            let path = path.child("validations").index(i);
            let rule = read(v, "expression", &path);
            let words = match text(v, "/messageExpression") {
                "" => None,
                _ => read(v, "messageExpression", &path),
            };
            let Some(rule) = rule else { continue };
            let part = |field: &str| text(v, &format!("/{field}")).to_owned();
            validations.push(Validation {
                source: part("expression").trim().to_owned(),
                rule,
                message: part("message").trim().to_owned(),
                words,
                reason: match part("reason").as_str() {
                    "" => "Invalid".to_owned(),
                    reason => reason.to_owned(),
                },
            });
        }
        Self { conditions, variables, validations }
    }

    /// What of the policy a call breaks. `known` holds the values of its variables by name, but for `variables`.
    pub fn broken(&self, known: &[(&str, &Value)]) -> Vec<Broken> {
        with_stack(|| self.run(known))
            .unwrap_or_else(|| vec![failed("the expressions could not be evaluated".into())])
    }

    fn run(&self, known: &[(&str, &Value)]) -> Vec<Broken> {
        let everything: Value = known.iter().map(|(name, v)| ((*name).to_owned(), (*v).clone())).collect();
        let extent = Extent::of(&everything, None);
        let any = Structural::default();
        let mut context = Context::default().with_all();
        for (name, value) in known {
            context.add_variable_from_value(*name, to_cel(&any, value, false));
        }
        let evaluate = |context: &Context<'_>, expression: &Expression| {
            if !extent.affords(expression) {
                return Err(TOO_COSTLY.to_owned());
            }
            expression.run(context)
        };
        let mut variables: HashMap<Key, Cel> = HashMap::new();
        context.add_variable_from_value("variables", Cel::Map(Map { map: Arc::new(variables.clone()) }));
        for (name, expression) in &self.variables {
            // One that cannot be evaluated is missing; who needs it fails.
            if let Ok(value) = evaluate(&context, expression) {
                variables.insert(Key::String(Arc::new(name.clone())), value);
                let all = Cel::Map(Map { map: Arc::new(variables.clone()) });
                context.add_variable_from_value("variables", all);
            }
        }
        for (name, condition) in &self.conditions {
            match evaluate(&context, condition) {
                Ok(Cel::Bool(true)) => {}
                Ok(_) => return Vec::new(),
                Err(why) => return vec![failed(format!("match condition {name:?}: {why}"))],
            }
        }
        let mut broken = Vec::new();
        for validation in &self.validations {
            let message = match evaluate(&context, &validation.rule) {
                Ok(Cel::Bool(true)) => continue,
                Ok(Cel::Bool(false)) => validation.said(|e| evaluate(&context, e)),
                Ok(_) => {
                    broken.push(failed(format!("expression '{}' is no yes or no", validation.source)));
                    continue;
                }
                Err(why) => {
                    broken
                        .push(failed(format!("expression '{}' resulted in error: {why}", validation.source)));
                    continue;
                }
            };
            broken.push(Broken { message, reason: validation.reason.clone(), failed: false });
        }
        broken
    }
}

impl Validation {
    fn said(&self, evaluate: impl Fn(&Expression) -> Result<Cel, String>) -> String {
        if let Some(Ok(Cel::String(words))) = self.words.as_ref().map(evaluate)
            && !words.trim().is_empty()
            && !words.contains('\n')
        {
            return words.trim().chars().take(5 * 1024).collect();
        }
        match self.message.as_str() {
            "" => format!("failed expression: {}", self.source),
            message => message.to_owned(),
        }
    }
}

fn failed(message: String) -> Broken {
    Broken { message, reason: "Invalid".into(), failed: true }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said(spec: &Value, object: &Value) -> Vec<String> {
        let compiled = Compiled::of(spec).unwrap();
        let null = Value::Null;
        let known =
            [("object", object), ("oldObject", &null), ("request", &null), ("namespaceObject", &null)];
        compiled.broken(&known).into_iter().map(|b| b.message).collect()
    }

    #[test]
    fn rules() {
        let spec = json!({
        "variables": [{"name": "wanted", "expression": "object.spec.replicas"}],
        "matchConditions": [{"name": "named", "expression": "object.metadata.name != 'free'"}],
        "validations": [
            {"expression": "variables.wanted <= 5", "messageExpression": "'too many: ' + string(variables.wanted)"},
            {"expression": "has(object.metadata.labels)"},
        ]});
        assert!(check(&spec, &Path::new("spec")).is_empty());
        let object = json!({"metadata": {"name": "x", "labels": {}}, "spec": {"replicas": 9}});
        assert_eq!(said(&spec, &object), ["too many: 9"]);
        let object = json!({"metadata": {"name": "x"}, "spec": {"replicas": 1}});
        assert_eq!(said(&spec, &object), ["failed expression: has(object.metadata.labels)"]);
        let object = json!({"metadata": {"name": "free"}, "spec": {"replicas": 9}});
        assert_eq!(said(&spec, &object), Vec::<String>::new());
        let bad = json!({"validations": [{"expression": "object.spec +"}, {"expression": "params.x"}]});
        assert_eq!(check(&bad, &Path::new("spec")).len(), 2);
    }
}
