//! Values on their way from one store to another: data is as it was, handles of resources are exchanged.

use wasmtime::{
    StoreContextMut,
    component::{Resource, ResourceAny, Val},
};

use super::lease::Held;
use crate::guest::Guest;

/// What an importing instance has handles of: a resource of the other container, by a number.
pub(super) struct Remote;

/// An argument, for the exporting side.
pub(super) fn outward(
    value: &Val,
    caller: &mut StoreContextMut<'_, Guest>,
    held: &mut Held,
) -> wasmtime::Result<Val> {
    convert(value, &mut |handle| {
        let handle: Resource<Remote> = handle.try_into_resource(&mut *caller)?;
        let rep = handle.rep();
        let found = if handle.owned() { held.take(rep) } else { held.get(rep) };
        found.ok_or_else(|| wasmtime::Error::msg("the container that this resource came from has ended"))
    })
}

/// A result, for the importing side.
pub(super) fn inward(
    value: &Val,
    caller: &mut StoreContextMut<'_, Guest>,
    held: &mut Held,
) -> wasmtime::Result<Val> {
    convert(value, &mut |handle| {
        let rep = held.keep(handle)?;
        Resource::<Remote>::new_own(rep).try_into_resource_any(&mut *caller)
    })
}

type Exchange<'a> = &'a mut dyn FnMut(ResourceAny) -> wasmtime::Result<ResourceAny>;

/// Depth is that of the type, which validation bounds.
fn convert(value: &Val, exchange: Exchange<'_>) -> wasmtime::Result<Val> {
    fn boxed(value: &Option<Box<Val>>, exchange: Exchange<'_>) -> wasmtime::Result<Option<Box<Val>>> {
        value.as_ref().map(|value| convert(value, exchange).map(Box::new)).transpose()
    }
    fn all(values: &[Val], exchange: Exchange<'_>) -> wasmtime::Result<Vec<Val>> {
        match values.first() {
            // The one case that is long: bytes.
            Some(Val::U8(_)) => Ok(values.to_vec()),
            _ => values.iter().map(|value| convert(value, exchange)).collect(),
        }
    }
    Ok(match value {
        Val::Resource(handle) => Val::Resource(exchange(*handle)?),
        Val::List(values) => Val::List(all(values, exchange)?),
        Val::FixedLengthList(values) => Val::FixedLengthList(all(values, exchange)?),
        Val::Tuple(values) => {
            Val::Tuple(values.iter().map(|value| convert(value, exchange)).collect::<Result<_, _>>()?)
        }
        Val::Record(fields) => {
            let field = |(name, value): &(String, Val)| Ok((name.clone(), convert(value, exchange)?));
            Val::Record(fields.iter().map(field).collect::<wasmtime::Result<_>>()?)
        }
        Val::Map(entries) => {
            let entry = |(key, value): &(Val, Val)| Ok((convert(key, exchange)?, convert(value, exchange)?));
            Val::Map(entries.iter().map(entry).collect::<wasmtime::Result<_>>()?)
        }
        Val::Variant(name, value) => Val::Variant(name.clone(), boxed(value, exchange)?),
        Val::Option(value) => Val::Option(boxed(value, exchange)?),
        Val::Result(Ok(value)) => Val::Result(Ok(boxed(value, exchange)?)),
        Val::Result(Err(value)) => Val::Result(Err(boxed(value, exchange)?)),
        Val::Future(_) | Val::Stream(_) | Val::ErrorContext(_) => {
            return Err(wasmtime::Error::msg(super::types::NO_STREAMS));
        }
        plain => plain.clone(),
    })
}
