//! What ends a connection from outside: its handler stops, or its client sends no request. A connection is polled several times
//! a request, and nothing of this is polled then: its task is woken by them once, and otherwise they are looked at.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use crate::switch::Switch;

/// How long a client may take for the head of a request, and so stay without one.
pub(super) const HEAD: Duration = Duration::from_secs(75);

/// What a connection is to do now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    No,
    /// End after what is in flight.
    Soon,
    Now,
}

/// The ends of one connection.
pub(super) struct Ends {
    close: Switch,
    killed: Switch,
    head: Head,
    /// They wake the task of the connection, which has this waker.
    waiting: [Pin<Box<dyn Future<Output = ()> + Send>>; 2],
    timer: Pin<Box<tokio::time::Sleep>>,
    waker: Option<Waker>,
}

impl Ends {
    /// After `close` a connection ends soon, after `killed` or without a request at once.
    pub fn new(close: Switch, killed: Switch, head: Head) -> Ends {
        let wait = |switch: &Switch| -> Pin<Box<dyn Future<Output = ()> + Send>> {
            let switch = switch.clone();
            Box::pin(async move { switch.turned_on().await })
        };
        let waiting = [wait(&close), wait(&killed)];
        let timer = Box::pin(tokio::time::sleep_until(head.due_or(Instant::now() + HEAD).into()));
        Ends { close, killed, head, waiting, timer, waker: None }
    }

    /// Looks at them; the task is woken when it has to look again.
    pub fn look(&mut self, cx: &mut Context<'_>) -> End {
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
            for (waiting, switch) in self.waiting.iter_mut().zip([&self.close, &self.killed]) {
                if !switch.is_on() {
                    let _ = waiting.as_mut().poll(cx);
                }
            }
            let _ = self.timer.as_mut().poll(cx);
        }
        if self.killed.is_on() || self.overdue(cx) {
            return End::Now;
        }
        if self.close.is_on() { End::Soon } else { End::No }
    }

    /// Whether the head of a request should be there and is not. One timer a connection is set anew only when it has run out.
    fn overdue(&mut self, cx: &mut Context<'_>) -> bool {
        while self.timer.is_elapsed() {
            let now = Instant::now();
            let due = self.head.due_or(now + HEAD);
            if due <= now {
                return true;
            }
            self.timer.as_mut().reset(due.into());
            let _ = self.timer.as_mut().poll(cx);
        }
        false
    }
}

/// When the head of a connection's next request is due. As a timer of hyper's it is told that by a store: hyper makes one for
/// each request, and the timers of tokio are many instructions and a lock.
#[derive(Clone)]
pub(super) struct Head(Arc<Due>);

struct Due {
    began: Instant,
    /// Nanoseconds from then on; [`NEVER`] while a request is answered.
    at: AtomicU64,
}

const NEVER: u64 = u64::MAX;

impl Head {
    /// A connection begins: its first request is due in [`HEAD`].
    pub fn new() -> Head {
        let head = Head(Arc::new(Due { began: Instant::now(), at: AtomicU64::new(NEVER) }));
        head.is_due(head.0.began + HEAD);
        head
    }

    /// The head of a request is there.
    pub fn arrived(&self) {
        self.0.at.store(NEVER, Ordering::Relaxed);
    }

    fn is_due(&self, at: Instant) {
        let nanos = at.saturating_duration_since(self.0.began).as_nanos();
        self.0.at.store(u64::try_from(nanos).unwrap_or(NEVER), Ordering::Relaxed);
    }

    /// When it is due; `otherwise` while none is.
    fn due_or(&self, otherwise: Instant) -> Instant {
        let nanos = Some(self.0.at.load(Ordering::Relaxed)).filter(|nanos| *nanos != NEVER);
        nanos.and_then(|nanos| self.0.began.checked_add(Duration::from_nanos(nanos))).unwrap_or(otherwise)
    }
}

impl hyper::rt::Timer for Head {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.is_due(deadline);
        Box::pin(Elsewhere)
    }
}

/// Not hyper ends the connection, but [`Ends`].
struct Elsewhere;

impl Future for Elsewhere {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

impl hyper::rt::Sleep for Elsewhere {}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use hyper::rt::Timer;

    use super::*;

    /// Looks until it is told to end.
    async fn end(ends: &mut Ends) -> End {
        poll_fn(|cx| match ends.look(cx) {
            End::No => Poll::Pending,
            end => Poll::Ready(end),
        })
        .await
    }

    fn ends() -> (Switch, Switch, Head, Ends) {
        let (close, killed, head) = (Switch::default(), Switch::default(), Head::new());
        (close.clone(), killed.clone(), head.clone(), Ends::new(close, killed, head))
    }

    #[tokio::test]
    async fn a_task_that_waits_is_woken() {
        let (close, killed, _, mut ends) = ends();
        let waiting = tokio::spawn(async move {
            let first = end(&mut ends).await;
            let second = poll_fn(|cx| match ends.look(cx) {
                End::Now => Poll::Ready(End::Now),
                _ => Poll::Pending,
            });
            (first, second.await)
        });
        tokio::task::yield_now().await;
        close.turn_on();
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        killed.turn_on();
        assert_eq!(waiting.await.unwrap(), (End::Soon, End::Now));
    }

    #[tokio::test]
    async fn a_client_without_a_request_is_ended_and_one_that_is_answered_is_not() {
        let (_close, _killed, head, mut ends) = ends();
        let began = Instant::now();
        let soon = Duration::from_millis(50);
        drop(head.sleep_until(began + soon));
        // The timer was set for the first request; this is what it finds when it runs out.
        ends.timer.as_mut().reset(began.into());
        assert_eq!(end(&mut ends).await, End::Now);
        assert!(began.elapsed() >= soon);
        head.arrived();
        let answering = tokio::time::timeout(2 * soon, end(&mut ends));
        assert!(answering.await.is_err());
    }
}
