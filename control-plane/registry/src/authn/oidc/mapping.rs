//! From the claims of a token to a user.

use coracle_api::schema::structural::Structural;
use coracle_apiserver::UserInfo;
use kube_cel::KubeCelExt;
use kube_cel::cel::{Context, Value as Cel};
use serde_json::{Value, json};

use super::Error;
use crate::custom_resource_definition::rules::compile::{Expression, compile_for, with_stack};
use crate::custom_resource_definition::rules::values::{Extent, to_cel};

/// Most groups of a user.
const GROUPS_MAX: usize = 1024;

/// Where a part of a user comes from.
pub enum Claim {
    /// A claim, with this in front of it.
    Named {
        /// The claim.
        name: String,
        /// What is put in front.
        prefix: String,
    },
    /// A CEL expression over `claims`.
    Computed(Expression),
}

/// A rule that must hold.
struct Rule {
    expression: Expression,
    message: String,
}

/// How claims make a user.
#[derive(Default)]
pub struct Mapping {
    username: Option<Claim>,
    groups: Option<Claim>,
    uid: Option<Claim>,
    extra: Vec<(String, Expression)>,
    required: Vec<(String, String)>,
    claim_rules: Vec<Rule>,
    user_rules: Vec<Rule>,
}

/// Reads an expression over one variable.
fn read(source: &str, variable: &'static str) -> Result<Expression, Error> {
    let read = with_stack(|| compile_for(source, &[variable]));
    let read = read.unwrap_or_else(|| Err("it could not be read".into()));
    read.map_err(|why| Error(format!("expression {source:?}: {why}")))
}

impl Claim {
    /// An expression.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn computed(source: &str) -> Result<Self, Error> {
        read(source, "claims").map(Self::Computed)
    }

    /// A claim by its name.
    pub fn named(name: impl Into<String>, prefix: impl Into<String>) -> Self {
        Self::Named { name: name.into(), prefix: prefix.into() }
    }
}

impl Mapping {
    /// A mapping that takes the user's name from here.
    pub fn new(username: Claim) -> Self {
        Self { username: Some(username), ..Self::default() }
    }

    /// Takes the groups from here.
    pub fn groups(mut self, from: Option<Claim>) -> Self {
        self.groups = from;
        self
    }

    /// Takes the uid from here.
    pub fn uid(mut self, from: Option<Claim>) -> Self {
        self.uid = from;
        self
    }

    /// Adds an extra field.
    ///
    /// # Errors
    /// An expression that cannot be read.
    pub fn extra(mut self, key: &str, source: &str) -> Result<Self, Error> {
        self.extra.push((key.to_owned(), read(source, "claims")?));
        Ok(self)
    }

    /// Asks for a claim of this value.
    pub fn require(mut self, claim: impl Into<String>, value: impl Into<String>) -> Self {
        self.required.push((claim.into(), value.into()));
        self
    }

    /// Asks for an expression over `claims` to hold.
    ///
    /// # Errors
    /// An expression that cannot be read.
    pub fn claim_rule(mut self, source: &str, message: &str) -> Result<Self, Error> {
        let rule = Rule { expression: read(source, "claims")?, message: message.to_owned() };
        self.claim_rules.push(rule);
        Ok(self)
    }

    /// Asks for an expression over `user` to hold.
    ///
    /// # Errors
    /// An expression that cannot be read.
    pub fn user_rule(mut self, source: &str, message: &str) -> Result<Self, Error> {
        let rule = Rule { expression: read(source, "user")?, message: message.to_owned() };
        self.user_rules.push(rule);
        Ok(self)
    }

