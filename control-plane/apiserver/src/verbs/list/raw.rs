//! Lists made of stored bytes: nothing is decoded, and a long list is sent in pieces as it is made.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use coracle_store::KeyValue;
use futures::stream;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};

use super::{Page, metadata};
use crate::stall::{Connection, Turns};
use crate::state::Served;
use crate::{codec, respond as answers};

/// Lists up to this size are one piece; longer ones are pieces of about this size.
const PIECE: usize = 256 << 10;

/// The answer.
pub(super) fn respond(
    served: &Arc<Served>,
    kvs: Vec<Arc<KeyValue>>,
    page: &Page,
    connection: Option<&Connection>,
) -> Response<Body> {
    let total: usize = kvs.iter().map(|kv| kv.value.json.len() + 48).sum();
    let mut out = Vec::with_capacity(total.min(PIECE) + 512);
    out.extend_from_slice(&codec::head(&served.def.list_kind, &served.api_version));
    out.extend_from_slice(b"\"metadata\":");
    out.extend_from_slice(&codec::to_bytes(&metadata(page)));
    out.extend_from_slice(b",\"items\":[");
    let mut items = Items { served: served.clone(), kvs, at: 0 };
    if total <= PIECE {
        items.write(&mut out);
        return answers::json_bytes(StatusCode::OK, out);
    }
    let turns = Turns::of(connection);
    let pieces = stream::unfold((items, Some(out), turns), |(mut items, out, turns)| async move {
        turns.asked();
        let mut out = out?;
        let more = items.write(&mut out);
        let next = more.then(|| Vec::with_capacity(PIECE + 4096));
        turns.given();
        Some((Ok::<_, Infallible>(Bytes::from(out)), (items, next, turns)))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

struct Items {
    served: Arc<Served>,
    kvs: Vec<Arc<KeyValue>>,
    at: usize,
}

impl Items {
    /// Writes about one piece; false when the list is complete.
    fn write(&mut self, out: &mut Vec<u8>) -> bool {
        while let Some(kv) = self.kvs.get(self.at) {
            if out.len() > PIECE {
                return true;
            }
            if self.at > 0 {
                out.push(b',');
            }
            append(out, &self.served.head, kv);
            self.at += 1;
        }
        out.extend_from_slice(b"]}");
        false
    }
}

/// One item: the stored object without its first two members, `kind` and `apiVersion`.
fn append(out: &mut Vec<u8>, head: &[u8], kv: &KeyValue) {
    let splice = kv.value.splice as usize;
    let json = &kv.value.json;
    let (true, Some(before), Some(after)) =
        (!head.is_empty() && json.starts_with(head), json.get(head.len()..splice), json.get(splice..))
    else {
        return kv.value.write_with_revision(kv.mod_revision, out);
    };
    out.push(b'{');
    out.extend_from_slice(before);
    out.extend_from_slice(b"\"resourceVersion\":\"");
    out.extend_from_slice(kv.mod_revision.to_string().as_bytes());
    out.push(b'"');
    if after.first() != Some(&b'}') {
        out.push(b',');
    }
    out.extend_from_slice(after);
}
