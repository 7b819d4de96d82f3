//! Expressions of webhooks' conditions and of admission policies: which variables they may speak of, how they are checked, and how
//! they are evaluated for one call.

mod authorizer;

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, LazyLock};

use coracle_api::field::{Error, Path};
use coracle_api::schema::structural::Structural;
use coracle_apiserver::{Authorizer, RequestContext};
use kube_cel::KubeCelExt;
use kube_cel::cel::objects::{Key, Map};
use kube_cel::cel::{Context, Value as Cel};
use serde_json::Value;

pub use crate::custom_resource_definition::rules::compile::Expression;
use crate::custom_resource_definition::rules::compile::{compile_for, with_stack};
use crate::custom_resource_definition::rules::values::{Extent, to_cel};
use crate::value::text;

pub use authorizer::Check;

/// Expressions nested deeper than this are evaluated on a thread that has a stack for it.
const SHALLOW: usize = 16;
const TOO_COSTLY: &str = "operation cancelled: actual cost limit exceeded";

/// The variables that expressions may speak of.
#[derive(Clone, Copy)]
pub struct Speaks(&'static [&'static str]);

impl Speaks {
    /// Match conditions of webhooks.
    pub const WEBHOOK: Self = Self(&["object", "oldObject", "request", "authorizer"]);
    /// Match conditions and expressions of policies without parameters.
    pub const POLICY: Self =
        Self(&["object", "oldObject", "request", "authorizer", "namespaceObject", "variables"]);
    /// The same with parameters.
    pub const PARAMS: Self =
        Self(&["object", "oldObject", "request", "authorizer", "namespaceObject", "variables", "params"]);
    /// What messages of policies may speak of: everything but the authorizer.
    pub const MESSAGE: Self =
        Self(&["object", "oldObject", "request", "namespaceObject", "variables", "params"]);
}

/// Reads an expression; the error is in words.
///
/// # Errors
/// What does not compile, is too long or speaks of what it may not.
pub fn read(source: &str, speaks: Speaks) -> Result<Expression, String> {
    with_stack(|| compile_for(source, speaks.0))
        .unwrap_or_else(|| Err("the expression could not be read".to_owned()))
}

/// Errors of the expression in a field of `holder`.
pub fn check(errors: &mut Vec<Error>, holder: &Value, field: &'static str, path: &Path, speaks: Speaks) {
    let source = text(holder, &format!("/{field}"));
    let path = path.child(field);
    if source.trim().is_empty() {
        errors.push(Error::required(&path, format!("{field} is not specified")));
    } else if let Err(why) = read(source, speaks) {
        errors.push(Error::invalid(&path, source, format!("compilation failed: {why}")));
    }
}

/// What the expressions of one call speak of.
pub struct Inputs<'a> {
    /// The object; null on delete.
    pub object: &'a Value,
    /// The object before; null on create.
    pub old: &'a Value,
    /// The admission request.
    pub request: &'a Value,
    /// The namespace; null for cluster objects.
    pub namespace: &'a Value,
    /// The parameters; null where there are none.
    pub params: &'a Value,
    /// Who may do what.
    pub authorizer: &'a Arc<dyn Authorizer>,
    /// The call.
    pub cx: &'a RequestContext,
}

static LIBRARY: LazyLock<Context<'static>> = LazyLock::new(|| {
    let mut context = Context::default().with_all();
    authorizer::register(&mut context);
    context
});

/// The values of one call, to evaluate expressions over.
pub struct Scope {
    context: Context<'static>,
    extent: Extent,
    variables: HashMap<Key, Cel>,
}

impl Scope {
    /// The scope of a call.
    pub fn new(inputs: &Inputs<'_>) -> Self {
        let any = Structural::default();
        let mut context = LIBRARY.new_inner_scope();
        let named = [
            ("object", inputs.object),
            ("oldObject", inputs.old),
            ("request", inputs.request),
            ("namespaceObject", inputs.namespace),
            ("params", inputs.params),
        ];
        let mut extent = Extent::of(&Value::Null, None);
        for (name, value) in named {
            extent.widen(value);
            context.add_variable_from_value(name, to_cel(&any, value, false));
        }
        let check = Check::new(inputs.authorizer.clone(), inputs.cx.user.clone());
        let own = check.of_request(inputs.cx);
        context.add_variable_from_value("authorizer", Cel::Opaque(Arc::new(check)));
        context.add_variable_from_value("@requestResource", Cel::Opaque(Arc::new(own)));
        let mut scope = Self { context, extent, variables: HashMap::new() };
        scope.show_variables();
        scope
    }

    fn show_variables(&mut self) {
        let all = Cel::Map(Map { map: Arc::new(self.variables.clone()) });
        self.context.add_variable_from_value("variables", all);
    }

    /// Adds `variables.<name>`. One that cannot be evaluated is missing; who needs it fails.
    pub fn define(&mut self, name: &str, expression: &Expression) {
        if let Ok(value) = self.evaluate(expression) {
            self.variables.insert(Key::String(Arc::new(name.to_owned())), value);
            self.show_variables();
        }
    }

    /// The value of an expression; the error is in words.
    ///
    /// # Errors
    /// Evaluation failed, or would cost too much.
    pub fn evaluate(&self, expression: &Expression) -> Result<Cel, String> {
        if !self.extent.affords(expression) {
            return Err(TOO_COSTLY.to_owned());
        }
        let run = || expression.run(&self.context);
        if expression.depth > SHALLOW {
            return with_stack(run).unwrap_or_else(|| Err("evaluation failed".to_owned()));
        }
        std::panic::catch_unwind(AssertUnwindSafe(run))
            .unwrap_or_else(|_| Err("evaluation failed".to_owned()))
    }

