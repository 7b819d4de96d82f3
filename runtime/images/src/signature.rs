//! Signatures as cosign writes them: a manifest under the tag `sha256-<hex>.sig`, whose layers are claims about a digest
//! and whose annotations are signatures of those claims.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use base64::Engine as _;
use serde_json::Value;

use crate::SignaturePolicy;

/// Where the signature of a claim is found, on its layer.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// The type of a claim.
const CLAIM: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The longest claim that is read, in bytes.
pub(crate) const MAX_PAYLOAD: usize = 64 << 10;
/// The most signatures of an image that are looked at.
const MAX_CLAIMS: usize = 32;

/// The policy for a repository: the one that names the most of it.
pub(crate) fn policy<'a>(policies: &'a [SignaturePolicy], repository: &str) -> Option<&'a SignaturePolicy> {
    let names = |policy: &&SignaturePolicy| {
        let prefix = policy.repositories.trim_end_matches('/');
        let rest = repository.strip_prefix(prefix);
        prefix.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    policies.iter().filter(names).max_by_key(|policy| policy.repositories.len())
}

/// The tag under which the signatures of a digest are kept.
pub(crate) fn tag(digest: &str) -> String {
    format!("{}.sig", digest.replace(':', "-"))
}

/// The digests of the claims of a manifest, and the signature of each.
pub(crate) fn claims(manifest: &[u8]) -> Vec<(String, Vec<u8>)> {
    let Ok(manifest) = serde_json::from_slice::<Value>(manifest) else { return Vec::new() };
    let layers = manifest["layers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let claim = |layer: &Value| {
        let signature = layer["annotations"][SIGNATURE].as_str().filter(|_| layer["mediaType"] == CLAIM)?;
        let signature = base64::engine::general_purpose::STANDARD.decode(signature).ok()?;
        let digest = layer["digest"].as_str().filter(|digest| crate::reference::is_digest(digest))?;
        Some((digest.to_owned(), signature))
    };
    layers.iter().take(MAX_CLAIMS).filter_map(claim).collect()
}

/// Whether one of these keys (PEM) has made the signature.
pub(crate) fn verifies(keys: &[String], payload: &[u8], signature: &[u8]) -> bool {
    let algorithms: [&'static dyn VerificationAlgorithm; 3] =
        [&ECDSA_P256_SHA256_ASN1, &RSA_PKCS1_2048_8192_SHA256, &ED25519];
    keys.iter().filter_map(|pem| der(pem)).any(|key| {
        let by = |algorithm| UnparsedPublicKey::new(algorithm, &key).verify(payload, signature).is_ok();
        algorithms.into_iter().any(by)
    })
}

/// What a PEM block holds.
fn der(pem: &str) -> Option<Vec<u8>> {
    let text: String = pem.lines().filter(|line| !line.starts_with("-----")).map(str::trim).collect();
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

/// Whether a claim is about this digest.
pub(crate) fn is_of(payload: &[u8], digest: &str) -> bool {
    let claim: Value = serde_json::from_slice(payload).unwrap_or_default();
    claim["critical"]["image"]["docker-manifest-digest"] == digest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_decides() {
        let of = |repositories: &str| SignaturePolicy { repositories: repositories.into(), keys: Vec::new() };
        let policies = [of("ghcr.io/team"), of("ghcr.io/team/open")];
        let found = |name: &str| policy(&policies, name).map(|p| p.repositories.as_str());
        assert_eq!(found("ghcr.io/team/app"), Some("ghcr.io/team"));
        assert_eq!(found("ghcr.io/team/open/app"), Some("ghcr.io/team/open"));
        assert_eq!(found("ghcr.io/teammate/app"), None);
        assert!(policy(&[of("")], "docker.io/library/x").is_some());
    }
}
