//! How a test ends.

use std::process::{ExitCode, Termination};

/// A cluster has ended as it should, and nothing was left of its pods and of it: what a test that passes answers.
///
/// Only the end of a cluster gives it. So a cluster that is dropped before its end is one of a test that failed: it is cleared
/// away, its logs are told, and it is not judged, for that would hide what the test itself says.
#[derive(Debug)]
#[non_exhaustive]
pub struct Ended(());

impl Ended {
    pub(crate) fn well() -> Self {
        Self(())
    }
}

impl Termination for Ended {
    fn report(self) -> ExitCode {
        ExitCode::SUCCESS
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    fn sources(folder: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
    }

    /// Tests of a file that pass without the end of a cluster.
    fn unjudged(text: &str) -> Vec<&str> {
        let tests = text.split("#[test]\n").skip(1);
        let heads = tests.filter_map(|test| test.split(" {\n").next());
        heads.filter(|head| !head.ends_with("-> Result<Ended>")).collect()
    }

    #[test]
    fn every_test_ends_its_cluster() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let files = sources(&folder);
        assert!(files.len() > 50, "{files:?}");
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            assert_eq!(unjudged(&text), Vec::<&str>::new(), "{} has to answer Result<Ended>", file.display());
        }
        assert_eq!(unjudged("#[test]\nfn a() -> Result<()> {\n}\n"), ["fn a() -> Result<()>"]);
    }
}
