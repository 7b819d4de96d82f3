//! Who calls: client certificates, bearer tokens, basic authentication whose password is a token, and nobody.

mod anonymous;
pub mod cert;
pub mod https;
pub mod jwt;
pub mod token;

use async_trait::async_trait;
use coracle_api::status::Status;

use crate::request::UserInfo;

pub use anonymous::Anonymous;
pub use cert::PeerIdentity;
pub use jwt::TokenKey;
pub use token::TokenList;

/// Turns a bearer token into a user. Authenticators are asked in order; the first answer counts.
#[async_trait]
pub trait TokenAuthenticator: Send + Sync + 'static {
    /// `None` when the token is not one of this authenticator's.
    async fn authenticate(&self, token: &str) -> Option<UserInfo>;
}

/// Finds the caller of a request.
///
/// A credential that is wrong answers 401; no credential at all is the anonymous user, where there is one.
pub(crate) async fn authenticate(
    headers: &http::HeaderMap,
    peer: Option<&PeerIdentity>,
    tokens: &[std::sync::Arc<dyn TokenAuthenticator>],
    anonymous: bool,
) -> Result<UserInfo, Status> {
    if let Some(user) = peer.and_then(|p| p.user.as_ref()) {
        return Ok(user.clone());
    }
    let Some(header) = headers.get(http::header::AUTHORIZATION) else {
        return if anonymous { Ok(UserInfo::anonymous()) } else { Err(unauthorized()) };
    };
    let Some(token) = header.to_str().ok().and_then(token::of_header) else { return Err(unauthorized()) };
    for authenticator in tokens {
        if let Some(user) = authenticator.authenticate(&token).await {
            return Ok(user);
        }
    }
    Err(unauthorized())
}

fn unauthorized() -> Status {
    Status::unauthorized()
}
