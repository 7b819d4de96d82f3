//! gzip of large answers, for callers that take it: piece by piece, while the answer is sent.

use std::io::Write;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, HeaderValue, VARY};
use http::{HeaderMap, Response};

/// Answers up to this size are sent as they are, as Kubernetes does.
const THRESHOLD: u64 = 128 << 10;
/// As fast as possible: the network is rarely slower than this.
const LEVEL: u32 = 1;
/// Bytes that are compressed in one go, so that other calls of the thread get their turn.
const PIECE: usize = 128 << 10;

/// Whether a caller takes gzip.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    accepted.flat_map(|v| v.split(',')).any(|clause| {
        let (name, parameter) = clause.split_once(';').unwrap_or((clause, ""));
        let refused = parameter.trim().strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0_f32));
        name.trim() == "gzip" && !refused
    })
}

/// The answer, compressed if it is large and the caller of these headers takes it.
pub(crate) fn answer(headers: &HeaderMap, response: Response<Body>) -> Response<Body> {
    // An answer of unknown size is a long list.
    let large = HttpBody::size_hint(response.body()).exact().is_none_or(|size| size > THRESHOLD);
    if !large || !takes_gzip(headers) || response.headers().contains_key(CONTENT_ENCODING) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    let pieces = body.into_data_stream().flat_map(|piece| futures::stream::iter(slices(piece, PIECE)));
    let encoder = GzEncoder::new(Vec::with_capacity(PIECE / 4), Compression::new(LEVEL));
    let compressed =
        futures::stream::unfold((Box::pin(pieces), Some(encoder)), |(mut pieces, encoder)| async {
            let mut encoder = encoder?;
            loop {
                match pieces.next().await {
                    Some(Ok(piece)) => {
                        if let Err(error) = encoder.write_all(&piece) {
                            return Some((Err(axum::Error::new(error)), (pieces, None)));
                        }
                        let out = std::mem::take(encoder.get_mut());
                        if !out.is_empty() {
                            return Some((Ok(Bytes::from(out)), (pieces, Some(encoder))));
                        }
                    }
                    Some(Err(error)) => return Some((Err(error), (pieces, None))),
                    None => {
                        let end = encoder.finish().map(Bytes::from).map_err(axum::Error::new);
                        return Some((end, (pieces, None)));
                    }
                }
            }
        });
    Response::from_parts(parts, Body::from_stream(compressed))
}

/// A piece of a body as pieces of at most so many bytes, or why there is none.
pub(crate) fn slices(
    piece: Result<Bytes, axum::Error>,
    most: usize,
) -> impl Iterator<Item = Result<Bytes, axum::Error>> {
    let (mut bytes, error) = match piece {
        Ok(bytes) => (bytes, None),
        Err(error) => (Bytes::new(), Some(Err(error))),
    };
    let slices = std::iter::from_fn(move || {
        let length = bytes.len().min(most);
        (length > 0).then(|| Ok(bytes.split_to(length)))
    });
    slices.chain(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::io::Read;

    fn headers(accept: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(accept));
        headers
    }

    #[tokio::test]
    async fn large_answers_are_compressed_for_who_takes_it() {
        let text: Vec<u8> = (0..100_000_u32).flat_map(|i| i.to_string().into_bytes()).collect();
        let response = answer(&headers("br, gzip;q=0.5"), Response::new(Body::from(text.clone())));
        assert_eq!(response.headers().get(CONTENT_ENCODING), Some(&HeaderValue::from_static("gzip")));
        let bytes = response.into_body().collect().await.expect("body").to_bytes();
        assert!(bytes.len() < text.len());
        let mut back = Vec::new();
        flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut back).expect("gzip");
        assert_eq!(back, text);
        for (accept, body) in
            [("gzip", vec![b'x'; 100 << 10]), ("gzip;q=0", text.clone()), ("identity", text.clone())]
        {
            let response = answer(&headers(accept), Response::new(Body::from(body)));
            assert_eq!(response.headers().get(CONTENT_ENCODING), None, "{accept}");
        }
    }
}
