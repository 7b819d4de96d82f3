//! The expressions of a policy: read once, evaluated for each call that the policy covers.

use kube_cel::cel::Value as Cel;
use serde_json::Value;

use crate::admission_cel::{Conditions, Expression, Inputs, Scope, Speaks, read};
use crate::value::{at, items, present, text};

/// Longest message and longest audit annotation.
const MESSAGE_MAX: usize = 5 * 1024;
const ANNOTATION_MAX: usize = 10 * 1024;

/// A policy that was read.
pub struct Compiled {
    conditions: Conditions,
    variables: Vec<(String, Expression)>,
    validations: Vec<Validation>,
    annotations: Vec<(String, String, Expression)>,
    /// What it changes.
    pub mutations: Vec<Mutation>,
    /// Whether the call goes on where an expression fails.
    pub ignores: bool,
}

/// One change.
pub struct Mutation {
    /// The expression's value is a list of operations, not a configuration.
    pub is_patch: bool,
    /// The expression.
    pub expression: Expression,
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
    /// Which rule of the policy it is.
    pub index: usize,
}

impl Compiled {
    /// The expressions of a policy that was checked.
    pub fn of(spec: &Value) -> Self {
        let speaks = if present(spec, "/paramKind") { Speaks::PARAMS } else { Speaks::POLICY };
        let expression = |v: &Value, field: &str| read(text(v, field), speaks).ok();
        let validation = |v: &Value| {
            let part = |field: &str| text(v, field).trim().to_owned();
            Some(Validation {
                source: part("/expression"),
                rule: expression(v, "/expression")?,
                message: part("/message"),
                words: read(text(v, "/messageExpression"), Speaks::MESSAGE).ok(),
                reason: match part("/reason").as_str() {
                    "" => "Invalid".to_owned(),
                    reason => reason.to_owned(),
                },
            })
        };
        let variable = |v: &Value| Some((text(v, "/name").to_owned(), expression(v, "/expression")?));
        let note = |v: &Value| {
            let source = text(v, "/valueExpression").trim().to_owned();
            Some((text(v, "/key").to_owned(), source, expression(v, "/valueExpression")?))
        };
        let mutation = |v: &Value| {
            let is_patch = text(v, "/patchType") == "JSONPatch";
            let holder = at(v, if is_patch { "/jsonPatch" } else { "/applyConfiguration" });
            Some(Mutation { is_patch, expression: expression(holder, "/expression")? })
        };
        Self {
            conditions: Conditions::of(items(spec, "/matchConditions"), speaks),
            variables: items(spec, "/variables").iter().filter_map(variable).collect(),
            validations: items(spec, "/validations").iter().filter_map(validation).collect(),
            annotations: items(spec, "/auditAnnotations").iter().filter_map(note).collect(),
            mutations: items(spec, "/mutations").iter().filter_map(mutation).collect(),
            ignores: text(spec, "/failurePolicy") == "Ignore",
        }
    }

    /// The values of a call with the policy's variables, unless its conditions leave the call out.
    ///
    /// # Errors
    /// A condition that failed, in words.
    pub fn scope(&self, inputs: &Inputs<'_>) -> Result<Option<Scope>, String> {
        let mut scope = Scope::new(inputs);
        for (name, expression) in &self.variables {
            scope.define(name, expression);
        }
        Ok(self.conditions.hold(&scope)?.then_some(scope))
    }

    /// The rules that a call breaks. Those that fail count as broken unless the policy ignores failures.
    pub fn broken(&self, scope: &Scope) -> Vec<Broken> {
        let mut broken = Vec::new();
        for (index, validation) in self.validations.iter().enumerate() {
            let source = &validation.source;
            let (message, reason) = match scope.evaluate(&validation.rule) {
                Ok(Cel::Bool(true)) => continue,
                Ok(Cel::Bool(false)) => (validation.said(scope), validation.reason.clone()),
                Ok(_) | Err(_) if self.ignores => continue,
                Ok(_) => (format!("expression '{source}' is no yes or no"), "Invalid".to_owned()),
                Err(why) => (format!("expression '{source}' resulted in error: {why}"), "Invalid".to_owned()),
            };
            broken.push(Broken { message, reason, index });
        }
        broken
    }

    /// Audit annotations by key; the error is one that counts, in words.
    ///
    /// # Errors
    /// An expression that failed or is no text, where the policy does not ignore that.
    pub fn annotations(&self, scope: &Scope) -> Result<Vec<(String, String)>, String> {
        let mut all = Vec::new();
        for (key, source, expression) in &self.annotations {
            let wrong = match scope.evaluate(expression) {
                Ok(Cel::Null) => continue,
                Ok(Cel::String(value)) => {
                    let value: String = value.trim().chars().take(ANNOTATION_MAX).collect();
                    if !value.is_empty() {
                        all.push((key.clone(), value));
                    }
                    continue;
                }
                Ok(_) => format!(
                    "valueExpression '{source}' resulted in unsupported return type. Return type must be either string or null."
                ),
                Err(why) => format!("valueExpression '{source}' resulted in error: {why}"),
            };
            if !self.ignores {
                return Err(wrong);
            }
        }
        Ok(all)
    }
}

impl Validation {
    fn said(&self, scope: &Scope) -> String {
        if let Some(Ok(Cel::String(words))) = self.words.as_ref().map(|e| scope.evaluate(e)) {
            let words = words.trim();
            if !words.is_empty() && !words.contains('\n') && words.len() <= MESSAGE_MAX {
                return words.to_owned();
            }
        }
        match self.message.as_str() {
            "" => format!("failed expression: {}", self.source),
            message => message.to_owned(),
        }
    }
}
