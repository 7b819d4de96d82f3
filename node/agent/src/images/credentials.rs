//! Pure: which of a pod's pull secrets fit an image.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coracle_cri_api::v1::AuthConfig;
use serde::Deserialize;
use std::collections::BTreeMap;

use crate::env::Keys;

/// The registry of a name without one, as Docker's files call it.
const DOCKER: [&str; 2] = ["index.docker.io", "docker.io"];

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

/// The entries of pull secrets that fit an image, the closest first.
pub fn matching<'a>(image: &str, secrets: impl IntoIterator<Item = &'a Keys>) -> Vec<AuthConfig> {
    let mut found: Vec<(usize, AuthConfig)> = Vec::new();
    for keys in secrets {
        for (registry, entry) in entries(keys) {
            if let Some(closeness) = fits(&registry, image)
                && let Some(auth) = auth(&registry, entry)
            {
                found.push((closeness, auth));
            }
        }
    }
    found.sort_by_key(|(closeness, _)| std::cmp::Reverse(*closeness));
    found.into_iter().map(|(_, auth)| auth).collect()
}

/// Of `kubernetes.io/dockerconfigjson` and of the older `kubernetes.io/dockercfg`; what cannot be read is none.
fn entries(keys: &Keys) -> BTreeMap<String, Entry> {
    if let Some(text) = keys.get(".dockerconfigjson") {
        return serde_json::from_slice::<File>(text).map(|f| f.auths).unwrap_or_default();
    }
    keys.get(".dockercfg").and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default()
}

fn auth(registry: &str, entry: Entry) -> Option<AuthConfig> {
    let (mut username, mut password) = (entry.username, entry.password);
    if username.is_empty() && !entry.auth.is_empty() {
        let plain = String::from_utf8(STANDARD.decode(entry.auth.trim()).ok()?).ok()?;
        let (name, word) = plain.split_once(':')?;
        (username, password) = (name.to_owned(), word.trim_end_matches('\0').to_owned());
    }
    Some(AuthConfig {
        username,
        password,
        auth: String::new(),
        server_address: registry.to_owned(),
        identity_token: entry.identitytoken,
        registry_token: entry.registrytoken,
    })
}

/// Host and path of an image, without tag and digest.
fn repository(image: &str) -> (String, String) {
    let bare = image.split('@').next().unwrap_or_default();
    let bare = match bare.rsplit_once(':') {
        Some((before, tag)) if !tag.contains('/') => before,
        _ => bare,
    };
    match bare.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => {
            (host.to_owned(), path.to_owned())
        }
        _ => ("docker.io".to_owned(), bare.to_owned()),
    }
}

/// How closely a registry of a file fits an image: the length of what fits.
fn fits(registry: &str, image: &str) -> Option<usize> {
    let bare = registry.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    // Docker's own files name the version of the protocol.
    let path = if matches!(path, "v1" | "v2") { "" } else { path };
    let (image_host, image_path) = repository(image);
    let both_docker = DOCKER.contains(&host) && DOCKER.contains(&image_host.as_str());
    let host_fits = both_docker
        || host == image_host
        || host.strip_prefix("*.").is_some_and(|rest| {
            image_host
                .strip_suffix(rest)
                .and_then(|sub| sub.strip_suffix('.'))
                .is_some_and(|sub| !sub.contains('.'))
        });
    let path_fits = path.is_empty()
        || image_path.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    (host_fits && path_fits).then_some(bare.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_entry_counts_first() {
        let file = serde_json::json!({"auths": {
            "host:5000": {"auth": STANDARD.encode("wide:one:two")},
            "https://host:5000/team": {"username": "close", "password": "x"},
            "other": {"username": "no", "password": "x"},
        }});
        let keys = Keys::from([(".dockerconfigjson".to_owned(), file.to_string().into_bytes())]);
        let found = matching("host:5000/team/app:v1", [&keys]);
        let users: Vec<_> = found.iter().map(|a| (a.username.as_str(), a.password.as_str())).collect();
        assert_eq!(users, [("close", "x"), ("wide", "one:two")]);
        assert_eq!(matching("host:5000/teams/app", [&keys]).len(), 1);
        assert!(matching("app", [&keys]).is_empty());
    }

    #[test]
    fn hosts() {
        for (registry, image, expected) in [
            ("https://index.docker.io/v1/", "app:v1", true),
            ("docker.io", "library/app@sha256:00", true),
            ("*.example.com", "a.example.com/x", true),
            ("*.example.com", "a.b.example.com/x", false),
            ("*.example.com", "example.com/x", false),
            ("localhost", "localhost/x", true),
        ] {
            assert_eq!(fits(registry, image).is_some(), expected, "{registry} {image}");
        }
    }
}