    /// Whether an expression says yes.
    ///
    /// # Errors
    /// The same, or a value that is neither yes nor no.
    pub fn holds(&self, expression: &Expression) -> Result<bool, String> {
        match self.evaluate(expression)? {
            Cel::Bool(said) => Ok(said),
            _ => Err("cel expression must evaluate to a bool".to_owned()),
        }
    }
}

/// Conditions by name that all have to hold.
pub struct Conditions(Vec<(String, String, Expression)>);

impl Conditions {
    /// Those of a list of names and expressions that was checked.
    pub fn of(list: &[Value], speaks: Speaks) -> Self {
        let one = |v: &Value| {
            let source = text(v, "/expression");
            Some((text(v, "/name").to_owned(), source.trim().to_owned(), read(source, speaks).ok()?))
        };
        Self(list.iter().filter_map(one).collect())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all hold. One that says no outweighs one that fails.
    ///
    /// # Errors
    /// Those that failed, in words.
    pub fn hold(&self, scope: &Scope) -> Result<bool, String> {
        let mut wrong = Vec::new();
        for (_, source, condition) in &self.0 {
            match scope.holds(condition) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(why) => wrong.push(format!("expression '{source}' resulted in error: {why}")),
            }
        }
        match wrong.len() {
            0 => Ok(true),
            1 => Err(wrong.remove(0)),
            _ => Err(format!("[{}]", wrong.join(", "))),
        }
    }
}

/// The value of an expression as JSON; the error is in words.
///
/// # Errors
/// A value that JSON does not know, or keys that are no text.
pub fn to_json(value: &Cel) -> Result<Value, String> {
    match value {
        Cel::Null => Ok(Value::Null),
        Cel::Bool(b) => Ok((*b).into()),
        Cel::Int(i) => Ok((*i).into()),
        Cel::UInt(u) => Ok((*u).into()),
        Cel::Float(f) => Ok((*f).into()),
        Cel::String(text) => Ok(text.as_str().into()),
        Cel::List(list) => list.iter().map(to_json).collect(),
        Cel::Map(map) => {
            let entry = |(key, value): (&Key, &Cel)| match key {
                Key::String(key) => Ok((key.as_ref().clone(), to_json(value)?)),
                _ => Err("keys of objects must be strings".to_owned()),
            };
            map.map.iter().map(entry).collect::<Result<serde_json::Map<_, _>, _>>().map(Value::Object)
        }
        other => Err(format!("a value of type {:?} can be no part of an object", other.type_of())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_apiserver::AdminsOnly;
    use serde_json::json;

    fn call(name: &str) -> RequestContext {
        RequestContext {
            verb: "create",
            user: coracle_apiserver::UserInfo::new(name, &[]),
            group: String::new(),
            version: "v1".into(),
            resource: "pods".into(),
            kind: "Pod".into(),
            namespace: Some("n".into()),
            name: Some("p".into()),
            subresource: None,
            path: String::new(),
            dry_run: false,
            field_validation: Default::default(),
            field_manager: String::new(),
            now: jiff::Timestamp::UNIX_EPOCH,
            warnings: Default::default(),
            annotations: Default::default(),
        }
    }

    fn evaluate(source: &str, user: &str) -> Result<Value, String> {
        let authorizer: Arc<dyn Authorizer> = Arc::new(AdminsOnly);
        let (object, null, cx) =
            (json!({"metadata": {"name": "x"}, "spec": {"n": 3}}), Value::Null, call(user));
        let scope = Scope::new(&Inputs {
            object: &object,
            old: &null,
            request: &null,
            namespace: &null,
            params: &null,
            authorizer: &authorizer,
            cx: &cx,
        });
        to_json(&scope.evaluate(&read(source, Speaks::PARAMS)?)?)
    }

    #[test]
    fn expressions() {
        assert_eq!(
            evaluate("object.spec.n > 2 && oldObject == null && params == null", "u"),
            Ok(true.into())
        );
        let message = "Object{spec: Object.spec{n: object.spec.n + 1, my__dash__name: 'y'}}";
        assert_eq!(evaluate(message, "u"), Ok(json!({"spec": {"n": 4, "my-name": "y"}})));
        let patch =
            "[JSONPatch{op: 'add', path: '/a/' + jsonpatch.escapeKey('b/c'), value: [1, 2].map(x, x + 1)}]";
        assert_eq!(evaluate(patch, "u"), Ok(json!([{"op": "add", "path": "/a/b~1c", "value": [2, 3]}])));
        assert_eq!(evaluate("has(object.spec.m) ? 1 : 2", "u"), Ok(2.into()));
        assert_eq!(evaluate("object.spec.m", "u"), Err("no such key: m".into()));
        assert!(evaluate("nobody.spec", "u").is_err_and(|e| e.contains("undeclared reference to 'nobody'")));
    }

    #[test]
    fn the_authorizer() {
        let may = "authorizer.group('apps').resource('deployments').namespace('n').name('d').check('create').allowed()";
        assert_eq!(evaluate(may, "system:kube-scheduler"), Ok(true.into()));
        assert_eq!(evaluate(may, "somebody"), Ok(false.into()));
        let own = "authorizer.requestResource.check('get').allowed()";
        assert_eq!(evaluate(own, "system:kube-scheduler"), Ok(true.into()));
        assert_eq!(
            evaluate("authorizer.path('/healthz').check('get').errored()", "somebody"),
            Ok(false.into())
        );
        let other = "authorizer.serviceAccount('n', 's').path('/x').check('get').allowed()";
        assert_eq!(evaluate(other, "system:kube-scheduler"), Ok(false.into()));
    }
}
