//! Sets of processors in the kernel's words: `0-2,7`.

use std::collections::BTreeSet;

/// Processors by their numbers.
pub type Set = BTreeSet<u32>;

/// More processors than any machine has.
const MOST: u32 = 8192;

/// Reads `0-2,7`; empty text is the empty set.
///
/// # Errors
/// What is wrong with the text.
pub fn parse(text: &str) -> Result<Set, String> {
    let mut set = Set::new();
    for part in text.trim().split(',').filter(|p| !p.trim().is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<u32>().ok().filter(|n| *n < MOST);
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => set.extend(first..=last),
            _ => return Err(format!("{part:?} is not a range of processors such as 0-3")),
        }
    }
    Ok(set)
}

/// The shortest words for a set.
pub fn words(set: &Set) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for cpu in set {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*cpu) => *last = *cpu,
            _ => ranges.push((*cpu, *cpu)),
        }
    }
    let word = |(first, last): (u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranges.into_iter().map(word).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_read_and_written() {
        for (text, expected) in [("", ""), ("3", "3"), ("0-2,7", "0-2,7"), ("7, 1,0,2", "0-2,7")] {
            assert_eq!(parse(text).map(|set| words(&set)), Ok(expected.to_owned()), "{text}");
        }
        for wrong in ["a", "3-1", "-1", "0-99999999"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