    /// The user that claims make, or why there is none.
    ///
    /// # Errors
    /// In words: a rule does not hold, a claim is missing or of another type.
    pub fn user(&self, claims: &Value) -> Result<UserInfo, String> {
        for (name, wanted) in &self.required {
            if claims.get(name).and_then(Value::as_str) != Some(wanted) {
                return Err(format!("claim {name} is not {wanted:?}"));
            }
        }
        hold(&self.claim_rules, "claims", claims)?;
        let name = self.username.as_ref().map(|from| from.texts(claims)).transpose()?.unwrap_or_default();
        let [name] = name.as_slice() else { return Err("the token names no user".into()) };
        if name.is_empty() {
            return Err("the token names no user".into());
        }
        let unverified = claims.get("email_verified").is_some_and(|v| *v != true);
        if unverified && matches!(&self.username, Some(Claim::Named { name, .. }) if name == "email") {
            return Err("the email address is not verified".into());
        }
        let groups = self.groups.as_ref().map(|from| from.texts(claims)).transpose()?.unwrap_or_default();
        let groups: Vec<&str> = groups.iter().map(String::as_str).filter(|g| !g.is_empty()).collect();
        let mut user = UserInfo::new(name, groups.get(..GROUPS_MAX).unwrap_or(&groups));
        if let Some(from) = &self.uid {
            user.uid = from.texts(claims)?.into_iter().next().unwrap_or_default();
        }
        for (key, expression) in &self.extra {
            let values = texts(&evaluate(expression, "claims", claims)?)?;
            if !values.is_empty() {
                user.extra.insert(key.clone(), values);
            }
        }
        let seen =
            json!({"username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra});
        hold(&self.user_rules, "user", &seen)?;
        Ok(user)
    }
}

impl Claim {
    fn texts(&self, claims: &Value) -> Result<Vec<String>, String> {
        match self {
            Self::Computed(expression) => texts(&evaluate(expression, "claims", claims)?),
            Self::Named { name, prefix } => {
                let one = |v: &Value| match v {
                    Value::String(text) => Ok(format!("{prefix}{text}")),
                    _ => Err(format!("claim {name} is no text")),
                };
                match claims.get(name) {
                    None | Some(Value::Null) => Ok(Vec::new()),
                    Some(Value::Array(all)) => all.iter().map(one).collect(),
                    Some(value) => one(value).map(|text| vec![text]),
                }
            }
        }
    }
}

fn evaluate(expression: &Expression, variable: &'static str, over: &Value) -> Result<Cel, String> {
    let mut extent = Extent::of(&Value::Null, None);
    extent.widen(over);
    if !extent.affords(expression) {
        return Err("the expression would cost too much on this token".into());
    }
    let run = || {
        let mut context = Context::default().with_all();
        context.add_variable_from_value(variable, to_cel(&Structural::default(), over, false));
        expression.run(&context)
    };
    with_stack(run).unwrap_or_else(|| Err("evaluation failed".into()))
}

/// A text, or a list of texts.
fn texts(value: &Cel) -> Result<Vec<String>, String> {
    match value {
        Cel::String(text) => Ok(vec![text.to_string()]),
        Cel::List(all) => all.iter().map(|v| texts(v).map(|t| t.concat())).collect(),
        Cel::Null => Ok(Vec::new()),
        _ => Err("an expression of a mapping gives neither text nor a list of texts".into()),
    }
}

fn hold(rules: &[Rule], variable: &'static str, over: &Value) -> Result<(), String> {
    for rule in rules {
        match evaluate(&rule.expression, variable, over)? {
            Cel::Bool(true) => {}
            _ if rule.message.is_empty() => return Err("a validation rule does not hold".into()),
            _ => return Err(rule.message.clone()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_make_users() {
        let mapping = Mapping::new(Claim::named("sub", "https://issuer#"))
            .groups(Some(Claim::named("groups", "oidc:")))
            .require("hd", "example.com");
        let user = mapping.user(&json!({"sub": "jane", "groups": ["a", "b"], "hd": "example.com"})).unwrap();
        assert_eq!(user.name, "https://issuer#jane");
        assert_eq!(user.groups, ["oidc:a", "oidc:b", "system:authenticated"]);
        assert!(mapping.user(&json!({"sub": "jane", "hd": "other"})).is_err());
        assert!(mapping.user(&json!({"hd": "example.com"})).is_err());
        assert!(mapping.user(&json!({"sub": 5, "hd": "example.com"})).is_err());
        let email = Mapping::new(Claim::named("email", ""));
        assert!(email.user(&json!({"email": "a@b", "email_verified": false})).is_err());
        assert_eq!(email.user(&json!({"email": "a@b"})).unwrap().name, "a@b");
    }

    #[test]
    fn expressions_make_users() {
        let computed = |source: &str| Claim::computed(source).unwrap();
        let mapping = Mapping::new(computed("'x:' + claims.sub"))
            .groups(Some(computed("claims.roles.split(',')")))
            .uid(Some(computed("claims.sub")))
            .extra("example.com/tenant", "claims.tenant")
            .unwrap()
            .claim_rule("claims.exp - claims.nbf <= 86400", "too long")
            .unwrap()
            .user_rule("!user.username.startsWith('x:system:')", "not as the system")
            .unwrap();
        let claims =
            |sub: &str, exp: i64| json!({"sub": sub, "roles": "a,b", "tenant": "t", "nbf": 0, "exp": exp});
        let user = mapping.user(&claims("jane", 100)).unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("x:jane", "jane"));
        assert_eq!(user.groups, ["a", "b", "system:authenticated"]);
        assert_eq!(user.extra["example.com/tenant"], ["t"]);
        assert_eq!(mapping.user(&claims("jane", 100_000)).unwrap_err(), "too long");
        assert_eq!(mapping.user(&claims("system:admin", 100)).unwrap_err(), "not as the system");
        assert!(Claim::computed("claims.sub +").is_err());
        assert!(Claim::computed("other.sub").is_err());
    }
}
