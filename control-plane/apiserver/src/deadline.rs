//! How long a call may take: `timeout` in its query, in Go's words, or a minute.

use std::time::Duration;

use coracle_api::{Status, field};

use crate::query::Query;

/// The longest that a call may take that is no stream, and how long it may take where it does not say.
pub(crate) const LONGEST: Duration = Duration::from_secs(60);

/// The time that a call has.
pub(crate) fn of(query: &Query) -> Result<Duration, Status> {
    let Some(text) = query.text("timeout") else { return Ok(LONGEST) };
    match duration(text) {
        Some(asked) if asked.is_zero() => Ok(LONGEST),
        Some(asked) => Ok(asked.min(LONGEST)),
        None => Err(Status::bad_request(format!(
            "invalid timeout specified in the request URL: time: invalid duration {}",
            field::go_quote(text)
        ))),
    }
}

/// A duration as Go writes them: `300ms`, `1m30s`, `0`. Negative ones are none.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() || rest.len() > 64 {
        return None;
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|n| *n > 0)?;
        let (number, after) = rest.split_at(digits);
        let length = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(length);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * seconds;
        rest = after;
    }
    Duration::try_from_secs_f64(total).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_does() {
        for (text, millis) in
            [("0", 0), ("300ms", 300), ("1m30s", 90_000), ("1.5h", 5_400_000), ("32s", 32_000)]
        {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "5", "5 s", "-1s", "1x", "1.2.3s", "ms5"] {
            assert_eq!(duration(text), None, "{text}");
        }
        let of = |raw: &str| of(&Query::parse(Some(raw))).map_err(|s| s.message);
        assert_eq!(of("timeout=34s"), Ok(Duration::from_secs(34)));
        assert_eq!(of("timeout=5m"), Ok(LONGEST));
        assert_eq!(of(""), Ok(LONGEST));
        assert_eq!(
            of("timeout=x"),
            Err("invalid timeout specified in the request URL: time: invalid duration \"x\"".into())
        );
    }
}
