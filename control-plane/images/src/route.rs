//! Paths: a repository's name may hold slashes, so that its end is found from the right.

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// `/v2/`
    Base,
    /// `/v2/_catalog`
    Catalog,
    /// `/v2/<repository>/tags/list`
    Tags(&'a str),
    /// `/v2/<repository>/manifests/<tag or digest>`
    Manifest(&'a str, &'a str),
    /// `/v2/<repository>/blobs/<digest>`
    Blob(&'a str, &'a str),
    /// `/v2/<repository>/blobs/uploads/`
    Uploads(&'a str),
    /// `/v2/<repository>/blobs/uploads/<id>`
    Upload(&'a str, &'a str),
}

/// What a path names; `None` for nothing of this API.
pub fn parse(path: &str) -> Option<Route<'_>> {
    let rest = path.strip_prefix("/v2")?;
    match rest {
        "" | "/" => return Some(Route::Base),
        "/_catalog" => return Some(Route::Catalog),
        _ => {}
    }
    let rest = rest.strip_prefix('/')?;
    if let Some(repository) = rest.strip_suffix("/tags/list") {
        return Some(Route::Tags(repository));
    }
    if let Some(repository) =
        rest.strip_suffix("/blobs/uploads/").or_else(|| rest.strip_suffix("/blobs/uploads"))
    {
        return Some(Route::Uploads(repository));
    }
    let (before, last) = rest.rsplit_once('/')?;
    if let Some(repository) = before.strip_suffix("/blobs/uploads") {
        return Some(Route::Upload(repository, last));
    }
    let (repository, kind) = before.rsplit_once('/')?;
    match kind {
        "manifests" => Some(Route::Manifest(repository, last)),
        "blobs" => Some(Route::Blob(repository, last)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let table = [
            ("/v2/", Some(Route::Base)),
            ("/v2", Some(Route::Base)),
            ("/v2/_catalog", Some(Route::Catalog)),
            ("/v2/a/b/tags/list", Some(Route::Tags("a/b"))),
            ("/v2/a/manifests/v1", Some(Route::Manifest("a", "v1"))),
            ("/v2/a/blobs/sha256:x", Some(Route::Blob("a", "sha256:x"))),
            ("/v2/a/b/blobs/uploads/", Some(Route::Uploads("a/b"))),
            ("/v2/a/blobs/uploads/123", Some(Route::Upload("a", "123"))),
            ("/v2/a", None),
            ("/v2/a/other/x", None),
            ("/x", None),
        ];
        for (path, route) in table {
            assert_eq!(parse(path), route, "{path}");
        }
    }
}
