//! Bearer tokens from a fixed list, and basic authentication whose password is such a token.

use std::collections::HashMap;

use async_trait::async_trait;
use base64::Engine;
use sha2::{Digest, Sha256};

use super::TokenAuthenticator;
use crate::request::UserInfo;

/// Tokens known from the start. They are held as digests, so that looking one up says nothing by its timing.
#[derive(Default)]
pub struct TokenList {
    users: HashMap<[u8; 32], UserInfo>,
}

impl TokenList {
    /// A list of tokens and their users.
    pub fn new(tokens: impl IntoIterator<Item = (String, UserInfo)>) -> Self {
        let users =
            tokens.into_iter().filter(|(t, _)| !t.is_empty()).map(|(t, user)| (digest(&t), user)).collect();
        Self { users }
    }
}

#[async_trait]
impl TokenAuthenticator for TokenList {
    async fn authenticate(&self, token: &str) -> Option<UserInfo> {
        self.users.get(&digest(token)).cloned()
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// The token of an `Authorization` header; `None` for a scheme that is not understood.
pub(crate) fn of_header(header: &str) -> Option<String> {
    let (scheme, rest) = header.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.to_owned());
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let bytes = base64::engine::general_purpose::STANDARD.decode(rest).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        return text.split_once(':').map(|(_, password)| password.to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tokens_and_headers() {
        let list = TokenList::new([("secret".to_owned(), UserInfo::new("admin", &["system:masters"]))]);
        assert_eq!(list.authenticate("secret").await.map(|u| u.name), Some("admin".into()));
        assert!(list.authenticate("secre").await.is_none());
        assert_eq!(of_header("Bearer abc"), Some("abc".into()));
        assert_eq!(of_header("basic dTpzZWNyZXQ="), Some("secret".into()));
        assert_eq!(of_header("Digest x"), None);
        assert_eq!(of_header("Basic %%"), None);
    }
}
