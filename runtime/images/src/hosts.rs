//! What a node is told about single registries, in containerd's files: `<folder>/<registry>/hosts.toml`, or only the
//! certificates that lie there (`*.crt`, `*.cert` with its `*.key`), as Docker has it.
//!
//! The files are read at each pull, so that a new certificate needs no restart. What is not understood is refused, so
//! that nobody believes in a setting that has no effect.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Whom a connection trusts, and as whom it shows itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// Certificates (PEM) to trust instead of the system's.
    pub only_pem: Option<String>,
    /// Certificates (PEM) to trust beside the system's.
    pub more_pem: Vec<String>,
    /// Certificate and key (PEM) to show.
    pub identity: Option<Identity>,
    /// Whoever answers is believed.
    pub skip_verify: bool,
}

/// A client certificate and its key, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity(pub String);

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity(..)")
    }
}

/// Where images of a registry are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// `host:port`.
    pub authority: String,
    pub tls: bool,
    pub trust: Trust,
    /// It is asked what a tag means, too.
    pub resolves: bool,
    /// It is the registry itself, and no stand-in: credentials for the registry are for it.
    pub itself: bool,
}

/// The longest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// The most files of a registry's folder.
const MAX_FILES: usize = 64;
/// A TLS client cannot try another one.
const ONE_IDENTITY: &str = "client: only one certificate can be shown to a registry";
/// The folder for registries without one of their own.
const EVERY: &str = "_default";

