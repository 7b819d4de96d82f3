//! CPU time of a container: measured at each poll of what runs its guests, limited over periods of 100 ms.

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// The length of a period; what cfs quotas use.
const PERIOD: Duration = Duration::from_millis(100);

/// What a container has used and may use.
pub(crate) struct Meter {
    used: AtomicU64,
    /// Nanoseconds a period; 0 for no limit.
    quota: AtomicU64,
    period: Mutex<(Instant, u64)>,
}

impl Meter {
    /// A meter with a limit in thousandths of a CPU, or none.
    pub fn new(cpu_millis: Option<u32>) -> Arc<Meter> {
        let period = Mutex::new((Instant::now(), 0));
        let meter = Meter { used: AtomicU64::new(0), quota: AtomicU64::new(0), period };
        meter.set_limit(cpu_millis);
        Arc::new(meter)
    }

    /// Sets another limit, or none. What was used before does not count against it.
    pub fn set_limit(&self, cpu_millis: Option<u32>) {
        let quota = u64::from(cpu_millis.unwrap_or(0)) * (PERIOD.as_nanos() as u64 / 1000);
        let mut period = self.period.lock();
        self.quota.store(quota, Ordering::Relaxed);
        *period = (Instant::now(), self.used());
    }

    /// Nanoseconds used so far.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// How long a guest has to wait before it may run on; `None` when it may at once.
    pub fn throttle(&self) -> Option<Duration> {
        let quota = Some(self.quota.load(Ordering::Relaxed)).filter(|quota| *quota > 0)?;
        let used = self.used();
        let mut period = self.period.lock();
        let elapsed = period.0.elapsed();
        if elapsed >= PERIOD {
            // What was overdrawn is carried over, so that the average holds; and up to one period's part that was not had.
            let periods = (elapsed.as_nanos() / PERIOD.as_nanos()) as u64;
            let due = period.1.saturating_add(quota.saturating_mul(periods));
            let base = due.min(used.saturating_add(quota));
            // The rest of the time belongs to the period that has begun: it is not lost.
            let begun = u32::try_from(periods).ok().and_then(|n| PERIOD.checked_mul(n));
            let begun = begun.and_then(|past| period.0.checked_add(past)).unwrap_or_else(Instant::now);
            *period = (begun, base);
        }
        (used.saturating_sub(period.1) >= quota).then(|| PERIOD.saturating_sub(period.0.elapsed()))
    }

    /// Runs `poll` and counts the CPU time of this thread meanwhile, less what another meter counts inside: a container
    /// that calls another of its pod does not pay for it.
    pub fn measure<T>(&self, poll: impl FnOnce() -> T) -> T {
        let outer = INSIDE.replace(0);
        let before = thread_nanos();
        let result = poll();
        let all = thread_nanos().saturating_sub(before);
        self.used.fetch_add(all.saturating_sub(INSIDE.get()), Ordering::Relaxed);
        INSIDE.set(outer.saturating_add(all));
        result
    }
}

thread_local! {
    /// What has been counted on this thread inside the measurement that runs, in nanoseconds.
    static INSIDE: Cell<u64> = const { Cell::new(0) };
}

fn thread_nanos() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the call to fill.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A future whose polls are counted.
pub(crate) struct Metered<F> {
    pub future: Pin<Box<F>>,
    pub meter: Arc<Meter>,
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        this.meter.measure(|| this.future.as_mut().poll(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Burns this much CPU time of the thread.
    fn burn(nanos: u64) {
        let end = thread_nanos() + nanos;
        while thread_nanos() < end {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn what_is_measured_inside_is_counted_once() {
        let (outer, inner) = (Meter::new(None), Meter::new(None));
        outer.measure(|| {
            burn(2_000_000);
            inner.measure(|| burn(20_000_000));
            inner.measure(|| burn(20_000_000));
        });
        assert!(inner.used() >= 40_000_000, "{}", inner.used());
        assert!((2_000_000..20_000_000).contains(&outer.used()), "{}", outer.used());
    }
}
