//! `clientConfig` of a webhook: a URL or a Service.

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation::dns1123_subdomain;
use serde_json::Value;

use crate::check;
use crate::value::{at, number, object, present, set_default_number, text};

const FORM: &str = "; desired format: https://host[/path]";

/// Fills in the port of a Service.
pub fn default(config: &mut Value) {
    if let Some(service) =
        config.get("service").filter(|s| s.is_object()).is_some().then(|| object(config, "service"))
        && let Some(service) = service
    {
        set_default_number(service, "port", 443);
    }
}

/// Everything wrong with one.
pub fn check(errors: &mut Vec<Error>, config: &Value, path: &Path) {
    match (present(config, "/url"), present(config, "/service")) {
        (true, false) => url(errors, text(config, "/url"), &path.child("url")),
        (false, true) => service(errors, at(config, "/service"), &path.child("service")),
        _ => errors.push(Error::required(path, "exactly one of url or service is required")),
    }
    use base64::Engine;
    let bundle = text(config, "/caBundle");
    if base64::engine::general_purpose::STANDARD.decode(bundle).is_err() {
        errors.push(Error::invalid(&path.child("caBundle"), bundle, "is not base64"));
    }
}

fn url(errors: &mut Vec<Error>, given: &str, path: &Path) {
    let (scheme, rest) = given.split_once("://").unwrap_or(("", given));
    if scheme != "https" {
        let words = format!("'https' is the only allowed URL scheme{FORM}");
        errors.push(Error::invalid(path, scheme, words));
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = if scheme.is_empty() { "" } else { rest.split('/').next().unwrap_or_default() };
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    if host.is_empty() {
        errors.push(Error::invalid(path, "", format!("host must be specified{FORM}")));
    } else if given.parse::<http::Uri>().is_err() {
        errors.push(Error::required(path, format!("url must be a valid URL: parse {given:?}{FORM}")));
    }
    for (part, words) in [
        (user, "user information is not permitted in the URL"),
        (fragment, "fragments are not permitted in the URL"),
        (query, "query parameters are not permitted in the URL"),
    ] {
        if !part.is_empty() {
            errors.push(Error::invalid(path, part, words));
        }
    }
}

fn service(errors: &mut Vec<Error>, service: &Value, path: &Path) {
    for (field, words) in
        [("name", "service name is required"), ("namespace", "service namespace is required")]
    {
        if text(service, &format!("/{field}")).is_empty() {
            errors.push(Error::required(&path.child(field), words));
        }
    }
    let port = number(service, "/port");
    if !(1..=65535).contains(&port) {
        let words = "port is not valid: must be between 1 and 65535, inclusive";
        errors.push(Error::invalid(&path.child("port"), port, words));
    }
    let (given, path) = (text(service, "/path"), path.child("path"));
    if matches!(given, "" | "/") {
        return;
    }
    if given == "//" {
        errors.push(Error::invalid(&path, given, "segment[0] may not be empty"));
        return;
    }
    if !given.starts_with('/') {
        errors.push(Error::invalid(&path, given, "must start with a '/'"));
    }
    let steps = given.strip_prefix('/').unwrap_or(given);
    let steps = steps.strip_suffix('/').unwrap_or(steps);
    for (i, step) in steps.split('/').enumerate() {
        if step.is_empty() {
            errors.push(Error::invalid(&path, given, format!("segment[{i}] may not be empty")));
            continue;
        }
        let wrong = dns1123_subdomain(step).into_iter().map(|words| format!("segment[{i}]: {words}"));
        check::words(errors, &path, given, wrong.collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said(config: Value) -> Vec<String> {
        let mut errors = Vec::new();
        check(&mut errors, &config, &Path::new("c"));
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn places() {
        assert!(said(json!({"url": "https://a.example:8443/x"})).is_empty());
        assert_eq!(said(json!({})), ["c: Required value: exactly one of url or service is required"]);
        assert_eq!(
            said(json!({"url": "http://a.example/x"})),
            [
                "c.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: https://host[/path]"
            ]
        );
        assert_eq!(said(json!({"url": "https://u:p@a.example/x?y=z#f"})).len(), 3);
        assert_eq!(said(json!({"url": "https:///x"})).len(), 1);
        let service =
            |path: &str| json!({"service": {"namespace": "n", "name": "s", "port": 443, "path": path}});
        assert!(said(service("/a/b/")).is_empty());
        assert_eq!(
            said(service("/a//b")),
            ["c.service.path: Invalid value: \"/a//b\": segment[1] may not be empty"]
        );
        assert_eq!(said(json!({"service": {"port": 0}})).len(), 3);
    }
}
