//! What a request for a certificate must hold.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coracle_api::field::{Error, Path};
use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use crate::value::{items, maybe_number, text};

/// The shortest life that may be asked for, in seconds.
const MIN_SECONDS: i64 = 600;
/// What keys may be used for.
const USAGES: [&str; 23] = [
    "signing",
    "digital signature",
    "content commitment",
    "key encipherment",
    "key agreement",
    "data encipherment",
    "cert sign",
    "crl sign",
    "encipher only",
    "decipher only",
    "any",
    "server auth",
    "client auth",
    "code signing",
    "email protection",
    "s/mime",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "timestamping",
    "ocsp signing",
    "microsoft sgc",
    "netscape sgc",
];

/// Everything wrong with a spec.
pub fn spec(spec: &Value, path: &Path) -> Vec<Error> {
    let mut errors = Vec::new();
    let request = text(spec, "/request");
    if let Err(words) = parse(request, |_| ()) {
        errors.push(Error::invalid(&path.child("request"), request, words));
    }
    if items(spec, "/usages").is_empty() {
        errors.push(Error::required(&path.child("usages"), ""));
    }
    for (i, usage) in items(spec, "/usages").iter().enumerate() {
        let usage = usage.as_str().unwrap_or_default();
        if !USAGES.contains(&usage) {
            errors.push(Error::not_supported(&path.child("usages").index(i), usage, &USAGES));
        }
    }
    signer(&mut errors, &path.child("signerName"), text(spec, "/signerName"));
    if let Some(seconds) = maybe_number(spec, "/expirationSeconds")
        && seconds < MIN_SECONDS
    {
        let words = format!("may not specify a duration less than {MIN_SECONDS} seconds (10 minutes)");
        errors.push(Error::invalid(&path.child("expirationSeconds"), seconds, words));
    }
    errors
}

fn signer(errors: &mut Vec<Error>, path: &Path, name: &str) {
    if name.is_empty() {
        errors.push(Error::required(path, ""));
        return;
    }
    let parts: Vec<&str> = name.split('/').collect();
    let [domain, rest] = parts[..] else {
        errors.push(Error::invalid(
            path,
            name,
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        ));
        return;
    };
    let words = coracle_api::meta::validation::dns1123_subdomain(domain);
    crate::check::words(errors, path, name, words);
    if !domain.contains('.') {
        errors.push(Error::invalid(
            path,
            name,
            "should be a domain with at least two segments separated by dots",
        ));
    }
    crate::check::words(errors, path, name, coracle_api::meta::validation::dns1123_subdomain(rest));
}

/// Reads a request: base64 of PEM.
fn parse<T>(request: &str, read: impl FnOnce(&X509CertificationRequest<'_>) -> T) -> Result<T, String> {
    let bytes = STANDARD.decode(request).map_err(|_| "the request is not base64".to_owned())?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&bytes)
        .map_err(|_| "PEM block type must be CERTIFICATE REQUEST".to_owned())?;
    if pem.label != "CERTIFICATE REQUEST" {
        return Err("PEM block type must be CERTIFICATE REQUEST".to_owned());
    }
    let (_, request) = X509CertificationRequest::from_der(&pem.contents)
        .map_err(|e| format!("the request does not parse: {e}"))?;
    Ok(read(&request))
}

/// The organizations of a request's subject; none for what is no request.
pub fn organizations(request: &str) -> Vec<String> {
    let read = |request: &X509CertificationRequest<'_>| {
        let subject = &request.certification_request_info.subject;
        subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect()
    };
    parse(request, read).unwrap_or_default()
}

/// The common name of a request's subject.
pub fn common_name(request: &str) -> Option<String> {
    let read = |request: &X509CertificationRequest<'_>| {
        let subject = &request.certification_request_info.subject;
        subject.iter_common_name().find_map(|name| name.as_str().ok()).map(str::to_owned)
    };
    parse(request, read).ok().flatten()
}
