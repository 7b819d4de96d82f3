//! Issuers as the flags of kube-apiserver name them, and as a file of kind AuthenticationConfiguration does.

use std::path::PathBuf;
use std::str::FromStr;

use coracle_apiserver::authn::Anonymous;
use jsonwebtoken::Algorithm;
use serde::Deserialize;

use super::{Claim, Error, Issuer, Mapping, Oidc};

/// Most issuers of a file.
const ISSUERS_MAX: usize = 64;
const GROUP: &str = "apiserver.config.k8s.io/";

/// One issuer, as the flags `--oidc-...` say.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--oidc-issuer-url`
    pub issuer_url: String,
    /// `--oidc-client-id`
    pub client_id: String,
    /// `--oidc-ca-file`
    pub ca_file: Option<PathBuf>,
    /// `--oidc-username-claim`
    pub username_claim: String,
    /// `--oidc-username-prefix`; `-` for none. Without it the issuer, for other claims than `email`.
    pub username_prefix: Option<String>,
    /// `--oidc-groups-claim`
    pub groups_claim: Option<String>,
    /// `--oidc-groups-prefix`
    pub groups_prefix: String,
    /// `--oidc-required-claim`: `KEY=VALUE`.
    pub required_claims: Vec<String>,
    /// `--oidc-signing-algs`
    pub signing_algs: Vec<String>,
}

