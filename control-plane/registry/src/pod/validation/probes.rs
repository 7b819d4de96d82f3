//! Probes and lifecycle hooks.

use coracle_api::field::{Error, Path};
use serde_json::Value;

use crate::check;
use crate::value::{at, items, number, text};

/// The three probes of a container.
pub fn probes(errors: &mut Vec<Error>, c: &Value, path: &Path) {
    for (name, one_success) in [("livenessProbe", true), ("readinessProbe", false), ("startupProbe", true)] {
        let p = at(c, &format!("/{name}"));
        if p.is_null() {
            continue;
        }
        let path = path.child(name);
        handler(errors, p, &path);
        for field in
            ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            check::non_negative(errors, &path.child(field), at(p, &format!("/{field}")));
        }
        if let Some(grace) = at(p, "/terminationGracePeriodSeconds").as_i64()
            && grace <= 0
        {
            errors.push(Error::invalid(
                &path.child("terminationGracePeriodSeconds"),
                grace,
                "must be greater than 0",
            ));
        }
        if one_success && number(p, "/successThreshold") != 1 {
            let n = number(p, "/successThreshold");
            errors.push(Error::invalid(&path.child("successThreshold"), n, "must be 1"));
        }
    }
}

/// `postStart` and `preStop`.
pub fn lifecycle(errors: &mut Vec<Error>, c: &Value, path: &Path) {
    for hook in ["postStart", "preStop"] {
        let h = at(c, &format!("/lifecycle/{hook}"));
        if !h.is_null() {
            handler(errors, h, &path.child("lifecycle").child(hook));
        }
    }
}

/// An action: of exec, httpGet, tcpSocket, grpc and sleep exactly one.
fn handler(errors: &mut Vec<Error>, h: &Value, path: &Path) {
    let mut given = 0;
    for kind in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let action = at(h, &format!("/{kind}"));
        if action.is_null() {
            continue;
        }
        given += 1;
        let path = path.child(kind);
        if given > 1 {
            errors.push(Error::forbidden(&path, "may not specify more than 1 handler type"));
            continue;
        }
        match kind {
            "exec" if items(action, "/command").is_empty() => {
                errors.push(Error::required(&path.child("command"), ""));
            }
            "httpGet" => {
                if text(action, "/path").is_empty() {
                    errors.push(Error::required(&path.child("path"), ""));
                }
                check::port_or_name(errors, &path.child("port"), at(action, "/port"));
                check::one_of(
                    errors,
                    &path.child("scheme"),
                    text(action, "/scheme"),
                    &["HTTP", "HTTPS"],
                    false,
                );
            }
            "tcpSocket" => check::port_or_name(errors, &path.child("port"), at(action, "/port")),
            "grpc" => check::port(errors, &path.child("port"), number(action, "/port")),
            _ => {}
        }
    }
    if given == 0 {
        errors.push(Error::required(path, "must specify a handler type"));
    }
}
