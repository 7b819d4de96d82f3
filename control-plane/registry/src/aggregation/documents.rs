//! The OpenAPI documents of other servers. They are read again beside the checks of whether a server is there, which never wait
//! for them; what was said last stays until the server says something else.

use bytes::Bytes;
use coracle_apiserver::delegate::Remote;
use http::header::{ETAG, HeaderValue};
use http::{HeaderMap, StatusCode};

use super::backend::read;

/// Most bytes of a document.
const MAX: usize = 8 << 20;

/// A document, and what its server calls this state of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub bytes: Bytes,
    etag: Option<HeaderValue>,
}

/// The document at a path: the one that is known, unless the server says something else.
pub async fn read_again(
    remote: &Remote,
    address: (&str, u16),
    path: &str,
    known: Option<Document>,
) -> Option<Document> {
    let etag = known.as_ref().and_then(|known| known.etag.clone());
    match read(remote, address, path, MAX, etag).await {
        Ok((status, headers, bytes)) => after(status, &headers, bytes, known),
        Err(why) => {
            tracing::debug!(host = address.0, port = address.1, path, why, "a document is read again later");
            known
        }
    }
}

/// What is known after an answer.
fn after(status: StatusCode, headers: &HeaderMap, bytes: Bytes, known: Option<Document>) -> Option<Document> {
    let is_json = || serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok();
    match status {
        // Who has no such document is served all the same.
        StatusCode::NOT_FOUND => None,
        StatusCode::OK if is_json() => Some(Document { bytes, etag: headers.get(ETAG).cloned() }),
        _ => known,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_stays_until_something_else_is_said() {
        let (none, mut tagged) = (HeaderMap::new(), HeaderMap::new());
        tagged.insert(ETAG, HeaderValue::from_static("\"a\""));
        let first = after(StatusCode::OK, &tagged, "{}".into(), None);
        assert_eq!(first, Some(Document { bytes: "{}".into(), etag: tagged.get(ETAG).cloned() }));
        for (status, body) in [
            (StatusCode::NOT_MODIFIED, ""),
            (StatusCode::INTERNAL_SERVER_ERROR, "{\"kind\":\"Status\"}"),
            (StatusCode::OK, "{\"half"),
        ] {
            assert_eq!(after(status, &none, body.into(), first.clone()), first, "{status} {body}");
        }
        let second = after(StatusCode::OK, &none, "[]".into(), first.clone());
        assert_eq!(second, Some(Document { bytes: "[]".into(), etag: None }));
        assert_eq!(after(StatusCode::NOT_FOUND, &none, "{}".into(), first), None);
    }
}
