//! Resource quantities: `1`, `500m`, `1.5Gi`, `2e3`. Precision is one billionth, rounded away from zero; the largest
//! magnitude is 2^63-1. Rules: "Resource units in Kubernetes" and the API conventions.

use std::cmp::Ordering;
use std::fmt;

/// The suffix family, which the canonical string keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `m`, `k`, `M`, ...
    DecimalSi,
    /// `Ki`, `Mi`, ...
    BinarySi,
    /// `e3`
    DecimalExponent,
}

/// A fixed-point number with the format that it was written in.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Why a text is no quantity, in Kubernetes' words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

const NANO: i128 = 1_000_000_000;
const MAX: i128 = i64::MAX as i128 * NANO;
const MAX_TEXT: usize = 256;

impl Quantity {
    /// Reads a quantity. More than 256 bytes are refused.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        if text.is_empty() || text.len() > MAX_TEXT || !text.is_ascii() {
            return Err(ParseError::Format);
        }
        if text == "0" {
            return Ok(Quantity { nanos: 0, format: Format::DecimalSi });
        }
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, text.get(1..).unwrap_or_default()),
            Some(b'+') => (false, text.get(1..).unwrap_or_default()),
            _ => (false, text),
        };
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(ParseError::Format);
        }
        check_suffix_shape(suffix)?;
        let (format, ten, two) = suffix_of(suffix).ok_or(ParseError::Suffix)?;
        let magnitude = scale(whole, fraction, ten, two).min(MAX);
        Ok(Quantity { nanos: if negative { -magnitude } else { magnitude }, format })
    }

    /// A whole number.
    pub fn from_value(value: i64) -> Self {
        Quantity { nanos: i128::from(value) * NANO, format: Format::DecimalSi }
    }

    /// Thousandths.
    pub fn from_milli(value: i64) -> Self {
        Quantity { nanos: i128::from(value) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// Bytes or another whole number, to be written with `Ki`, `Mi`, ...
    pub fn from_bytes(value: i64) -> Self {
        Quantity { nanos: i128::from(value) * NANO, format: Format::BinarySi }
    }

    /// The whole number, rounded away from zero.
    pub fn value(&self) -> i64 {
        self.scaled(NANO)
    }

    /// Thousandths, rounded away from zero; saturates.
    pub fn milli_value(&self) -> i64 {
        self.scaled(NANO / 1000)
    }

    fn scaled(&self, unit: i128) -> i64 {
        let up = div_away(self.nanos, unit);
        i64::try_from(up).unwrap_or(if up < 0 { i64::MIN } else { i64::MAX })
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.nanos.signum() as i32
    }

    /// The format it was written in.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Whether it is a whole number.
    pub fn is_whole(&self) -> bool {
        self.nanos % NANO == 0
    }

    /// The sum, in the format of `self` unless that is zero; saturates.
    #[must_use]
    pub fn add(&self, other: &Quantity) -> Quantity {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Quantity { nanos: (self.nanos + other.nanos).clamp(-MAX, MAX), format }
    }

    /// The difference, in the format of `self` unless that is zero; saturates.
    #[must_use]
    pub fn sub(&self, other: &Quantity) -> Quantity {
        self.add(&Quantity { nanos: -other.nanos, format: other.format })
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl std::str::FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Quantity::parse(text)
    }
}

/// The canonical string: the largest suffix that needs no fraction.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        if self.format == Format::BinarySi && self.is_whole() && self.nanos.abs() >= 1024 * NANO {
            let (mut n, mut power) = (self.nanos / NANO, 0usize);
            while n % 1024 == 0 && power < 6 {
                n /= 1024;
                power += 1;
            }
            let suffix = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].get(power).copied().unwrap_or_default();
            return write!(f, "{n}{suffix}");
        }
        let (mut n, mut exponent) = (self.nanos, -9i32);
        while n % 1000 == 0 && exponent < 18 {
            n /= 1000;
            exponent += 3;
        }
        if self.format == Format::DecimalExponent {
            return if exponent == 0 { write!(f, "{n}") } else { write!(f, "{n}e{exponent}") };
        }
        let suffixes = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        let suffix = usize::try_from(exponent / 3 + 3).ok().and_then(|i| suffixes.get(i)).copied();
        write!(f, "{n}{}", suffix.unwrap_or_default())
    }
}

// `[eEinumkKMGTP]*[-+]?[0-9]*`
fn check_suffix_shape(suffix: &str) -> Result<(), ParseError> {
    let rest = suffix.trim_start_matches(|c: char| "eEinumkKMGTP".contains(c));
    let rest = rest.strip_prefix(['+', '-']).unwrap_or(rest);
    if rest.bytes().all(|b| b.is_ascii_digit()) { Ok(()) } else { Err(ParseError::Format) }
}

