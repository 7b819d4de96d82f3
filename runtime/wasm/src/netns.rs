//! The network namespace of a pod that has one: its sockets are made there, by a thread that enters for as long as it
//! takes and comes back. A socket stays in the namespace that it was made in.

use std::{
    fs::File,
    io,
    os::fd::AsFd,
    path::Path,
    pin::Pin,
    sync::OnceLock,
    task::{Context, Poll},
};

use nix::sched::{CloneFlags, setns};

/// A pod's network namespace.
pub(crate) struct Netns(File);

/// The namespace of this process: threads come back to it.
fn own() -> io::Result<&'static File> {
    static OWN: OnceLock<File> = OnceLock::new();
    if let Some(own) = OWN.get() {
        return Ok(own);
    }
    // The first thread's, which never enters another one.
    let own = File::open("/proc/self/ns/net")?;
    Ok(OWN.get_or_init(|| own))
}

/// Comes back when dropped.
struct Inside(&'static File);

impl Drop for Inside {
    fn drop(&mut self) {
        if let Err(error) = setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET) {
            // A thread that stays in a pod's namespace would make other pods' sockets there.
            tracing::error!(%error, "a thread cannot leave a pod's network namespace");
            std::process::abort();
        }
    }
}

impl Netns {
    /// The namespace of this file.
    pub fn open(path: &Path) -> io::Result<Netns> {
        own()?;
        File::open(path).map(Netns)
    }

    /// Does something in the namespace. It must not wait: the thread is not for other work meanwhile.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        let inside = Inside(own()?);
        setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET)?;
        let done = work();
        drop(inside);
        Ok(done)
    }

    /// Polls a future in the namespace, whichever thread does it.
    pub async fn run<F: Future>(&self, future: F) -> io::Result<F::Output> {
        let mut future = Box::pin(future);
        let poll = |cx: &mut Context<'_>| match self.within(|| Pin::as_mut(&mut future).poll(cx)) {
            Ok(Poll::Ready(done)) => Poll::Ready(Ok(done)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        };
        std::future::poll_fn(poll).await
    }
}
