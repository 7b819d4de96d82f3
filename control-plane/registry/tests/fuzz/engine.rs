//! Replays a corpus, then changes of its files, always the same ones for a seed.

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;

use futures::FutureExt;

const RUNS: usize = 1500;
const SEED: u64 = 20_260_101;
/// The longest input.
const LENGTH_MAX: usize = 1 << 14;
/// The most changes of one input.
const CHANGES_MAX: usize = 6;

/// What parsers stumble over.
const WORDS: [&str; 58] = [
    "null",
    "true",
    "false",
    "0",
    "-1",
    "1e400",
    "-0.0",
    "9223372036854775807",
    "9223372036854775808",
    "1.5",
    "\"\"",
    "[]",
    "{}",
    "[null]",
    "{\"\":null}",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "[[[[[[[[",
    "{\"a\":{\"a\":{\"a\":",
    ",",
    ":",
    "}",
    "]",
    "\"",
    "\\",
    "\n",
    "$patch",
    "$retainKeys",
    "$setElementOrder/containers",
    "$deleteFromPrimitiveList/finalizers",
    "/-",
    "/0",
    "~1",
    "~0",
    "/",
    "metadata",
    "spec",
    "name",
    "managedFields",
    "apiVersion",
    "kind",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-list-type",
    "additionalProperties",
    "items",
    "type",
    "&a",
    "*a",
    "!!int",
    "---\n",
    "- ",
    ": ",
    "<<",
    "in (",
    "!=",
    "==",
    "self",
    "()",
];

/// A generator of numbers (SplitMix64): the same everywhere.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 where there is none.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 1).unwrap_or_default() % end.max(1)
    }
}

fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs a target on the files of `corpus/name` and on what becomes of them.
///
/// # Panics
/// When the target panics or answers an error; the input is then in the corpus.
pub async fn run(name: &str, target: impl AsyncFn(&[u8]) -> Result<(), String>) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let files = std::fs::read_dir(&folder).expect("a corpus").map(|entry| entry.expect("a file").path());
    let mut files: Vec<PathBuf> = files.collect();
    files.sort();
    let corpus: Vec<Vec<u8>> = files.iter().map(|path| std::fs::read(path).expect("a file")).collect();
    assert!(!corpus.is_empty(), "nothing in {}", folder.display());
    for (input, path) in corpus.iter().zip(&files) {
        if let Err(why) = tried(&target, input).await {
            panic!("{}: {why}", path.display());
        }
    }
    let mut numbers = Numbers(setting("FUZZ_SEED", SEED));
    for round in 0..setting("FUZZ_RUNS", RUNS) {
        let input = changed(&corpus, &mut numbers);
        if let Err(why) = tried(&target, &input).await {
            let found = folder.join(format!("found-{:016x}", hash(&input)));
            std::fs::write(&found, &input).expect("the finding is kept");
            panic!("round {round}, kept as {}: {why}", found.display());
        }
    }
}

async fn tried(target: &impl AsyncFn(&[u8]) -> Result<(), String>, input: &[u8]) -> Result<(), String> {
    let ended = AssertUnwindSafe(target(input)).catch_unwind().await;
    ended.unwrap_or_else(|_| Err("it panics".to_owned()))
}

fn hash(input: &[u8]) -> u64 {
    input
        .iter()
        .fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3))
}

/// A file with a few changes. The first line is left alone most of the time: it says where the rest goes.
fn changed(corpus: &[Vec<u8>], numbers: &mut Numbers) -> Vec<u8> {
    let mut input = corpus[numbers.below(corpus.len())].clone();
    let line = input.iter().position(|b| *b == b'\n').map_or(0, |end| end + 1);
    let head = if numbers.below(50) == 0 { 0 } else { line };
    for _ in 0..=numbers.below(CHANGES_MAX) {
        let at = head + numbers.below((input.len() + 1).saturating_sub(head));
        let end = at + numbers.below(input.len().saturating_sub(at).min(64) + 1);
        match numbers.below(8) {
            0 => drop(input.drain(at..end)),
            1 => {
                let part = input[at..end].to_vec();
                drop(input.splice(at..at, part));
            }
            2 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << numbers.below(8);
                }
            }
            3 => input.insert(at, u8::try_from(numbers.below(256)).unwrap_or_default()),
            4 => {
                let other = &corpus[numbers.below(corpus.len())];
                let from = numbers.below(other.len());
                let to = from + numbers.below((other.len() - from).min(256) + 1);
                drop(input.splice(at..end, other[from..to].iter().copied()));
            }
            5 => replaced(&mut input, at, numbers),
            _ => {
                let word = WORDS[numbers.below(WORDS.len())];
                drop(input.splice(at..end.min(at + 8), word.bytes()));
            }
        }
    }
    input.truncate(LENGTH_MAX);
    input
}

/// Puts a word in the place of a whole word, number or string, so that the rest can still be read.
fn replaced(input: &mut Vec<u8>, at: usize, numbers: &mut Numbers) {
    let is_word = |b: &u8| b.is_ascii_alphanumeric() || b"-_.\"$/".contains(b);
    let start =
        at.min(input.len()) - input[..at.min(input.len())].iter().rev().take_while(|b| is_word(b)).count();
    let end = start + input[start..].iter().take_while(|b| is_word(b)).count();
    let word = WORDS[numbers.below(WORDS.len())];
    drop(input.splice(start..end, word.bytes()));
}