// Format, power of ten, power of two.
fn suffix_of(suffix: &str) -> Option<(Format, i32, u32)> {
    let si = |ten| Some((Format::DecimalSi, ten, 0));
    let binary = |two| Some((Format::BinarySi, 0, two));
    match suffix {
        "n" => si(-9),
        "u" => si(-6),
        "m" => si(-3),
        "" => si(0),
        "k" => si(3),
        "M" => si(6),
        "G" => si(9),
        "T" => si(12),
        "P" => si(15),
        "E" => si(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            Some((Format::DecimalExponent, exponent.clamp(-10_000, 10_000), 0))
        }
    }
}

// whole.fraction * 10^ten * 2^two in billionths, rounded up; saturates at i128::MAX.
fn scale(whole: &str, fraction: &str, ten: i32, two: u32) -> i128 {
    // As many digits as leave room for the power of two.
    let room = if two > 0 { 20 } else { 28 };
    let (mut digits, mut taken, mut dropped, mut rest) = (0i128, 0, 0i32, false);
    for d in whole.bytes().chain(fraction.bytes()).map(|b| i128::from(b - b'0')) {
        if taken < room {
            digits = digits * 10 + d;
            taken += i32::from(digits != 0);
        } else {
            dropped += 1;
            rest |= d != 0;
        }
    }
    if digits == 0 {
        return 0;
    }
    let power = ten + 9 + dropped - fraction.len() as i32;
    let digits = digits << two;
    if power >= 0 {
        let factor = 10i128.checked_pow(power.unsigned_abs());
        return factor.and_then(|f| digits.checked_mul(f)).unwrap_or(i128::MAX);
    }
    match 10i128.checked_pow(power.unsigned_abs()) {
        None => 1,
        Some(divisor) => digits / divisor + i128::from(rest || digits % divisor != 0),
    }
}

fn div_away(n: i128, by: i128) -> i128 {
    n / by + if n % by == 0 { 0 } else { n.signum() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn canonical() {
        let table = [
            ("0", "0"),
            ("0.0", "0"),
            ("1", "1"),
            ("+1", "1"),
            ("-1", "-1"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("1.", "1"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("100000", "100k"),
            ("10", "10"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("2E", "2E"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Mi", "512Ki"),
            ("512Ki", "512Ki"),
            ("1Ki", "1Ki"),
            ("0.5Ki", "512"),
            ("1000Ki", "1000Ki"),
            ("0.1n", "1n"),
            ("-0.1n", "-1n"),
            ("1e-30", "1e-9"),
            ("12e30", "9223372036854775807e0"),
            ("1.1Ki", "1126400m"),
            ("1000000", "1M"),
            ("9223372036854775807", "9223372036854775807"),
            ("123456789123456789123", "9223372036854775807"),
        ];
        for (text, canonical) in table {
            let canonical = canonical.trim_end_matches("e0");
            assert_eq!(Quantity::parse(text).unwrap().to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn refused() {
        for text in ["", "abc", "1x", " 1", "1 ", "--1", "1..2", ".", "é", "1e3x"] {
            assert_eq!(Quantity::parse(text), Err(ParseError::Format), "{text}");
        }
        for text in ["1mi", "1e", "1KK", "1Ki3", "1i"] {
            assert_eq!(Quantity::parse(text), Err(ParseError::Suffix), "{text}");
        }
    }

    #[test]
    fn arithmetic() {
        let q = |s: &str| Quantity::parse(s).unwrap();
        assert_eq!(q("1").milli_value(), 1000);
        assert_eq!(q("1m").value(), 1);
        assert_eq!(q("-1m").value(), -1);
        assert_eq!(q("1Gi").value(), 1 << 30);
        assert!(q("1Gi") > q("1G"));
        assert_eq!(q("1000m"), q("1"));
        assert_eq!(q("1Gi").add(&q("1Gi")).to_string(), "2Gi");
        assert_eq!(q("0").add(&q("1Ki")).to_string(), "1Ki");
        assert_eq!(q("1").sub(&q("1500m")).to_string(), "-500m");
        assert_eq!(Quantity::from_bytes(1 << 20).to_string(), "1Mi");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            let _ = Quantity::parse(&text);
        }

        #[test]
        fn canonical_round_trips(text in "[+-]?[0-9]{0,30}\\.?[0-9]{0,12}(n|u|m||k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|e[0-9]{1,3}|E-[0-9]{1,3})") {
            if let Ok(q) = Quantity::parse(&text) {
                let canonical = q.to_string();
                let again = Quantity::parse(&canonical).unwrap();
                prop_assert_eq!(q, again);
                prop_assert_eq!(again.to_string(), canonical);
            }
        }
    }
}
