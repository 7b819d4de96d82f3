//! What the host grants to guests: one module a capability. Each says how it is linked and what one instance gets.

pub(crate) mod cli;
pub(crate) mod config;
pub(crate) mod filesystem;
pub(crate) mod http;
pub(crate) mod keyvalue;
pub(crate) mod nn;
pub(crate) mod observe;
pub(crate) mod sockets;

use crate::protocol::Capabilities;

/// Interfaces that a container has only where they were granted to it: what they need, in words, and whether they were.
type Granted = (&'static str, &'static str, fn(&Capabilities) -> bool);

const GRANTED: &[Granted] = &[config::GRANTED, keyvalue::GRANTED, nn::GRANTED, observe::GRANTED];

/// Refuses a component that imports what its container was not granted.
pub(crate) fn permit<'a>(
    imports: impl Iterator<Item = &'a String>,
    capabilities: &Capabilities,
) -> Result<(), String> {
    for import in imports {
        let rule = GRANTED.iter().find(|(prefix, ..)| import.starts_with(prefix));
        if let Some((_, needs, granted)) = rule
            && !granted(capabilities)
        {
            return Err(format!(
                "the component imports {import}, which the container was not granted: {needs}"
            ));
        }
    }
    Ok(())
}
