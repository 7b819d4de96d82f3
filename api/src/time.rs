//! Times as Kubernetes writes them.

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;

/// The current time as `metav1.Time`: RFC 3339 in UTC with seconds.
pub fn now() -> String {
    seconds(Timestamp::now())
}

/// The current time as `metav1.MicroTime`: RFC 3339 in UTC with six digits.
pub fn now_micro() -> String {
    micros(Timestamp::now())
}

/// A time with seconds, the rest cut off: `2006-01-02T15:04:05Z`.
pub fn seconds(at: Timestamp) -> String {
    let at = Timestamp::from_second(at.as_nanosecond().div_euclid(1_000_000_000) as i64).unwrap_or(at);
    DateTimePrinter::new().precision(Some(0)).timestamp_to_string(&at)
}

/// A time with microseconds, the rest cut off: `2006-01-02T15:04:05.000000Z`.
pub fn micros(at: Timestamp) -> String {
    let at = Timestamp::from_microsecond(at.as_nanosecond().div_euclid(1000) as i64).unwrap_or(at);
    DateTimePrinter::new().precision(Some(6)).timestamp_to_string(&at)
}

/// How long ago a time was, in kubectl's words: `5s`, `2m3s`, `4d`; `<unknown>` for no time.
pub fn since(at: &str, now: Timestamp) -> String {
    match parse(at) {
        Some(at) => duration(now.as_second() - at.as_second()),
        None => "<unknown>".into(),
    }
}

/// Seconds in kubectl's words.
pub fn duration(seconds: i64) -> String {
    let two =
        |a: i64, x: &str, b: i64, y: &str| if b == 0 { format!("{a}{x}") } else { format!("{a}{x}{b}{y}") };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match () {
        _ if seconds < -1 => "<invalid>".into(),
        _ if seconds < 0 => "0s".into(),
        _ if seconds < 120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 24 * 8 => two(hours / 24, "d", hours % 24, "h"),
        _ if hours < 24 * 365 * 2 => format!("{}d", hours / 24),
        _ if hours < 24 * 365 * 8 => two(hours / 24 / 365, "y", hours / 24 % 365, "d"),
        _ => format!("{}y", hours / 24 / 365),
    }
}

/// Reads an RFC 3339 time, of seconds or finer.
pub fn parse(text: &str) -> Option<Timestamp> {
    if !rfc3339_shape(text) {
        return None;
    }
    text.parse().ok()
}

// Stricter than the parser: `2006-01-02T15:04:05[.fraction](Z|+hh:mm|-hh:mm)` and nothing else.
fn rfc3339_shape(text: &str) -> bool {
    let b = text.as_bytes();
    let pattern = b"dddd-dd-ddTdd:dd:dd";
    if b.len() <= pattern.len() || b.len() > 64 {
        return false;
    }
    let (head, mut rest) = b.split_at(pattern.len());
    let fits = |(c, p): (&u8, &u8)| if *p == b'd' { c.is_ascii_digit() } else { c == p };
    if !head.iter().zip(pattern).all(fits) {
        return false;
    }
    if let Some(fraction) = rest.strip_prefix(b".").or_else(|| rest.strip_prefix(b",")) {
        let digits = fraction.iter().take_while(|c| c.is_ascii_digit()).count();
        if digits == 0 {
            return false;
        }
        rest = fraction.get(digits..).unwrap_or_default();
    }
    matches!(rest, b"Z")
        || (rest.len() == 6
            && matches!(rest.first(), Some(b'+' | b'-'))
            && rest.iter().skip(1).zip(b"dd:dd").all(fits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        let t = parse("2006-01-02T15:04:05.123456789Z").unwrap();
        assert_eq!(seconds(t), "2006-01-02T15:04:05Z");
        assert_eq!(micros(t), "2006-01-02T15:04:05.123456Z");
        assert_eq!(seconds(parse("2006-01-02T15:04:05+02:00").unwrap()), "2006-01-02T13:04:05Z");
        for bad in [
            "yesterday",
            "",
            "2006-01-02",
            "2006-01-02 15:04:05Z",
            "2006-13-02T15:04:05Z",
            "2006-01-02T15:04:05",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
        assert_eq!(now().len(), 20);
        assert_eq!(now_micro().len(), 27);
    }
}
