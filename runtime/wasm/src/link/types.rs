//! Whether an exported interface has what an import asks for: names and types of its functions.

use wasmtime::{
    Engine,
    component::{
        ResourceType,
        types::{ComponentFunc, ComponentInstance, ComponentItem, Type},
    },
};

/// Why an end of a stream stays where it is. Each container has a store of its own, and wasmtime 48 lets a host move elements
/// from one store to another only as a Rust type that is known when the host is compiled (`StreamReader<T>`; of a
/// `StreamAny` nothing can be read), while a linker has to serve any type.
pub(super) const NO_STREAMS: &str = "futures and streams cannot be passed between containers: each has a store of its own, and \
    the engine moves their elements between stores only as types that the host was compiled with";

/// Which resource of the importing component is which of the exporting one.
#[derive(Default)]
pub(super) struct Resources(Vec<(ResourceType, ResourceType)>);

impl Resources {
    fn same(&mut self, wanted: ResourceType, offered: ResourceType) -> bool {
        match self.0.iter().find(|(known, _)| *known == wanted) {
            Some((_, known)) => *known == offered,
            None => {
                self.0.push((wanted, offered));
                true
            }
        }
    }

    fn known(&self, wanted: &ResourceType) -> bool {
        self.0.iter().any(|(known, _)| known == wanted)
    }
}

/// Answers what does not fit, in words.
pub(super) fn compare(
    engine: &Engine,
    wanted: &ComponentInstance,
    offered: &ComponentInstance,
    resources: &mut Resources,
) -> Result<(), String> {
    for (name, item) in wanted.exports(engine) {
        let other = offered.get_export(engine, name).ok_or_else(|| format!("there is no {name}"))?;
        if let (ComponentItem::Resource(wanted), ComponentItem::Resource(offered)) = (&item.ty, &other.ty)
            && !resources.same(*wanted, *offered)
        {
            return Err(format!("{name} is another resource"));
        }
    }
    for (name, item) in wanted.exports(engine) {
        let ComponentItem::ComponentFunc(function) = item.ty else { continue };
        match offered.get_export(engine, name).map(|other| other.ty) {
            Some(ComponentItem::ComponentFunc(other)) => same_function(&function, &other, resources)
                .map_err(|why| format!("the function {name}: {why}"))?,
            _ => return Err(format!("{name} is no function there")),
        }
    }
    Ok(())
}

fn same_function(wanted: &ComponentFunc, offered: &ComponentFunc, known: &Resources) -> Result<(), String> {
    if wanted.async_() != offered.async_() {
        return Err("only one of both is async".into());
    }
    let (ours, theirs) = (wanted.params(), offered.params());
    if ours.len() != theirs.len() {
        return Err(format!("{} parameters instead of {}", theirs.len(), ours.len()));
    }
    for ((name, ours), (_, theirs)) in ours.zip(theirs) {
        same(&ours, &theirs, known).map_err(|why| format!("the parameter {name}: {why}"))?;
    }
    let (ours, theirs) = (wanted.results(), offered.results());
    if ours.len() != theirs.len() {
        return Err("the one has a result, the other has none".into());
    }
    for (ours, theirs) in ours.zip(theirs) {
        same(&ours, &theirs, known).map_err(|why| format!("its result: {why}"))?;
    }
    Ok(())
}

fn same(wanted: &Type, offered: &Type, known: &Resources) -> Result<(), String> {
    let optional = |wanted: Option<Type>, offered: Option<Type>| match (wanted, offered) {
        (None, None) => Ok(()),
        (Some(wanted), Some(offered)) => same(&wanted, &offered, known),
        _ => Err("a payload is missing".to_owned()),
    };
    match (wanted, offered) {
        (Type::Own(wanted), Type::Own(_)) | (Type::Borrow(wanted), Type::Borrow(_)) => {
            let words = "a resource of an interface that is not linked (of WASI, say) cannot be passed between containers";
            if known.known(wanted) { Ok(()) } else { Err(words.into()) }
        }
        (Type::Future(_) | Type::Stream(_) | Type::ErrorContext, _) => Err(NO_STREAMS.into()),
        (Type::List(wanted), Type::List(offered)) => same(&wanted.ty(), &offered.ty(), known),
        (Type::FixedLengthList(wanted), Type::FixedLengthList(offered)) if wanted.len() == offered.len() => {
            same(&wanted.ty(), &offered.ty(), known)
        }
        (Type::Option(wanted), Type::Option(offered)) => same(&wanted.ty(), &offered.ty(), known),
        (Type::Map(wanted), Type::Map(offered)) => {
            same(&wanted.key(), &offered.key(), known)?;
            same(&wanted.value(), &offered.value(), known)
        }
        (Type::Result(wanted), Type::Result(offered)) => {
            optional(wanted.ok(), offered.ok())?;
            optional(wanted.err(), offered.err())
        }
        (Type::Tuple(wanted), Type::Tuple(offered)) if wanted.types().len() == offered.types().len() => {
            wanted
                .types()
                .zip(offered.types())
                .try_for_each(|(wanted, offered)| same(&wanted, &offered, known))
        }
        (Type::Record(wanted), Type::Record(offered)) if wanted.fields().len() == offered.fields().len() => {
            wanted.fields().zip(offered.fields()).try_for_each(|(wanted, offered)| {
                if wanted.name != offered.name {
                    return Err(format!("the field {} is called {}", wanted.name, offered.name));
                }
                same(&wanted.ty, &offered.ty, known)
            })
        }
        (Type::Variant(wanted), Type::Variant(offered)) if wanted.cases().len() == offered.cases().len() => {
            wanted.cases().zip(offered.cases()).try_for_each(|(wanted, offered)| {
                if wanted.name != offered.name {
                    return Err(format!("the case {} is called {}", wanted.name, offered.name));
                }
                optional(wanted.ty, offered.ty)
            })
        }
        // What has no resources inside is compared by its structure.
        (wanted, offered) if wanted == offered => Ok(()),
        _ => Err("its type is another one".into()),
    }
}
