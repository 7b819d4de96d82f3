//! The file: `EncryptionConfiguration` of `apiserver.config.k8s.io/v1`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::Rule;
use super::key::Key;

/// Most rules, resources of a rule and keys of a provider.
const MOST: usize = 256;

/// Resources that are meant: `secrets`, `widgets.example.com`, `*.example.com`, `*.` (the core group), `*.*`.
pub(super) struct Pattern {
    /// `None`: all. The core group is `core`, as in keys of the store.
    group: Option<String>,
    /// `None`: all.
    plural: Option<String>,
}

impl Pattern {
    fn read(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.contains('/') {
            return Err(format!("resource {text:?} is not PLURAL or PLURAL.GROUP"));
        }
        let (plural, group) = text.split_once('.').unwrap_or((text, ""));
        if plural == "*" && !text.contains('.') {
            return Err("use '*.' for all resources of the core group, and '*.*' for all resources".into());
        }
        let named = |text: &str| (text != "*").then(|| text.to_owned());
        Ok(Self { group: named(if group.is_empty() { "core" } else { group }), plural: named(plural) })
    }

    /// Whether it means this resource.
    pub fn matches(&self, group: &str, plural: &str) -> bool {
        self.group.as_deref().is_none_or(|g| g == group) && self.plural.as_deref().is_none_or(|p| p == plural)
    }
}

/// Group (`core` for the core group) and plural of a key of the store; `None`: it is no object.
pub(super) fn resource_of(key: &[u8]) -> Option<(&str, &str)> {
    let rest = std::str::from_utf8(key.strip_prefix(b"/registry/")?).ok()?;
    let mut parts = rest.splitn(3, '/');
    Some((parts.next()?, parts.next()?))
}

/// Reads a configuration; says what is wrong with it.
pub(super) fn read(text: &str) -> Result<Vec<Rule>, String> {
    let documents = coracle_api::yaml::to_json_documents(text).map_err(|e| e.to_string())?;
    let [document] = documents.as_slice() else {
        return Err("it is not one document of kind EncryptionConfiguration".into());
    };
    let said = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or("");
    if said("kind") != "EncryptionConfiguration" || said("apiVersion") != "apiserver.config.k8s.io/v1" {
        return Err("its kind is not EncryptionConfiguration of apiserver.config.k8s.io/v1".into());
    }
    items(document, "resources")?.iter().map(rule).collect()
}

/// A list that may not be empty, nor too long.
fn items<'a>(value: &'a Value, name: &str) -> Result<&'a [Value], String> {
    match value.get(name).and_then(Value::as_array).map(Vec::as_slice) {
        Some([]) | None => Err(format!("{name} must be a list that is not empty")),
        Some(list) if list.len() > MOST => Err(format!("{name} has more than {MOST} entries")),
        Some(list) => Ok(list),
    }
}

fn rule(value: &Value) -> Result<Rule, String> {
    let resources = items(value, "resources")?.iter();
    let resources = resources.map(|r| Pattern::read(r.as_str().unwrap_or(""))).collect::<Result<_, _>>()?;
    let mut providers = Vec::new();
    for provider in items(value, "providers")? {
        let Some((name, options)) =
            provider.as_object().filter(|o| o.len() == 1).and_then(|o| o.iter().next())
        else {
            return Err("each entry of providers must name one provider".into());
        };
        match name.as_str() {
            "identity" => providers.push(None),
            "aesgcm" => {
                for key in items(options, "keys")? {
                    providers.push(Some(read_key(key)?));
                }
            }
            other => return Err(format!("provider {other} is not supported; aesgcm and identity are")),
        }
    }
    Ok(Rule { resources, providers })
}

fn read_key(value: &Value) -> Result<Key, String> {
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or("");
    let name = text("name");
    let secret = STANDARD.decode(text("secret").trim());
    let secret = secret.map_err(|_| format!("key {name:?}: its secret is not base64"));
    // What is wrong with the name is said first.
    match secret {
        Ok(secret) => Key::new(name, &secret),
        Err(why) => Key::new(name, &[0; 32]).and(Err(why)),
    }
}

/// A configuration with a new key for Secrets.
pub(super) fn generate() -> String {
    let secret = STANDARD.encode(rand::random::<[u8; 32]>());
    let name = hex::encode(rand::random::<[u8; 4]>());
    format!(
        "# How Secrets lie on disk, in snapshots and on the way between servers. To change the key, put a new one first and\n\
         # restart the server, which writes all Secrets again; then take this one away. With several servers, add the new\n\
         # key behind this one on all of them and restart them before it is put first.\n\
         apiVersion: apiserver.config.k8s.io/v1\n\
         kind: EncryptionConfiguration\n\
         resources:\n\
         - resources: [secrets]\n\
         \x20 providers:\n\
         \x20 - aesgcm:\n\
         \x20     keys:\n\
         \x20     - name: key-{name}\n\
         \x20       secret: {secret}\n\
         \x20 - identity: {{}}\n"
    )
}
