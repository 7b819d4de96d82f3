use super::*;

fn settings(annotations: &[(&str, &str)], concurrency: Option<u32>) -> Settings {
    let mut revision = Revision::new("r", Default::default());
    revision.spec.container_concurrency = concurrency;
    let named = annotations
        .iter()
        .map(|(key, value)| (format!("autoscaling.knative.dev/{key}"), (*value).to_owned()));
    revision.metadata.annotations = Some(named.collect());
    Settings::of(&revision)
}

/// A window of so many seconds of a concurrency, and the moment after them.
fn past(seconds: u64, concurrency: f64) -> (Window, Instant) {
    let (start, mut window) = (Instant::now(), Window::default());
    for second in 0..seconds {
        window.add(concurrency);
        window.tick(start + Duration::from_secs(second));
    }
    (window, start + Duration::from_secs(seconds))
}

#[test]
fn annotations_and_concurrency_set_the_target() {
    let close =
        |settings: Settings, wanted: f64| assert!((settings.target - wanted).abs() < 1e-9, "{settings:?}");
    close(settings(&[], None), 70.0);
    close(settings(&[("target", "10")], None), 10.0);
    close(settings(&[], Some(10)), 7.0);
    close(settings(&[("target", "50")], Some(10)), 10.0);
    close(settings(&[("target-utilization-percentage", "50")], Some(10)), 5.0);
    let read = settings(&[("window", "1m30s"), ("minScale", "2"), ("max-scale", "5")], None);
    assert_eq!((read.window, read.min, read.max), (Duration::from_secs(90), 2, Some(5)));
    assert_eq!(settings(&[("window", "1s")], None).window, Duration::from_secs(60), "too short");
    assert_eq!(settings(&[("initial-scale", "0")], None).initial(), 0);
}

fn pods(wanted: i32, available: i32) -> Pods {
    Pods { wanted, available, starting: false }
}

#[test]
fn a_revision_that_was_never_ready_keeps_the_pods_it_starts_with() {
    let settings = settings(&[("window", "6s"), ("initial-scale", "2")], None);
    let starting = |wanted| Pods { wanted, available: 0, starting: true };
    let (mut window, now) = past(60, 0.0);
    assert_eq!(decide(&settings, &mut window, 0, starting(2), now), Decision::Stay);
    assert_eq!(decide(&settings, &mut window, 0, starting(0), now), Decision::Scale(2));
    assert_eq!(
        decide(&settings, &mut window, 0, pods(2, 2), now),
        Decision::Scale(1),
        "its window has just begun"
    );
}

#[test]
fn a_window_without_requests_ends_in_no_pods() {
    let settings = settings(&[("window", "6s")], None);
    let (mut window, now) = past(3, 0.0);
    assert_eq!(
        decide(&settings, &mut window, 0, pods(1, 1), now),
        Decision::Stay,
        "not watched for long enough"
    );
    let (mut window, now) = past(7, 0.0);
    assert_eq!(decide(&settings, &mut window, 0, pods(1, 1), now), Decision::Scale(0));
    assert_eq!(decide(&settings, &mut window, 1, pods(1, 1), now), Decision::Stay, "a request is here");
}

#[test]
fn a_held_request_starts_a_pod_and_many_start_more() {
    let settings = settings(&[("target", "10"), ("max-scale", "4")], None);
    let (mut window, now) = past(60, 0.0);
    assert_eq!(decide(&settings, &mut window, 1, pods(0, 0), now), Decision::Scale(1));
    let (mut window, now) = past(60, 0.0);
    assert_eq!(decide(&settings, &mut window, 35, pods(0, 0), now), Decision::Scale(4));
    let (mut window, now) = past(60, 0.0);
    assert_eq!(decide(&settings, &mut window, 500, pods(0, 0), now), Decision::Scale(4), "bounded");
}

#[test]
fn steady_load_gets_its_pods_and_panic_does_not_shrink() {
    let settings = settings(&[("target", "10")], None);
    let (mut window, now) = past(60, 35.0);
    assert_eq!(decide(&settings, &mut window, 35, pods(3, 3), now), Decision::Scale(4));
    // Twice what two pods should have: panic, and the size stays through the quiet right after it.
    let (mut window, now) = past(60, 15.0);
    assert_eq!(decide(&settings, &mut window, 60, pods(2, 2), now), Decision::Scale(6));
    for second in 0..30 {
        window.add(0.0);
        window.tick(now + Duration::from_secs(second));
    }
    assert_eq!(decide(&settings, &mut window, 0, pods(6, 6), now + Duration::from_secs(30)), Decision::Stay);
}

#[test]
fn the_past_alone_starts_no_pod() {
    let settings = settings(&[], None);
    let (mut window, now) = past(60, 5.0);
    assert_eq!(decide(&settings, &mut window, 0, pods(0, 0), now), Decision::Stay);
}