/// The hosts for a registry in their order, by the first of the folders that says anything about it. `plain`: without a
/// word on it, the registry itself is spoken to over HTTP. `Err` says what cannot be read or is not understood.
pub fn hosts(folders: &[PathBuf], registry: &str, plain: bool) -> Result<Option<Vec<Host>>, String> {
    let colon = registry.replace(':', "_");
    // In containerd's order, and then what is left of it where a file system knows no better.
    let names = [format!("{colon}_"), registry.to_owned(), colon, EVERY.to_owned()];
    let found = names.iter().flat_map(|name| folders.iter().map(move |f| f.join(name))).find(|d| d.is_dir());
    let Some(folder) = found else { return Ok(None) };
    let file = folder.join("hosts.toml");
    match file.is_file() {
        true => read(&file)
            .and_then(|text| parse(&text, &folder, registry, plain))
            .map(Some)
            .map_err(|reason| format!("{}: {reason}", file.display())),
        false => {
            let trust = lying_there(&folder)?;
            let tls = !plain || trust != Trust::default();
            let authority = registry.to_owned();
            Ok(Some(vec![Host { authority, tls, trust, resolves: true, itself: true }]))
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    server: Option<String>,
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMore>,
    client: Option<Client>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    host: toml::Table,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMore>,
    client: Option<Client>,
    #[serde(default)]
    skip_verify: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(PathBuf),
    More(Vec<PathBuf>),
}

/// A file with certificate and key, several, or pairs of both.
#[derive(Deserialize)]
#[serde(untagged)]
enum Client {
    One(PathBuf),
    More(Vec<PathBuf>),
    Pairs(Vec<Vec<PathBuf>>),
}

fn parse(text: &str, folder: &Path, registry: &str, plain: bool) -> Result<Vec<Host>, String> {
    let file: File = toml::from_str(text).map_err(|e| e.message().to_owned())?;
    let server_trust = trust(folder, file.ca, file.client, file.skip_verify)?;
    let (server, server_tls) = match &file.server {
        Some(server) => authority(server)?,
        None => (registry.to_owned(), !plain || server_trust != Trust::default()),
    };
    let mut hosts = Vec::new();
    for (url, entry) in file.host {
        let entry: Entry = entry.try_into().map_err(|e| format!("host {url:?}: {}", e.message()))?;
        let (authority, tls) = authority(&url)?;
        let trust = trust(folder, entry.ca, entry.client, entry.skip_verify)?;
        let can = |what: &str| entry.capabilities.as_ref().is_none_or(|c| c.iter().any(|c| c == what));
        if can("pull") {
            let itself = authority == server || is_itself(registry, &authority);
            hosts.push(Host { authority, tls, trust, resolves: can("resolve"), itself });
        }
    }
    let can = |what: &str| file.capabilities.as_ref().is_none_or(|c| c.iter().any(|c| c == what));
    let resolves = can("resolve");
    let last = Host { authority: server, tls: server_tls, trust: server_trust, resolves, itself: true };
    // It comes last, unless that would be the same question again.
    if can("pull") && !hosts.iter().any(|h| *h == last || *h == Host { resolves: true, ..last.clone() }) {
        hosts.push(last);
    }
    Ok(hosts)
}

/// Whether this is where a registry of that name answers.
fn is_itself(registry: &str, authority: &str) -> bool {
    let hub = ["registry-1.docker.io", "index.docker.io"];
    authority == registry || (registry == "docker.io" && hub.contains(&authority))
}

/// `host:port` of a URL, and whether it is spoken to over TLS.
fn authority(url: &str) -> Result<(String, bool), String> {
    let (rest, tls) = match url.strip_prefix("http://") {
        Some(rest) => (rest, false),
        None => (url.strip_prefix("https://").unwrap_or(url), true),
    };
    let rest = rest.trim_end_matches('/');
    let rest = rest.strip_suffix("/v2").unwrap_or(rest);
    if rest.is_empty() || rest.contains(['/', '@', '?', '#']) {
        return Err(format!("{url:?} is not http(s)://host[:port] (paths are not supported)"));
    }
    Ok((rest.to_owned(), tls))
}

fn trust(
    folder: &Path,
    ca: Option<OneOrMore>,
    client: Option<Client>,
    skip_verify: bool,
) -> Result<Trust, String> {
    let at = |path: &PathBuf| read(&folder.join(path));
    let authorities = match ca {
        None => Vec::new(),
        Some(OneOrMore::One(path)) => vec![path],
        Some(OneOrMore::More(paths)) => paths,
    };
    let mut identities = match client {
        None => Vec::new(),
        Some(Client::One(path)) => vec![vec![path]],
        Some(Client::More(paths)) => paths.into_iter().map(|path| vec![path]).collect(),
        Some(Client::Pairs(pairs)) => pairs,
    };
    if identities.len() > 1 {
        return Err(ONE_IDENTITY.into());
    }
    let identity = identities.pop().unwrap_or_default();
    let identity: Vec<String> = identity.iter().map(at).collect::<Result<_, _>>()?;
    Ok(Trust {
        only_pem: None,
        more_pem: authorities.iter().map(at).collect::<Result<_, _>>()?,
        identity: (!identity.is_empty()).then(|| Identity(identity.join("\n"))),
        skip_verify,
    })
}

/// The certificates in a folder without a `hosts.toml`.
fn lying_there(folder: &Path) -> Result<Trust, String> {
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let files = entries.take(MAX_FILES + 1).map(|entry| entry.map(|e| e.path()));
    let mut files = files.collect::<Result<Vec<_>, _>>().map_err(|e| format!("{}: {e}", folder.display()))?;
    if files.len() > MAX_FILES {
        return Err(format!("{} has more than {MAX_FILES} files", folder.display()));
    }
    files.sort();
    let of = |kind: &'static str| files.iter().filter(move |f| f.extension().is_some_and(|e| e == kind));
    if of("cert").count() > 1 {
        return Err(format!("{}: *.cert: {ONE_IDENTITY}", folder.display()));
    }
    let identity = match of("cert").next() {
        None => None,
        Some(cert) => Some(Identity(read(cert)? + "\n" + &read(&cert.with_extension("key"))?)),
    };
    let more_pem = of("crt").map(|path| read(path)).collect::<Result<_, _>>()?;
    Ok(Trust { more_pem, identity, ..Trust::default() })
}

fn read(path: &Path) -> Result<String, String> {
    let words = |e: std::io::Error| format!("reading {}: {e}", path.display());
    if std::fs::metadata(path).map_err(words)?.len() > MAX_FILE {
        return Err(format!("{} is longer than {MAX_FILE} bytes", path.display()));
    }
    std::fs::read_to_string(path).map_err(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn files_of_containerd_are_read() {
        let text = r#"
            server = "https://reg.example:5000"
            [host."https://near.example"]
              capabilities = ["pull"]
              ca = "near.crt"
              client = [["near.cert", "near.key"]]
            [host."http://a.example:80/v2"]
            [host."https://push.example"]
              capabilities = ["push"]
              skip_verify = true
        "#;
        let dir = with(&[
            ("reg.example_5000_/hosts.toml", text),
            ("reg.example_5000_/near.crt", "CA"),
            ("reg.example_5000_/near.cert", "CERT"),
            ("reg.example_5000_/near.key", "KEY"),
        ]);
        let found = hosts(&[dir.path().into()], "reg.example:5000", false).unwrap().unwrap();
        let brief: Vec<_> = found.iter().map(|h| (h.authority.as_str(), h.tls, h.resolves)).collect();
        assert_eq!(
            brief,
            [("near.example", true, false), ("a.example:80", false, true), ("reg.example:5000", true, true)]
        );
        assert_eq!(found.iter().map(|h| h.itself).collect::<Vec<_>>(), [false, false, true]);
        assert_eq!(found[0].trust.more_pem, ["CA"]);
        assert_eq!(found[0].trust.identity, Some(Identity("CERT\nKEY".into())));
        assert_eq!(hosts(&[dir.path().into()], "other.example", false), Ok(None));
    }

    /// Who is asked, over TLS, what a tag means, with the registry's credentials.
    fn asked(registry: &str, text: &str) -> Vec<(String, bool, bool, bool)> {
        let dir = with(&[(&format!("{registry}/hosts.toml"), text)]);
        let found = hosts(&[dir.path().into()], registry, false).unwrap().unwrap();
        found.into_iter().map(|h| (h.authority, h.tls, h.resolves, h.itself)).collect()
    }

    #[test]
    fn the_server_comes_last() {
        let hub = "registry-1.docker.io";
        for text in [
            format!("server = \"https://{hub}\"\n[host.\"https://{hub}\"]"),
            format!("server = \"https://{hub}\""),
        ] {
            assert_eq!(asked("docker.io", &text), [(hub.to_owned(), true, true, true)], "{text}");
        }
        let (reg, here) = ("reg.example:5000", "[host.\"https://reg.example:5000\"]");
        let found = asked(reg, &format!("{here}\ncapabilities = [\"pull\"]"));
        assert_eq!(found, [(reg.to_owned(), true, false, true), (reg.to_owned(), true, true, true)]);
        let plain = "server = \"https://reg.example:5000\"\n[host.\"http://reg.example:5000\"]";
        assert_eq!(
            asked(reg, plain),
            [(reg.to_owned(), false, true, true), (reg.to_owned(), true, true, true)]
        );
        let less = format!("capabilities = [\"pull\"]\n{here}");
        assert_eq!(asked(reg, &less), [(reg.to_owned(), true, true, true)]);
    }

    #[test]
    fn the_folder_without_a_colon_comes_first() {
        let dir = with(&[
            ("reg.example:5000/hosts.toml", "server = \"https://second.example\""),
            ("reg.example_5000_/hosts.toml", "server = \"https://first.example\""),
        ]);
        let found = hosts(&[dir.path().into()], "reg.example:5000", false).unwrap().unwrap();
        assert_eq!(found[0].authority, "first.example");
    }

    #[test]
    fn certificates_that_only_lie_there_count() {
        let dir = with(&[("127.0.0.1:5000/ca.crt", "CA"), ("_default/hosts.toml", "skip_verify = true")]);
        let found = hosts(&[dir.path().into()], "127.0.0.1:5000", true).unwrap().unwrap();
        assert!(found[0].tls && found[0].trust.more_pem == ["CA"], "{found:?}");
        let found = hosts(&[dir.path().into()], "other.example", true).unwrap().unwrap();
        assert!(found[0].tls && found[0].trust.skip_verify && found[0].authority == "other.example");
        let several = with(&[("a.example/a.cert", "A"), ("a.example/a.key", "A"), ("a.example/b.cert", "B")]);
        let error = hosts(&[several.path().into()], "a.example", false).unwrap_err();
        assert!(error.contains("only one certificate"), "{error}");
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (text, words) in [
            ("sever = \"x\"", "sever"),
            ("[host.\"https://a/b/c\"]", "paths are not supported"),
            ("[host.\"https://a\"]\noverride_path = true", "override_path"),
            ("ca = \"absent.crt\"", "absent.crt"),
            ("server = ", "hosts.toml"),
            ("client = [[\"a.cert\", \"a.key\"], [\"b.cert\", \"b.key\"]]", "only one certificate"),
        ] {
            let dir = with(&[("a.example/hosts.toml", text)]);
            let error = hosts(&[dir.path().into()], "a.example", false).unwrap_err();
            assert!(error.contains(words) && error.contains("hosts.toml"), "{text}: {error}");
        }
    }
}
