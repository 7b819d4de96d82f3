//! ip-name-lookup.

use std::net::IpAddr;

use futures::FutureExt;
use wasmtime::component::Resource;
use wasmtime_wasi::p2::{
    DynPollable, Network, Pollable, SocketResult,
    bindings::sockets::{
        ip_name_lookup,
        network::{self, ErrorCode},
    },
};

use super::super::PodSocketsView;
use crate::network::{Lookup, elsewhere};

/// The answer to a lookup, or who is being asked. The stock resource cannot be made from outside its crate, so this lies in
/// the table in its place.
enum Answers {
    Here(std::vec::IntoIter<IpAddr>),
    Asked(tokio::task::JoinHandle<Vec<IpAddr>>),
    Missing,
}

impl Answers {
    fn next(&mut self) -> Result<Option<IpAddr>, ErrorCode> {
        if let Answers::Asked(task) = self {
            let found = task.now_or_never().ok_or(ErrorCode::WouldBlock)?;
            self.told(found.unwrap_or_default());
        }
        match self {
            Answers::Here(found) => Ok(found.next()),
            Answers::Asked(_) => Err(ErrorCode::WouldBlock),
            Answers::Missing => Err(ErrorCode::NameUnresolvable),
        }
    }

    fn told(&mut self, found: Vec<IpAddr>) {
        *self = if found.is_empty() { Answers::Missing } else { Answers::Here(found.into_iter()) };
    }
}

#[async_trait::async_trait]
impl Pollable for Answers {
    async fn ready(&mut self) {
        if let Answers::Asked(task) = self {
            let found = task.await.unwrap_or_default();
            self.told(found);
        }
    }
}

impl ip_name_lookup::Host for PodSocketsView<'_> {
    fn resolve_addresses(
        &mut self,
        _network: Resource<Network>,
        name: String,
    ) -> SocketResult<Resource<ip_name_lookup::ResolveAddressStream>> {
        if name.is_empty() || name.len() > 255 {
            return Err(ErrorCode::InvalidArgument.into());
        }
        let answers = match self.network.lookup(&name) {
            Lookup::Addresses(found) if found.is_empty() => return Err(ErrorCode::NameUnresolvable.into()),
            Lookup::Addresses(found) => Answers::Here(found.into_iter()),
            Lookup::Elsewhere(names) => Answers::Asked(tokio::spawn(elsewhere(names))),
        };
        let answers = self.inner.table.push(answers)?;
        Ok(Resource::new_own(answers.rep()))
    }
}

impl ip_name_lookup::HostResolveAddressStream for PodSocketsView<'_> {
    fn resolve_next_address(
        &mut self,
        this: Resource<ip_name_lookup::ResolveAddressStream>,
    ) -> SocketResult<Option<network::IpAddress>> {
        let this = Resource::<Answers>::new_borrow(this.rep());
        Ok(self.inner.table.get_mut(&this)?.next()?.map(Into::into))
    }

    fn subscribe(
        &mut self,
        this: Resource<ip_name_lookup::ResolveAddressStream>,
    ) -> wasmtime::Result<Resource<DynPollable>> {
        let this = Resource::<Answers>::new_borrow(this.rep());
        wasmtime_wasi::p2::subscribe(self.inner.table, this)
    }

    fn drop(&mut self, this: Resource<ip_name_lookup::ResolveAddressStream>) -> wasmtime::Result<()> {
        self.inner.table.delete(Resource::<Answers>::new_own(this.rep()))?;
        Ok(())
    }
}
