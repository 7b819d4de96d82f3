//! Lists in pages: `?n=<how many>&last=<after which>`, with a `Link` header to the next page.

use http::Uri;

/// Most entries of one page.
const PAGE_MAX: usize = 1000;

/// A value of the query, decoded.
pub fn query(uri: &Uri, key: &str) -> Option<String> {
    let pairs = uri.query()?.split('&').map(|p| p.split_once('=').unwrap_or((p, "")));
    pairs.into_iter().find(|(k, _)| *k == key).map(|(_, v)| decode(v))
}

fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let hex: Vec<u8> = bytes.by_ref().take(2).collect();
        let code = std::str::from_utf8(&hex).ok().and_then(|h| u8::from_str_radix(h, 16).ok());
        out.push(code.unwrap_or(b'?'));
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The page of `all` (in order) that a query asks for, and the path of the next one.
pub fn page(all: Vec<String>, uri: &Uri) -> (Vec<String>, Option<String>) {
    let most = query(uri, "n").and_then(|n| n.parse().ok()).unwrap_or(PAGE_MAX).min(PAGE_MAX);
    let after = query(uri, "last").unwrap_or_default();
    let rest: Vec<String> = all.into_iter().filter(|name| after.is_empty() || *name > after).collect();
    let more = rest.len() > most;
    let page: Vec<String> = rest.into_iter().take(most).collect();
    let next = page.last().filter(|_| more).map(|last| format!("{}?n={most}&last={last}", uri.path()));
    (page, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages() {
        let all = || ["a", "b", "c"].map(String::from).to_vec();
        let get = |uri: &str| page(all(), &uri.parse().unwrap());
        assert_eq!(get("/x"), (all(), None));
        assert_eq!(get("/x?n=2"), (vec!["a".into(), "b".into()], Some("/x?n=2&last=b".into())));
        assert_eq!(get("/x?n=2&last=b"), (vec!["c".into()], None));
        assert_eq!(get("/x?n=0"), (vec![], None));
        assert_eq!(query(&"/x?a=b%3Ac".parse().unwrap(), "a").as_deref(), Some("b:c"));
    }
}
