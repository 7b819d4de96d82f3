//! Pure: which requests are approved by themselves, which may be signed, and which are old.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

/// Client certificates, for anybody; a person approves them.
pub const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Client certificates of nodes.
pub const NODE_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Serving certificates of nodes.
pub const NODE_SERVING: &str = "kubernetes.io/kubelet-serving";
const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";
const MOST_NAMES: usize = 64;

/// The life of a certificate where nothing else is asked for, and the longest, in seconds: a year.
pub const MAX_SECONDS: i64 = 365 * 24 * 3600;
const HOUR: i64 = 3600;

/// What a request asks to be certified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// Common name: the user.
    pub common_name: String,
    /// Organizations: the groups.
    pub organizations: Vec<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether there are names of another kind.
    pub others: bool,
}

/// Reads a request.
pub fn subject(pem: &[u8]) -> Option<Subject> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem).ok()?;
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).ok()?;
    let name = &request.certification_request_info.subject;
    let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().ok().map(str::to_owned);
    let mut subject = Subject {
        common_name: name.iter_common_name().next().and_then(text)?,
        organizations: name.iter_organization().filter_map(text).collect(),
        ..Subject::default()
    };
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
        for name in names.general_names.iter().take(MOST_NAMES) {
            match name {
                GeneralName::DNSName(dns) => subject.dns.push((*dns).to_owned()),
                GeneralName::IPAddress(bytes) => match address(bytes) {
                    Some(address) => subject.addresses.push(address),
                    None => subject.others = true,
                },
                _ => subject.others = true,
            }
        }
        subject.others |= names.general_names.len() > MOST_NAMES;
    }
    Some(subject)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Whether exactly these usages are asked for; `key encipherment` may be there or not.
fn usages_are(csr: &CertificateSigningRequest, wanted: [&str; 2]) -> bool {
    let asked = csr.spec.usages.as_deref().unwrap_or_default();
    wanted.iter().all(|w| asked.iter().any(|a| a == w))
        && asked.iter().all(|a| wanted.contains(&a.as_str()) || a == "key encipherment")
}

fn is_node(subject: &Subject) -> bool {
    subject.organizations == [NODES]
        && subject.common_name.len() > NODE_PREFIX.len()
        && subject.common_name.starts_with(NODE_PREFIX)
}

fn names_nobody(subject: &Subject) -> bool {
    subject.dns.is_empty() && subject.addresses.is_empty() && !subject.others
}

/// What is wrong with a request for its signer; `None` if it may be signed.
pub fn refusal(csr: &CertificateSigningRequest, subject: &Subject) -> Option<&'static str> {
    let usages = csr.spec.usages.as_deref().unwrap_or_default();
    match csr.spec.signer_name.as_str() {
        CLIENT => {
            let known = ["client auth", "digital signature", "key encipherment"];
            let good = usages.iter().all(|u| known.contains(&u.as_str()))
                && usages.iter().any(|u| u == "client auth");
            (!good).then_some("usages are not those of a client certificate")
        }
        NODE_CLIENT => match () {
            () if !is_node(subject) => Some("the subject is not a node"),
            () if !names_nobody(subject) => Some("a client certificate of a node has no alternative names"),
            () if !usages_are(csr, ["digital signature", "client auth"]) => {
                Some("usages are not those of a client certificate of a node")
            }
            () => None,
        },
        NODE_SERVING => match () {
            () if !is_node(subject) => Some("the subject is not a node"),
            () if subject.others || (subject.dns.is_empty() && subject.addresses.is_empty()) => {
                Some("a serving certificate of a node has DNS names or addresses, and no other names")
            }
            () if !usages_are(csr, ["digital signature", "server auth"]) => {
                Some("usages are not those of a serving certificate of a node")
            }
            () => None,
        },
        _ => Some("this signer is not one of this cluster's"),
    }
}

/// Whether this cluster signs for a signer.
pub fn is_ours(signer: &str) -> bool {
    matches!(signer, CLIENT | NODE_CLIENT | NODE_SERVING)
}

/// A request that approves itself, if the one who asks may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approval {
    /// Who asks must be allowed to create this subresource of certificatesigningrequests.
    IfAllowed {
        /// `nodeclient` or `selfnodeclient`.
        subresource: &'static str,
        /// What the approval says.
        message: &'static str,
    },
    /// A node's own serving certificate: its names must be its own.
    IfOwnNames,
}

/// How a request may be approved without a person; `None` leaves it to one.
pub fn approval(csr: &CertificateSigningRequest, subject: &Subject) -> Option<Approval> {
    if refusal(csr, subject).is_some() {
        return None;
    }
    let user = csr.spec.username.as_deref().unwrap_or_default();
    let is_itself = user == subject.common_name;
    match csr.spec.signer_name.as_str() {
        NODE_CLIENT if is_itself => Some(Approval::IfAllowed {
            subresource: "selfnodeclient",
            message: "Auto approving self kubelet client certificate after SubjectAccessReview.",
        }),
        NODE_CLIENT => Some(Approval::IfAllowed {
            subresource: "nodeclient",
            message: "Auto approving kubelet client certificate after SubjectAccessReview.",
        }),
        NODE_SERVING if is_itself && csr.spec.groups.iter().flatten().any(|g| g == NODES) => {
            Some(Approval::IfOwnNames)
        }
        _ => None,
    }
}

/// Whether the names in a node's request are its own: its own name, and addresses that no other node has. `others` are
/// names and addresses of the other nodes.
pub fn own_names<'a>(subject: &Subject, mut others: impl Iterator<Item = (&'a str, &'a [IpAddr])>) -> bool {
    let node = subject.common_name.strip_prefix(NODE_PREFIX).unwrap_or_default();
    subject.dns.iter().all(|dns| dns == node)
        && others
            .all(|(name, addresses)| name == node || !subject.addresses.iter().any(|a| addresses.contains(a)))
}

/// The state that decides about signing.
pub fn has_condition(csr: &CertificateSigningRequest, wanted: &str) -> bool {
    let conditions = csr.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == wanted && c.status != "False")
}

/// Whether a certificate was issued.
pub fn is_issued(csr: &CertificateSigningRequest) -> bool {
    csr.status.as_ref().and_then(|s| s.certificate.as_ref()).is_some_and(|c| !c.0.is_empty())
}

/// Seconds until a request is forgotten; 0 is now. Decided ones stay an hour, open ones a day.
pub fn forgotten_in(csr: &CertificateSigningRequest, now: Timestamp) -> i64 {
    let created = csr.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
    let decided = is_issued(csr) || has_condition(csr, "Denied") || has_condition(csr, "Failed");
    let keep = if decided { HOUR } else { 24 * HOUR };
    (created.as_second() + keep - now.as_second()).max(0)
}

/// For how long a certificate is issued, in seconds.
pub fn seconds(csr: &CertificateSigningRequest) -> i64 {
    csr.spec.expiration_seconds.map_or(MAX_SECONDS, i64::from).clamp(600, MAX_SECONDS)
}

#[cfg(test)]
mod tests;
