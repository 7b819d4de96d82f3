//! Answers for people: JSON on several lines, for who asks with `?pretty` and for curl, wget and browsers, piece by piece while
//! the answer is sent.

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, USER_AGENT};
use http::{Request, Response};

use crate::compress::slices;
use crate::query::Query;

/// Clients behind which a person sits.
const PEOPLE: [&str; 3] = ["curl", "Wget", "Mozilla/5.0"];
/// Bytes that are indented in one go: deep nesting makes each byte a line of up to 2 * [`MAX_DEPTH`] more.
const PIECE: usize = 4 << 10;
/// Deepest nesting that is indented further.
const MAX_DEPTH: usize = 128;

/// Whether the caller wants to read the answer himself.
pub(crate) fn wanted(request: &Request<Body>) -> bool {
    asked(request.headers(), request.uri().query())
}

fn asked(headers: &HeaderMap, query: Option<&str>) -> bool {
    if query.is_some_and(|q| q.contains("pretty"))
        && let Some(said) = Query::parse(query).get("pretty")
    {
        return said.starts_with(['1', 't']);
    }
    let agent = headers.get(USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    PEOPLE.iter().any(|name| agent.starts_with(name))
}

/// An answer was made readable.
#[derive(Clone)]
struct Done;

/// The answer on several lines, if it is JSON as it is.
pub(crate) fn answer(response: Response<Body>) -> Response<Body> {
    let headers = response.headers();
    let is_json = headers.get(CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    let done = response.extensions().get::<Done>().is_some() || headers.contains_key(CONTENT_ENCODING);
    if !is_json || done {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    parts.headers.remove(CONTENT_LENGTH);
    parts.extensions.insert(Done);
    let mut indenter = Indenter::default();
    let pieces = body.into_data_stream().flat_map(|piece| futures::stream::iter(slices(piece, PIECE)));
    let lines = pieces.map(move |piece| piece.map(|bytes| indenter.take(&bytes)));
    Response::from_parts(parts, Body::from_stream(lines))
}

/// Indents as Go's `json.Indent` does, with two spaces.
#[derive(Default)]
struct Indenter {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The last token opened something, and nothing is in it yet.
    opened: bool,
}

impl Indenter {
    /// The next piece.
    fn take(&mut self, piece: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(piece.len() + piece.len() / 2);
        for &byte in piece {
            if self.in_string {
                out.push(byte);
                self.in_string = self.escaped || byte != b'"';
                self.escaped = !self.escaped && byte == b'\\';
                continue;
            }
            if byte.is_ascii_whitespace() {
                continue;
            }
            match (std::mem::take(&mut self.opened), matches!(byte, b'}' | b']')) {
                (true, false) => {
                    self.depth += 1;
                    self.line(&mut out);
                }
                (false, true) => {
                    self.depth = self.depth.saturating_sub(1);
                    self.line(&mut out);
                }
                _ => {}
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.opened = true,
                _ => {}
            }
            out.push(byte);
            match byte {
                b',' => self.line(&mut out),
                b':' => out.push(b' '),
                _ => {}
            }
        }
        out.into()
    }

    fn line(&self, out: &mut Vec<u8>) {
        out.push(b'\n');
        (0..self.depth.min(MAX_DEPTH)).for_each(|_| out.extend_from_slice(b"  "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn pieces_are_indented_as_go_does() {
        let text = r#"{"a":[1,{"b":"x,{\"}\\"},[],{}],"c":{},"d":null}"#;
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        let wanted = serde_json::to_string_pretty(&value).unwrap();
        for size in [1, 2, 3, 7, 1000] {
            let mut indenter = Indenter::default();
            let pieces: Vec<u8> = text.as_bytes().chunks(size).flat_map(|p| indenter.take(p)).collect();
            assert_eq!(String::from_utf8(pieces).unwrap(), wanted, "in pieces of {size}");
        }
    }

    #[tokio::test]
    async fn no_piece_of_an_answer_is_large() {
        let text = format!("{}{}{}", "[".repeat(128), vec!["0"; 100_000].join(","), "]".repeat(128));
        let response = Response::builder().header(CONTENT_TYPE, "application/json");
        let mut pieces = answer(response.body(Body::from(text)).unwrap()).into_body().into_data_stream();
        let mut most = 0;
        while let Some(piece) = pieces.next().await {
            most = most.max(piece.unwrap().len());
        }
        assert!((1 << 17..=PIECE * (2 * MAX_DEPTH + 2)).contains(&most), "{most} bytes at once");
    }

    #[test]
    fn people_read_lines() {
        let mut headers = HeaderMap::new();
        assert!(asked(&headers, Some("limit=1&pretty=true")) && asked(&headers, Some("pretty=1")));
        assert!(!asked(&headers, None) && !asked(&headers, Some("pretty=false")));
        headers.insert(USER_AGENT, HeaderValue::from_static("curl/7.88.1"));
        assert!(asked(&headers, None) && !asked(&headers, Some("pretty=0")));
        headers.insert(USER_AGENT, HeaderValue::from_static("kubectl/v1.36.2"));
        assert!(!asked(&headers, None));
    }
}
