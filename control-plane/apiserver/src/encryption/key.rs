//! One AES-GCM key with its name.

use std::sync::Arc;

use aws_lc_rs::aead::{
    AES_128_GCM, AES_192_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use bytes::Bytes;

/// A key that seals and opens.
#[derive(Clone)]
pub(super) struct Key {
    /// What everything begins with that this key has sealed.
    prefix: String,
    key: Arc<LessSafeKey>,
}

impl Key {
    /// Takes 16, 24 or 32 bytes.
    pub fn new(name: &str, secret: &[u8]) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || !name.chars().all(plain) {
            return Err(format!(
                "key name {name:?}: only letters, digits, '-', '_' and '.' may be in a name"
            ));
        }
        let algorithm = match secret.len() {
            16 => &AES_128_GCM,
            24 => &AES_192_GCM,
            32 => &AES_256_GCM,
            n => return Err(format!("key {name}: it has {n} bytes, it must have 16, 24 or 32")),
        };
        let key = UnboundKey::new(algorithm, secret).map_err(|_| format!("key {name} cannot be used"))?;
        Ok(Self { prefix: format!("k8s:enc:aesgcm:v1:{name}:"), key: Arc::new(LessSafeKey::new(key)) })
    }

    /// Whether a key of this name has sealed it.
    pub fn sealed(&self, sealed: &[u8]) -> bool {
        sealed.starts_with(self.prefix.as_bytes())
    }

    /// Seals what is stored under `place`, so that it cannot be moved to another.
    pub fn seal(&self, place: &[u8], plain: &[u8]) -> Result<Bytes, String> {
        let failed = |_| "the value cannot be encrypted".to_owned();
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).map_err(failed)?;
        let start = self.prefix.len() + NONCE_LEN;
        let mut out = Vec::with_capacity(start + plain.len() + self.key.algorithm().tag_len());
        out.extend_from_slice(self.prefix.as_bytes());
        out.extend_from_slice(&nonce);
        out.extend_from_slice(plain);
        let body = out.get_mut(start..).unwrap_or_default();
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::from(place), body).map_err(failed)?;
        out.extend_from_slice(tag.as_ref());
        Ok(out.into())
    }

    /// Opens what was sealed for `place`; `None`: with another key, for another place, or it was changed.
    pub fn open(&self, place: &[u8], sealed: &[u8]) -> Option<Bytes> {
        let rest = sealed.strip_prefix(self.prefix.as_bytes())?;
        let (nonce, body) = rest.split_first_chunk::<NONCE_LEN>()?;
        let mut body = body.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.key.open_in_place(nonce, Aad::from(place), &mut body).ok()?.len();
        body.truncate(length);
        Some(body.into())
    }
}
