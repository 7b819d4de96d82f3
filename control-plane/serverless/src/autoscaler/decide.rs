//! Pure: a revision's past in, its number of pods out. Knative's rules: the mean over a window, a shorter window when load
//! doubles (panic), nothing less while panic lasts, and zero after a window without requests.

use std::time::{Duration, Instant};

use super::settings::Settings;
use super::window::Window;

/// The panic window is this part of the window.
const PANIC_WINDOW: u32 = 10;
/// Load of this many times what the present pods should have is panic.
const PANIC: f64 = 2.0;

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    Stay,
    Scale(i32),
}

/// The pods that a revision has.
#[derive(Clone, Copy, Debug)]
pub struct Pods {
    /// How many are wanted so far.
    pub wanted: i32,
    /// How many are ready.
    pub available: i32,
    /// None was ready yet, and none has failed for good: the revision keeps what it starts with.
    pub starting: bool,
}

/// `in_flight` are the requests that are here now.
pub fn decide(
    settings: &Settings,
    window: &mut Window,
    in_flight: u32,
    pods: Pods,
    now: Instant,
) -> Decision {
    let mut wanted = wanted(settings, window, in_flight, pods, now);
    if pods.starting {
        // Its idle time begins when it can serve.
        *window = Window::default();
        wanted = wanted.max(settings.initial());
    }
    if wanted == pods.wanted { Decision::Stay } else { Decision::Scale(wanted) }
}

fn wanted(settings: &Settings, window: &mut Window, in_flight: u32, pods: Pods, now: Instant) -> i32 {
    let Pods { wanted: present, available, .. } = pods;
    let needed = |concurrency: f64| (concurrency / settings.target).ceil() as i32;
    let stable = window.mean(settings.window, now).unwrap_or(0.0);
    let short = (settings.window / PANIC_WINDOW).max(Duration::from_secs(2));
    let recent = window.mean(short, now).unwrap_or(0.0).max(f64::from(in_flight));
    if present == 0 && in_flight == 0 {
        // Nothing asks; the past alone starts no pod.
        return settings.within(0);
    }
    let (steady, sudden) = (needed(stable), needed(recent));
    if f64::from(sudden) >= PANIC * f64::from(available.max(1)) {
        window.panic_since = Some(now);
    } else if window.panic_since.is_some_and(|since| now.duration_since(since) >= settings.window) {
        window.panic_since = None;
        window.panic_pods = 0;
    }
    let mut wanted = steady;
    if window.panic_since.is_some() {
        window.panic_pods = window.panic_pods.max(sudden).max(present);
        wanted = wanted.max(window.panic_pods);
    }
    let idle = stable == 0.0 && in_flight == 0 && window.spans(settings.window, now);
    if !idle {
        wanted = wanted.max(1);
    }
    settings.within(wanted)
}
