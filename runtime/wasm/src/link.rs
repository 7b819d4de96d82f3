//! Containers of a pod that import what others of it export: a call from one to the other, without a socket between.
//!
//! Each side keeps what is its own: a store with its memory and limits, its environment, volumes and log. Values are
//! copied from one to the other; handles of resources become handles of the host. An instance of the importing
//! container has an instance of the exporting one to itself, made at its first call and used again afterwards.

mod bridge;
mod lease;
mod provider;
mod types;
mod value;
mod versions;

use std::sync::{Arc, Weak};

use wasmtime::component::types::{ComponentInstance, ComponentItem};

use crate::{compile::Missing, engine, program::Program, sandbox::Sandbox};
pub(crate) use bridge::stub;
pub(crate) use lease::Link;
pub(crate) use provider::Provider;

/// What the instances of a container need in order to call others of its pod.
#[derive(Clone)]
pub(crate) struct Links {
    sandbox: Weak<Sandbox>,
    names: Arc<[String]>,
}

impl Links {
    /// The links of a container to others of its pod.
    pub fn new(sandbox: &Arc<Sandbox>, names: &[String]) -> Links {
        Links { sandbox: Arc::downgrade(sandbox), names: names.into() }
    }

    /// What one instance has: a link to each container, none of which is in use yet.
    pub fn open(&self) -> Vec<Arc<Link>> {
        self.names.iter().map(|name| Arc::new(Link::new(self.sandbox.clone(), name))).collect()
    }
}

/// Satisfies imports of a program by exports of other containers of its pod. Answers the program, ready to be
/// instantiated, and which imports those are. Errors name the import, or the container at fault.
pub(crate) fn join(
    program: Arc<Program>,
    names: &[String],
    sandbox: &Sandbox,
) -> Result<(Arc<Program>, Vec<String>), String> {
    if names.is_empty() {
        return match program.missing.first() {
            None => Ok((program, Vec::new())),
            Some(missing) => Err(missing.words.clone()),
        };
    }
    let words = |error: wasmtime::Error| format!("{error:#}");
    let shared = engine::running(program.abi).map_err(words)?;
    let (engine, mut linker) = (&shared.engine, shared.linker.clone());
    linker.allow_shadowing(true);
    let providers = names
        .iter()
        .map(|name| sandbox.provider(name).ok_or_else(|| absent(name)))
        .collect::<Result<Vec<_>, _>>()?;
    let component = program.component.component_type();
    let (mut linked, mut used) = (Vec::new(), vec![false; names.len()]);
    // One list for all interfaces: a resource of one may be used by the functions of another.
    let mut resources = types::Resources::default();
    for (import, item) in component.imports(engine) {
        let ComponentItem::ComponentInstance(wanted) = item.ty else { continue };
        let mut found: Option<(usize, String, ComponentInstance)> = None;
        for (index, provider) in providers.iter().enumerate() {
            let Some((export, offered)) = provider.exported(import) else { continue };
            if let Some((other, ..)) = found {
                return Err(format!("both {} and {} export {import}", names[other], names[index]));
            }
            found = Some((index, export, offered));
        }
        let Some((index, export, offered)) = found else { continue };
        let misfit = |why: String| format!("{import} as container {} exports it: {why}", names[index]);
        types::compare(engine, &wanted, &offered, &mut resources).map_err(misfit)?;
        let way = bridge::Way { index, export: export.into() };
        bridge::define(engine, &mut linker, import, &wanted, &way).map_err(words)?;
        linked.push(import.to_owned());
        used[index] = true;
    }
    if let Some((name, provider)) =
        names.iter().zip(&providers).zip(&used).find(|(_, used)| !**used).map(|(x, _)| x)
    {
        let exports = provider.interfaces().join(", ");
        return Err(format!(
            "container {name} exports nothing that is imported here; its exports: {exports}"
        ));
    }
    let still = |missing: &&Missing| !linked.contains(&missing.import);
    if let Some(missing) = program.missing.iter().find(still) {
        return Err(missing.words.clone());
    }
    let pre = linker.instantiate_pre(&program.component).map_err(words)?;
    Ok((Arc::new(program.linked(pre)), linked))
}

fn absent(name: &str) -> String {
    format!(
        "it is linked to container {name}, which is not there yet: a container that others import from comes before \
         them in the pod (an init container with restartPolicy Always, say)"
    )
}
