//! What an importing component finds in its linker: functions that call another container.

use std::sync::Arc;

use wasmtime::{
    AsContextMut, Engine, StoreContextMut,
    component::{
        Linker, ResourceType, Val,
        types::{ComponentInstance, ComponentItem},
    },
};

use super::value::{Remote, inward, outward};
use crate::guest::Guest;

/// To which link a call goes, and to which export there.
#[derive(Clone)]
pub(super) struct Way {
    /// Of the instance's links.
    pub index: usize,
    /// The interface as the other container exports it.
    pub export: Arc<str>,
}

/// Defines an imported interface as what another container exports.
pub(super) fn define(
    engine: &Engine,
    linker: &mut Linker<Guest>,
    import: &str,
    interface: &ComponentInstance,
    way: &Way,
) -> wasmtime::Result<()> {
    let mut instance = linker.instance(import)?;
    for (name, item) in interface.exports(engine) {
        let (way, function) = (way.clone(), Arc::<str>::from(name));
        match item.ty {
            ComponentItem::ComponentFunc(ty) if ty.async_() => {
                instance.func_new_concurrent(name, move |caller, _, arguments, results| {
                    let (way, function) = (way.clone(), function.clone());
                    Box::pin(async move {
                        let link =
                            caller.with(|mut access| access.as_context_mut().data().link(way.index))?;
                        let mut held = apart(async move { link.hold().await }).await?;
                        let arguments = caller.with(|mut access| {
                            let mut caller = access.as_context_mut();
                            convert(arguments, |value| outward(value, &mut caller, &mut held))
                        })?;
                        let mut answers = vec![Val::Bool(false); results.len()];
                        let (answers, mut held) = apart(async move {
                            held.call(&way.export, &function, &arguments, &mut answers).await?;
                            Ok((answers, held))
                        })
                        .await?;
                        let answers = caller.with(|mut access| {
                            let mut caller = access.as_context_mut();
                            convert(&answers, |value| inward(value, &mut caller, &mut held))
                        })?;
                        results.iter_mut().zip(answers).for_each(|(result, answer)| *result = answer);
                        Ok(())
                    })
                })?;
            }
            ComponentItem::ComponentFunc(_) => {
                instance.func_new_async(name, move |caller, _, arguments, results| {
                    Box::new(call(caller, way.clone(), function.clone(), arguments, results))
                })?;
            }
            ComponentItem::Resource(_) => {
                instance.resource_async(name, ResourceType::host::<Remote>(), move |caller, rep| {
                    Box::new(forget(caller, way.index, rep))
                })?;
            }
            ComponentItem::Type(_) => {}
            _ => {
                return Err(wasmtime::Error::msg(format!(
                    "{import}: {name} is neither a function nor a type"
                )));
            }
        }
    }
    Ok(())
}

/// Runs what another store does outside the event loop of the caller's: the engine runs no loop within another one. It ends
/// with who waits for it.
async fn apart<T: Send + 'static>(
    work: impl Future<Output = wasmtime::Result<T>> + Send + 'static,
) -> wasmtime::Result<T> {
    let done = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(work)).await;
    done.map_err(|error| wasmtime::Error::msg(format!("a call between containers broke off: {error}")))?
}

fn convert(values: &[Val], convert: impl FnMut(&Val) -> wasmtime::Result<Val>) -> wasmtime::Result<Vec<Val>> {
    values.iter().map(convert).collect()
}

async fn call(
    mut caller: StoreContextMut<'_, Guest>,
    way: Way,
    function: Arc<str>,
    arguments: &[Val],
    results: &mut [Val],
) -> wasmtime::Result<()> {
    let link = caller.data().link(way.index)?;
    let mut held = link.hold().await?;
    let arguments = convert(arguments, |value| outward(value, &mut caller, &mut held))?;
    let mut answers = vec![Val::Bool(false); results.len()];
    held.call(&way.export, &function, &arguments, &mut answers).await?;
    for (result, answer) in results.iter_mut().zip(&answers) {
        *result = inward(answer, &mut caller, &mut held)?;
    }
    Ok(())
}

/// The importing side has dropped its handle.
async fn forget(caller: StoreContextMut<'_, Guest>, index: usize, rep: u32) -> wasmtime::Result<()> {
    let link = caller.data().link(index)?;
    link.forget(rep).await
}

/// Defines an interface so that a component can be checked, though nobody provides it.
pub(crate) fn stub(
    engine: &Engine,
    linker: &mut Linker<Guest>,
    import: &str,
    interface: &ComponentInstance,
) -> wasmtime::Result<()> {
    define(engine, linker, import, interface, &Way { index: usize::MAX, export: import.into() })
}
