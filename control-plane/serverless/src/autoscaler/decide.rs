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

/// `in_flight` are the requests that are here now, `present` the wanted pods so far, `available` those that are ready.
pub fn decide(
    settings: &Settings,
    window: &mut Window,
    in_flight: u32,
    present: i32,
    available: i32,
    now: Instant,
) -> Decision {
    let wanted = wanted(settings, window, in_flight, present, available, now);
    if wanted == present { Decision::Stay } else { Decision::Scale(wanted) }
}

fn wanted(
    settings: &Settings,
    window: &mut Window,
    in_flight: u32,
    present: i32,
    available: i32,
    now: Instant,
) -> i32 {
    let pods = |concurrency: f64| (concurrency / settings.target).ceil() as i32;
    let stable = window.mean(settings.window, now).unwrap_or(0.0);
    let short = (settings.window / PANIC_WINDOW).max(Duration::from_secs(2));
    let recent = window.mean(short, now).unwrap_or(0.0).max(f64::from(in_flight));
    if present == 0 && in_flight == 0 {
        // Nothing asks; the past alone starts no pod.
        return settings.within(0);
    }
    let (steady, sudden) = (pods(stable), pods(recent));
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
