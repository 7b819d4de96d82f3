//! Generated names.

use rand::Rng;

/// The letters of generated names: no vowels and no look-alikes, so that no words appear.
pub const ALPHABET: &str = "bcdfghjklmnpqrstvwxz2456789";

/// The longest name that is generated; a longer `generateName` is cut to make room for its suffix.
pub const GENERATED_MAX: usize = 63;

const SUFFIX: usize = 5;

/// `length` random letters of [`ALPHABET`].
pub fn random_suffix(length: usize) -> String {
    let letters = ALPHABET.as_bytes();
    let mut rng = rand::rng();
    (0..length)
        .filter_map(|_| letters.get(rng.random_range(0..letters.len())))
        .map(|b| char::from(*b))
        .collect()
}

/// A name for `metadata.generateName`: the base (cut to 58 bytes) and five random letters.
pub fn generate(base: &str) -> String {
    let mut end = base.len().min(GENERATED_MAX - SUFFIX);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{}", base.get(..end).unwrap_or_default(), random_suffix(SUFFIX))
}

/// Text (a hash in decimal) as letters of [`ALPHABET`]: what `pod-template-hash` holds.
pub fn safe_encode(text: &str) -> String {
    let letters = ALPHABET.as_bytes();
    text.bytes().filter_map(|b| letters.get(usize::from(b) % letters.len())).map(|b| char::from(*b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes() {
        let name = generate("hello-");
        assert_eq!(name.len(), 11);
        assert!(name.starts_with("hello-"));
        assert!(name.chars().skip(6).all(|c| ALPHABET.contains(c)));
        assert_eq!(generate(&"é".repeat(60)).chars().count(), 29 + 5);
        assert_eq!(safe_encode("0123456789").len(), 10);
    }
}
