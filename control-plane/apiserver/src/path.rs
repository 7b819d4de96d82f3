//! The grammar of paths: `/api/v1/...` and `/apis/<group>/<version>/...`.

/// A path below a group and version, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourcePath {
    /// API group; empty is the core group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Namespace, where the path has one.
    pub namespace: Option<String>,
    /// Plural of the resource.
    pub resource: String,
    /// Name of the object.
    pub name: Option<String>,
    /// Subresource.
    pub subresource: Option<String>,
    /// What follows the subresource, without a leading `/`.
    pub tail: String,
    /// Whether the path was the old `/watch/` form.
    pub watch: bool,
}

/// Group and version of `/apis/<group>/<version>`; `None` for any other path.
pub fn group_version(path: &str) -> Option<(&str, &str)> {
    let (group, version) = path.strip_prefix("/apis/")?.trim_end_matches('/').split_once('/')?;
    (!group.is_empty() && !version.is_empty() && !version.contains('/')).then_some((group, version))
}

/// Takes a path apart; `None` if it is no resource path. Segments are percent-decoded.
pub fn parse(path: &str) -> Option<ResourcePath> {
    let mut rest = path.strip_prefix('/')?;
    let group = if let Some(r) = rest.strip_prefix("api/") {
        rest = r;
        String::new()
    } else {
        let r = rest.strip_prefix("apis/")?;
        let (group, r) = r.split_once('/')?;
        rest = r;
        decode(group)?
    };
    let (version, rest) = rest.split_once('/')?;
    let mut out = ResourcePath { group, version: decode(version)?, ..ResourcePath::default() };
    let rest = match rest.strip_prefix("watch/") {
        Some(r) => {
            out.watch = true;
            r
        }
        None => rest,
    };
    let mut parts = rest.splitn(6, '/').peekable();
    let first = segment(parts.next())?;
    if first != "namespaces" {
        out.resource = first;
        return finish(out, parts);
    }
    let Some(namespace) = parts.next().filter(|p| !p.is_empty()) else {
        out.resource = first;
        return Some(out);
    };
    let namespace = decode(namespace)?;
    match parts.next().filter(|p| !p.is_empty()) {
        // The object itself; its subresources look like resources in it.
        None => {
            out.resource = first;
            out.name = Some(namespace);
            Some(out)
        }
        Some(sub @ ("status" | "finalize")) => {
            out.resource = first;
            out.name = Some(namespace);
            out.subresource = Some(sub.to_owned());
            Some(out)
        }
        Some(resource) => {
            out.resource = decode(resource)?;
            out.namespace = Some(namespace);
            finish(out, parts)
        }
    }
}

fn finish<'a>(mut out: ResourcePath, mut parts: impl Iterator<Item = &'a str>) -> Option<ResourcePath> {
    let Some(name) = parts.next().filter(|p| !p.is_empty()) else { return Some(out) };
    out.name = Some(decode(name)?);
    let Some(subresource) = parts.next().filter(|p| !p.is_empty()) else { return Some(out) };
    out.subresource = Some(decode(subresource)?);
    let rest: Vec<&str> = parts.collect();
    out.tail = rest.join("/");
    Some(out)
}

fn segment(part: Option<&str>) -> Option<String> {
    part.filter(|p| !p.is_empty()).and_then(decode)
}

/// Percent-decodes one segment; `None` if the result is not UTF-8, or holds what no name holds.
fn decode(segment: &str) -> Option<String> {
    let text = if segment.contains('%') {
        crate::query::percent_decode(segment, false)?
    } else {
        segment.to_owned()
    };
    let bad = text == "." || text == ".." || text.contains('/') || text.contains('\0');
    (!bad).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(path: &str) -> (String, Option<String>, String, Option<String>, Option<String>, String) {
        let r = parse(path).unwrap_or_default();
        (r.group, r.namespace, r.resource, r.name, r.subresource, r.tail)
    }
    fn s(x: &str) -> Option<String> {
        Some(x.into())
    }

    #[test]
    fn paths() {
        assert_eq!(p("/api/v1/pods"), ("".into(), None, "pods".into(), None, None, "".into()));
        assert_eq!(p("/api/v1/namespaces"), ("".into(), None, "namespaces".into(), None, None, "".into()));
        assert_eq!(
            p("/api/v1/namespaces/a"),
            ("".into(), None, "namespaces".into(), s("a"), None, "".into())
        );
        assert_eq!(
            p("/api/v1/namespaces/a/finalize"),
            ("".into(), None, "namespaces".into(), s("a"), s("finalize"), "".into())
        );
        assert_eq!(
            p("/api/v1/namespaces/a/pods/b/log"),
            ("".into(), s("a"), "pods".into(), s("b"), s("log"), "".into())
        );
        assert_eq!(
            p("/apis/apps/v1/namespaces/a/deployments/d/scale"),
            ("apps".into(), s("a"), "deployments".into(), s("d"), s("scale"), "".into())
        );
        assert_eq!(
            p("/api/v1/nodes/n/proxy/a/b//c"),
            ("".into(), None, "nodes".into(), s("n"), s("proxy"), "a/b//c".into())
        );
        assert_eq!(
            p("/api/v1/namespaces/a/pods/b/proxy/x/y"),
            ("".into(), s("a"), "pods".into(), s("b"), s("proxy"), "x/y".into())
        );
        assert!(
            parse("/api/v1/watch/namespaces/a/configmaps/c").is_some_and(|r| r.watch && r.name == s("c"))
        );
        assert_eq!(parse("/api/v1/namespaces/a%2Fb/pods"), None);
        assert_eq!(parse("/healthz"), None);
        assert_eq!(parse("/apis/apps"), None);
        assert_eq!(p("/api/v1/pods/"), ("".into(), None, "pods".into(), None, None, "".into()));
    }
}