impl Flags {
    /// The issuer.
    ///
    /// # Errors
    /// What cannot be read or does not fit together.
    pub fn issuer(&self) -> Result<Oidc, Error> {
        let prefix = match self.username_prefix.as_deref() {
            Some("-") => String::new(),
            Some(prefix) => prefix.to_owned(),
            None if self.username_claim == "email" => String::new(),
            None => format!("{}#", self.issuer_url),
        };
        let mut mapping = Mapping::new(Claim::named(&self.username_claim, prefix))
            .groups(self.groups_claim.as_ref().map(|claim| Claim::named(claim, &self.groups_prefix)));
        for required in &self.required_claims {
            let (claim, value) = required
                .split_once('=')
                .ok_or_else(|| Error(format!("the required claim {required:?} is not KEY=VALUE")))?;
            mapping = mapping.require(claim, value);
        }
        let algorithms = self
            .signing_algs
            .iter()
            .map(|name| Algorithm::from_str(name).map_err(|_| Error(format!("{name:?} is no algorithm"))))
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(symmetric) = algorithms.iter().find(|a| !super::ALGORITHMS.contains(a)) {
            return Err(Error(format!("{symmetric:?} needs no public key")));
        }
        let ca = match &self.ca_file {
            None => Vec::new(),
            Some(path) => std::fs::read(path).map_err(|e| Error(format!("read {}: {e}", path.display())))?,
        };
        let audiences = vec![self.client_id.clone()].into_iter().filter(|id| !id.is_empty()).collect();
        Oidc::new(Issuer {
            url: self.issuer_url.clone(),
            discovery_url: None,
            ca,
            audiences,
            algorithms,
            mapping,
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    jwt: Vec<Jwt>,
    anonymous: Option<AnonymousAuth>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AnonymousAuth {
    enabled: bool,
    #[serde(default)]
    conditions: Vec<AnonymousCondition>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AnonymousCondition {
    path: String,
}

impl AnonymousAuth {
    fn read(self) -> Result<Anonymous, Error> {
        match (self.enabled, self.conditions.as_slice()) {
            (false, []) => Ok(Anonymous::Nobody),
            (false, _) => Err(Error(
                "anonymous.conditions: enabled should be set to true when conditions are defined".into(),
            )),
            (true, []) => Ok(Anonymous::Everywhere),
            (true, conditions) if conditions.iter().any(|c| c.path.is_empty()) => {
                Err(Error("anonymous.conditions: path must not be empty".into()))
            }
            (true, _) => Ok(Anonymous::Paths(self.conditions.into_iter().map(|c| c.path).collect())),
        }
    }
}

/// What a file of kind AuthenticationConfiguration says.
pub struct Configuration {
    /// Who issues tokens.
    pub issuers: Vec<Oidc>,
    /// Who may call without one, where the file says it.
    pub anonymous: Option<Anonymous>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Jwt {
    issuer: JwtIssuer,
    #[serde(default)]
    claim_validation_rules: Vec<ClaimRule>,
    claim_mappings: Mappings,
    #[serde(default)]
    user_validation_rules: Vec<UserRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct JwtIssuer {
    url: String,
    #[serde(rename = "discoveryURL")]
    discovery_url: Option<String>,
    #[serde(default)]
    certificate_authority: String,
    audiences: Vec<String>,
    audience_match_policy: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ClaimRule {
    claim: Option<String>,
    #[serde(default)]
    required_value: String,
    expression: Option<String>,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct UserRule {
    expression: String,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Mappings {
    username: ClaimOrExpression,
    groups: Option<ClaimOrExpression>,
    uid: Option<ClaimOrExpression>,
    #[serde(default)]
    extra: Vec<Extra>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ClaimOrExpression {
    claim: Option<String>,
    prefix: Option<String>,
    expression: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Extra {
    key: String,
    value_expression: String,
}

impl ClaimOrExpression {
    fn read(self, what: &str) -> Result<Claim, Error> {
        match (self.claim, self.expression) {
            (Some(claim), None) => Ok(Claim::named(claim, self.prefix.unwrap_or_default())),
            (None, Some(source)) if self.prefix.is_none() => Claim::computed(&source),
            _ => Err(Error(format!("{what}: exactly one of claim (with prefix) and expression is required"))),
        }
    }
}

/// Reads a file of kind AuthenticationConfiguration (`apiserver.config.k8s.io`).
///
/// # Errors
/// What cannot be read, is unknown or does not fit together.
pub fn from_file(text: &str) -> Result<Configuration, Error> {
    let documents = coracle_api::yaml::to_json_documents(text).map_err(|e| Error(e.to_string()))?;
    let [document] = documents.as_slice() else {
        return Err(Error("the file must hold one document".into()));
    };
    let file: File = serde_json::from_value(document.clone()).map_err(|e| Error(e.to_string()))?;
    if file.kind != "AuthenticationConfiguration" || !file.api_version.starts_with(GROUP) {
        return Err(Error(format!("{} {} is no AuthenticationConfiguration", file.api_version, file.kind)));
    }
    if file.jwt.len() > ISSUERS_MAX {
        return Err(Error(format!("more than {ISSUERS_MAX} issuers")));
    }
    Ok(Configuration {
        issuers: file.jwt.into_iter().map(issuer).collect::<Result<_, _>>()?,
        anonymous: file.anonymous.map(AnonymousAuth::read).transpose()?,
    })
}

fn issuer(jwt: Jwt) -> Result<Oidc, Error> {
    let many = jwt.issuer.audiences.len() > 1;
    if many && jwt.issuer.audience_match_policy.as_deref() != Some("MatchAny") {
        return Err(Error("audienceMatchPolicy must be MatchAny for multiple audiences".into()));
    }
    let maps = jwt.claim_mappings;
    let mut mapping = Mapping::new(maps.username.read("username")?)
        .groups(maps.groups.map(|from| from.read("groups")).transpose()?)
        .uid(maps.uid.map(|from| from.read("uid")).transpose()?);
    for extra in maps.extra {
        mapping = mapping.extra(&extra.key, &extra.value_expression)?;
    }
    for rule in jwt.claim_validation_rules {
        mapping = match (rule.claim, rule.expression) {
            (Some(claim), None) => mapping.require(claim, rule.required_value),
            (None, Some(source)) => mapping.claim_rule(&source, &rule.message)?,
            _ => return Err(Error("a claim validation rule needs either a claim or an expression".into())),
        };
    }
    for rule in jwt.user_validation_rules {
        mapping = mapping.user_rule(&rule.expression, &rule.message)?;
    }
    Oidc::new(Issuer {
        url: jwt.issuer.url,
        discovery_url: jwt.issuer.discovery_url,
        ca: jwt.issuer.certificate_authority.into_bytes(),
        audiences: jwt.issuer.audiences,
        algorithms: Vec::new(),
        mapping,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_flags() {
        let file = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer: {url: 'https://i.example.com', audiences: [a]}\n  claimMappings: {username: {expression: 'claims.sub'}}\n";
        let read = from_file(file).unwrap();
        assert_eq!((read.issuers.len(), read.anonymous), (1, None));
        for (said, wanted) in [
            ("{enabled: false}", Some(Anonymous::Nobody)),
            ("{enabled: true}", Some(Anonymous::Everywhere)),
            ("{enabled: true, conditions: [{path: /livez}]}", Some(Anonymous::Paths(vec!["/livez".into()]))),
            ("{enabled: false, conditions: [{path: /livez}]}", None),
            ("{enabled: true, conditions: [{path: ''}]}", None),
            ("{conditions: []}", None),
        ] {
            let read = from_file(&format!("{file}anonymous: {said}\n")).ok().and_then(|read| read.anonymous);
            assert_eq!(read, wanted, "{said}");
        }
        for (from, to) in [
            ("https://", "http://"),
            ("audiences: [a]", "audiences: []"),
            ("audiences: [a]", "audiences: [a, b]"),
            ("claims.sub", "claims.("),
            ("username:", "user:"),
            ("{expression: 'claims.sub'}", "{}"),
        ] {
            assert!(from_file(&file.replace(from, to)).is_err(), "{to}");
        }
        let flags = Flags {
            issuer_url: "https://i.example.com".into(),
            client_id: "a".into(),
            username_claim: "sub".into(),
            ..Flags::default()
        };
        assert!(flags.issuer().is_ok());
        assert!(Flags { signing_algs: vec!["HS256".into()], ..flags.clone() }.issuer().is_err());
        assert!(Flags { required_claims: vec!["x".into()], ..flags.clone() }.issuer().is_err());
        assert!(Flags { client_id: String::new(), ..flags }.issuer().is_err());
    }
}
