//! `authorizer` in expressions: `authorizer.group("apps").resource("deployments").namespace("x").check("create").allowed()`.

use std::fmt;
use std::sync::Arc;

use coracle_apiserver::{AuthorizationRequest, Authorizer, Decision, RequestContext, UserInfo};
use futures::FutureExt;
use kube_cel::cel::extractors::This;
use kube_cel::cel::objects::Opaque;
use kube_cel::cel::{Context, ExecutionError, ResolveResult, Value as Cel};

/// A question to the authorizer that is being put together.
#[derive(Clone)]
pub struct Check {
    authorizer: Arc<dyn Authorizer>,
    user: UserInfo,
    path: Option<String>,
    group: String,
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

/// Its answer.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    allowed: bool,
    reason: String,
    error: String,
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "authorizer({})", self.user.name)
    }
}

impl PartialEq for Check {
    fn eq(&self, _: &Self) -> bool {
        false
    }
}

impl Eq for Check {}

impl Opaque for Check {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.authorization.Authorizer"
    }
}

impl Opaque for Answer {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.authorization.Decision"
    }
}

impl Check {
    /// Questions about what a user may do.
    pub fn new(authorizer: Arc<dyn Authorizer>, user: UserInfo) -> Self {
        let no = String::new;
        Self {
            authorizer,
            user,
            path: None,
            group: no(),
            resource: no(),
            subresource: no(),
            namespace: no(),
            name: no(),
        }
    }

    /// The question about the resource of a call.
    pub fn of_request(&self, cx: &RequestContext) -> Self {
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        Self {
            group: cx.group.clone(),
            resource: cx.resource.clone(),
            subresource: text(&cx.subresource),
            namespace: text(&cx.namespace),
            name: text(&cx.name),
            ..self.clone()
        }
    }

    fn ask(&self, verb: &str) -> Answer {
        let request = AuthorizationRequest {
            user: &self.user,
            verb,
            is_resource: self.path.is_none(),
            group: &self.group,
            version: "*",
            resource: &self.resource,
            subresource: Some(self.subresource.as_str()).filter(|part| !part.is_empty()),
            namespace: Some(self.namespace.as_str()).filter(|part| !part.is_empty()),
            name: Some(self.name.as_str()).filter(|part| !part.is_empty()),
            path: self.path.as_deref().unwrap_or_default(),
        };
        // Expressions do not wait; an authorizer that has to is one that could not say.
        match self.authorizer.authorize(&request).now_or_never() {
            Some(Decision::Allow) => Answer { allowed: true, reason: String::new(), error: String::new() },
            Some(Decision::Deny { reason }) => Answer { allowed: false, reason, error: String::new() },
            None => Answer {
                allowed: false,
                reason: String::new(),
                error: "the authorizer did not answer at once".to_owned(),
            },
        }
    }
}

fn on<T>(name: &'static str, this: &Cel, then: impl FnOnce(&T) -> Cel) -> ResolveResult
where
    T: Opaque,
{
    match this {
        Cel::Opaque(value) => match value.downcast_ref::<T>() {
            Some(found) => Ok(then(found)),
            None => Err(ExecutionError::NoSuchOverload),
        },
        _ => Err(ExecutionError::function_error(name, "no such overload")),
    }
}

fn more(name: &'static str, this: &Cel, change: impl FnOnce(&mut Check)) -> ResolveResult {
    on::<Check>(name, this, |check| {
        let mut next = check.clone();
        change(&mut next);
        Cel::Opaque(Arc::new(next))
    })
}

/// Adds the functions of the authorizer library.
pub(super) fn register(context: &mut Context<'_>) {
    type Text = Arc<String>;
    let own = |text: &Text| text.as_ref().clone();
    context.add_function("group", move |This(this): This<Cel>, to: Text| {
        more("group", &this, |c| c.group = own(&to))
    });
    context.add_function("path", move |This(this): This<Cel>, to: Text| {
        more("path", &this, |c| c.path = Some(own(&to)))
    });
    context.add_function("resource", move |This(this): This<Cel>, to: Text| {
        more("resource", &this, |c| c.resource = own(&to))
    });
    context.add_function("subresource", move |This(this): This<Cel>, to: Text| {
        more("subresource", &this, |c| c.subresource = own(&to))
    });
    context.add_function("namespace", move |This(this): This<Cel>, to: Text| {
        more("namespace", &this, |c| c.namespace = own(&to))
    });
    context.add_function("name", move |This(this): This<Cel>, to: Text| {
        more("name", &this, |c| c.name = own(&to))
    });
    context.add_function("serviceAccount", |This(this): This<Cel>, namespace: Text, name: Text| {
        more("serviceAccount", &this, |c| {
            let groups = ["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}")];
            c.user = UserInfo::new(&format!("system:serviceaccount:{namespace}:{name}"), &groups);
        })
    });
    context.add_function("check", |This(this): This<Cel>, verb: Text| {
        on::<Check>("check", &this, |check| Cel::Opaque(Arc::new(check.ask(&verb))))
    });
    context.add_function("allowed", |This(this): This<Cel>| {
        on::<Answer>("allowed", &this, |answer| Cel::Bool(answer.allowed))
    });
    context.add_function("reason", |This(this): This<Cel>| {
        on::<Answer>("reason", &this, |answer| Cel::String(Arc::new(answer.reason.clone())))
    });
    context.add_function("errored", |This(this): This<Cel>| {
        on::<Answer>("errored", &this, |answer| Cel::Bool(!answer.error.is_empty()))
    });
    context.add_function("error", |This(this): This<Cel>| {
        on::<Answer>("error", &this, |answer| Cel::String(Arc::new(answer.error.clone())))
    });
}
