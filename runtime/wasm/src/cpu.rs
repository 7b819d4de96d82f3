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
        let watch = Stopwatch::start();
        let result = poll();
        let all = watch.stop();
        self.used.fetch_add(all.saturating_sub(INSIDE.get()), Ordering::Relaxed);
        INSIDE.set(outer.saturating_add(all));
        result
    }
}

/// A poll that took less wall time is counted by it: the thread's CPU clock is a system call, the wall clock is none.
const SHORT: Duration = Duration::from_micros(200);

/// How long a reading of the thread's CPU clock is good for.
const FRESH: Duration = Duration::from_millis(1);

/// A reading of this thread's CPU clock, from which the polls that follow reckon on.
#[derive(Clone, Copy)]
struct Reading {
    at: Instant,
    cpu: u64,
    /// What short polls have taken since, in nanoseconds.
    short: u64,
}

impl Reading {
    fn new(at: Instant) -> Reading {
        Reading { at, cpu: thread_nanos(), short: 0 }
    }
}

/// One measurement that runs. Short ones are their wall time; of long ones, which may be preempted, it is the CPU time since
/// the last reading, less the short ones in between. What the thread did otherwise in between, at most [`FRESH`], is
/// counted only as far as the wall clock allows it.
struct Stopwatch {
    began: Instant,
    reading: Reading,
}

impl Stopwatch {
    fn start() -> Stopwatch {
        let began = Instant::now();
        let kept = READING.get().filter(|kept| began.saturating_duration_since(kept.at) < FRESH);
        let reading = kept.unwrap_or_else(|| Reading::new(began));
        READING.set(Some(reading));
        Stopwatch { began, reading }
    }

    /// Nanoseconds of this thread's CPU time since the start.
    fn stop(self) -> u64 {
        let ended = Instant::now();
        let took = ended.saturating_duration_since(self.began);
        let wall = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if took < SHORT {
            // What was measured inside is part of this one.
            let mut reading = READING.get().unwrap_or(self.reading);
            if reading.at == self.reading.at {
                reading.short = self.reading.short.saturating_add(wall);
                READING.set(Some(reading));
            }
            return wall;
        }
        let now = Reading::new(ended);
        READING.set(Some(now));
        now.cpu.saturating_sub(self.reading.cpu).saturating_sub(self.reading.short).min(wall)
    }
}

thread_local! {
    /// What has been counted on this thread inside the measurement that runs, in nanoseconds.
    static INSIDE: Cell<u64> = const { Cell::new(0) };
    /// The last reading of this thread's CPU clock.
    static READING: Cell<Option<Reading>> = const { Cell::new(None) };
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

    #[test]
    fn a_long_poll_does_not_pay_for_the_time_of_others() {
        let meter = Meter::new(None);
        let before = thread_nanos();
        meter.measure(|| {
            burn(2_000_000);
            // As long as this sleeps, the CPU is another's.
            std::thread::sleep(Duration::from_millis(100));
        });
        let burnt = thread_nanos() - before;
        assert!((2_000_000..=burnt).contains(&meter.used()), "{} of {burnt}", meter.used());
    }

    #[test]
    fn short_polls_are_counted_and_do_not_count_twice() {
        let (short, long) = (Meter::new(None), Meter::new(None));
        let began = Instant::now();
        for _ in 0..1000 {
            short.measure(|| burn(10_000));
            long.measure(|| long.measure(|| burn(300_000)));
        }
        let wall = began.elapsed().as_nanos() as u64;
        assert!(short.used() >= 10_000_000, "{}", short.used());
        assert!(long.used() >= 290_000_000, "{}", long.used());
        assert!(short.used() + long.used() <= wall, "{} and {} of {wall}", short.used(), long.used());
    }
}
