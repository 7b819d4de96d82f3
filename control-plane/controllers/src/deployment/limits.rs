//! How many pods a rolling update may add and miss.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::view::Deployment;

/// `maxSurge` and `maxUnavailable` as pods. Surge rounds up, unavailable rounds down, and not both are zero.
pub fn fenceposts(
    surge: Option<&IntOrString>,
    unavailable: Option<&IntOrString>,
    replicas: i64,
) -> (i64, i64) {
    let quarter = IntOrString::String("25%".into());
    let surge = scaled(surge.unwrap_or(&quarter), replicas, true);
    let unavailable = scaled(unavailable.unwrap_or(&quarter), replicas, false);
    // Validation allows zero surge with a small percentage that rounds to zero; then nothing could ever move.
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// An absolute number, or a percentage of `total` rounded up or down.
pub fn scaled(value: &IntOrString, total: i64, up: bool) -> i64 {
    match value {
        IntOrString::Int(n) => i64::from(*n).max(0),
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%').and_then(|p| p.parse().ok()).unwrap_or(0);
            let hundredths = percent.clamp(0, 1_000_000) * total.max(0);
            if up { (hundredths + 99) / 100 } else { hundredths / 100 }
        }
    }
}

/// Pods above the wanted number.
pub fn max_surge(d: &Deployment) -> i64 {
    if d.recreates() { 0 } else { both(d).0 }
}

/// Pods that may be missing, never more than there are.
pub fn max_unavailable(d: &Deployment) -> i64 {
    if d.recreates() || d.replicas() == 0 { 0 } else { both(d).1.min(d.replicas()) }
}

fn both(d: &Deployment) -> (i64, i64) {
    let rolling = d.spec.strategy.rolling_update.as_ref();
    fenceposts(
        rolling.and_then(|r| r.max_surge.as_ref()),
        rolling.and_then(|r| r.max_unavailable.as_ref()),
        d.replicas(),
    )
}
