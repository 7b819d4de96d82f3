//! Expressions (CEL) that choose devices: they speak of `device`, with its driver, attributes and capacity.

use std::collections::{BTreeMap, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, LazyLock};

use k8s_openapi::api::resource::v1::{Device, DeviceAttribute};
use kube_cel::KubeCelExt;
use kube_cel::cel::objects::{Key, Map};
use kube_cel::cel::{Context, Program, Value as Cel};

/// The API takes no longer ones.
const LONGEST: usize = 10 * 1024;

static LIBRARY: LazyLock<Context<'static>> = LazyLock::new(|| Context::default().with_all());

/// Selectors that all have to hold.
pub(crate) struct Selectors {
    programs: Vec<Program>,
    /// Domains that the expressions name: what a device lacks of them is there and empty.
    domains: Vec<String>,
}

impl Selectors {
    /// Reads expressions.
    ///
    /// # Errors
    /// What does not compile.
    pub fn read(expressions: &[&str]) -> Result<Self, String> {
        let mut this = Self { programs: Vec::new(), domains: Vec::new() };
        for (at, source) in expressions.iter().enumerate() {
            let compiled = (source.len() <= LONGEST)
                .then(|| std::panic::catch_unwind(|| Program::compile(source).ok()).ok().flatten())
                .flatten();
            let program = compiled
                .ok_or_else(|| format!("selector #{at}: the CEL expression {source:?} does not compile"))?;
            this.programs.push(program);
            this.domains.extend(keys(source));
        }
        Ok(this)
    }

    /// Whether a device is chosen.
    ///
    /// # Errors
    /// An expression that cannot be evaluated, or is neither true nor false.
    pub fn match_device(&self, driver: &str, device: &Device) -> Result<bool, String> {
        if self.programs.is_empty() {
            return Ok(true);
        }
        let mut context = LIBRARY.new_inner_scope();
        context.add_variable_from_value("device", self.device(driver, device));
        for (at, program) in self.programs.iter().enumerate() {
            let run = || program.execute(&context);
            match std::panic::catch_unwind(AssertUnwindSafe(run)) {
                Ok(Ok(Cel::Bool(true))) => {}
                Ok(Ok(Cel::Bool(false))) => return Ok(false),
                Ok(Ok(_)) => return Err(format!("selector #{at}: CEL expression must evaluate to bool")),
                Ok(Err(error)) => return Err(format!("selector #{at}: CEL runtime error: {error}")),
                Err(_) => return Err(format!("selector #{at}: CEL runtime error")),
            }
        }
        Ok(true)
    }

    fn device(&self, driver: &str, device: &Device) -> Cel {
        let attributes =
            device.attributes.iter().flatten().filter_map(|(name, value)| Some((name, of_attribute(value)?)));
        let capacity = device.capacity.iter().flatten();
        let capacity = capacity.filter_map(|(name, has)| Some((name, call("quantity", &has.value.0)?)));
        let entries = [
            ("driver", text(driver)),
            ("attributes", self.by_domain(driver, attributes)),
            ("capacity", self.by_domain(driver, capacity)),
            ("allowMultipleAllocations", Cel::Bool(device.allow_multiple_allocations == Some(true))),
        ];
        map(entries.into_iter().map(|(name, value)| (name.to_owned(), value)))
    }

    // A name without a domain is of the driver's.
    fn by_domain<'a>(&self, driver: &str, values: impl Iterator<Item = (&'a String, Cel)>) -> Cel {
        let mut domains: BTreeMap<String, BTreeMap<String, Cel>> = BTreeMap::new();
        for domain in self.domains.iter().map(String::as_str).chain([driver]) {
            domains.entry(domain.to_owned()).or_default();
        }
        for (name, value) in values {
            let (domain, id) = name.split_once('/').unwrap_or((driver, name));
            domains.entry(domain.to_owned()).or_default().insert(id.to_owned(), value);
        }
        map(domains.into_iter().map(|(domain, values)| (domain, map(values.into_iter()))))
    }
}

fn text(text: &str) -> Cel {
    Cel::String(Arc::new(text.to_owned()))
}

fn map(entries: impl Iterator<Item = (String, Cel)>) -> Cel {
    let map: HashMap<Key, Cel> = entries.map(|(key, value)| (Key::String(Arc::new(key)), value)).collect();
    Cel::Map(Map { map: Arc::new(map) })
}

fn list(values: impl Iterator<Item = Cel>) -> Cel {
    Cel::List(Arc::new(values.collect()))
}

fn of_attribute(value: &DeviceAttribute) -> Option<Cel> {
    if let Some(bool) = value.bool {
        return Some(Cel::Bool(bool));
    }
    if let Some(int) = value.int {
        return Some(Cel::Int(int));
    }
    if let Some(string) = &value.string {
        return Some(text(string));
    }
    if let Some(version) = &value.version {
        return call("semver", version);
    }
    if let Some(bools) = &value.bools {
        return Some(list(bools.iter().map(|b| Cel::Bool(*b))));
    }
    if let Some(ints) = &value.ints {
        return Some(list(ints.iter().map(|i| Cel::Int(*i))));
    }
    if let Some(strings) = &value.strings {
        return Some(list(strings.iter().map(|s| text(s))));
    }
    value.versions.as_ref().map(|all| list(all.iter().filter_map(|v| call("semver", v))))
}

/// The value that a function of the library makes of a text, so that its own types need not be named here.
fn call(function: &str, argument: &str) -> Option<Cel> {
    let plain = argument.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\');
    if !plain {
        return None;
    }
    let program = Program::compile(&format!("{function}(\"{argument}\")")).ok()?;
    program.execute(&LIBRARY).ok()
}

/// The keys in brackets of an expression: `x["key"]`.
fn keys(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    for quote in ['"', '\''] {
        for part in source.split(&format!("[{quote}")).skip(1) {
            found.extend(part.split_once(quote).map(|(key, _)| key.to_owned()));
        }
    }
    found
}
