//! OpenAPI documents of what a server serves.

use crate::meta::Gvk;

/// One resource or subresource that is served.
#[derive(Clone, Debug)]
pub struct OpenapiResource {
    /// The kind of its objects; for a subresource, of its body (`Scale`).
    pub gvk: Gvk,
    /// The group and version whose path it is under; differs from `gvk` for some subresources.
    pub group: String,
    pub version: String,
    /// `pods`
    pub plural: String,
    /// `status`, `scale`; `None` for the resource itself.
    pub subresource: Option<String>,
    pub namespaced: bool,
    /// Kubernetes' verbs: `get list watch create update patch delete deletecollection`.
    pub verbs: Vec<String>,
}

/// The OpenAPI v3 document of a group and version (`("", "v1")`, `("apps", "v1")`), as JSON bytes.
pub fn v3(group: &str, version: &str, served: &[OpenapiResource]) -> Vec<u8> {
    let _ = (group, version, served);
    Vec::new()
}

/// The index at `/openapi/v3`, as JSON bytes.
pub fn v3_index(served: &[OpenapiResource]) -> Vec<u8> {
    let _ = served;
    Vec::new()
}

/// The OpenAPI v2 document at `/openapi/v2`, as JSON bytes.
pub fn v2_json(served: &[OpenapiResource]) -> Vec<u8> {
    let _ = served;
    Vec::new()
}

/// The OpenAPI v2 document as gnostic protobuf: `application/com.github.proto-openapi.spec.v2@v1.0+protobuf`.
pub fn v2_protobuf(served: &[OpenapiResource]) -> Vec<u8> {
    let _ = served;
    Vec::new()
}
