//! The log of a container in the CRI format: `<time> <stream> <F|P> <line>`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The longest line in one piece, in bytes; a longer one is written in parts.
const MAX_LINE: usize = 16 << 10;

/// The log file.
pub(super) struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens it to append.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Opens the path anew, after a rotation.
    pub fn reopen(&mut self) -> io::Result<()> {
        *self = Self::open(&self.path)?;
        Ok(())
    }

    fn line(&mut self, stream: &str, tag: char, line: &[u8]) -> io::Result<()> {
        let mut text = Vec::with_capacity(line.len() + 64);
        write!(text, "{:.9} {stream} {tag} ", jiff::Timestamp::now())?;
        text.extend_from_slice(line);
        text.push(b'\n');
        self.file.write_all(&text)
    }
}

/// Cuts one stream into lines.
pub(super) struct Lines {
    stream: &'static str,
    partial: Vec<u8>,
}

impl Lines {
    /// Lines of `stdout` or `stderr`.
    pub fn new(stream: &'static str) -> Self {
        Self { stream, partial: Vec::new() }
    }

    /// Adds bytes; whole lines, and parts of too long ones, go to the log.
    pub fn write(&mut self, log: &mut Log, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let (content, whole) = match piece.split_last() {
                Some((b'\n', content)) => (content, true),
                _ => (piece, false),
            };
            let mut rest = content;
            while self.partial.len() + rest.len() > MAX_LINE {
                let (now, later) = rest.split_at((MAX_LINE - self.partial.len()).min(rest.len()));
                self.partial.extend_from_slice(now);
                log.line(self.stream, 'P', &self.partial)?;
                self.partial.clear();
                rest = later;
            }
            self.partial.extend_from_slice(rest);
            if whole {
                log.line(self.stream, 'F', &self.partial)?;
                self.partial.clear();
            }
        }
        Ok(())
    }

    /// The stream has ended: what is left is a line.
    pub fn flush(&mut self, log: &mut Log) -> io::Result<()> {
        if !self.partial.is_empty() {
            log.line(self.stream, 'F', &self.partial)?;
            self.partial.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_parts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Log::open(&path).unwrap();
        let mut lines = Lines::new("stdout");
        lines.write(&mut log, b"one\ntw").unwrap();
        lines.write(&mut log, b"o\n\n").unwrap();
        lines.write(&mut log, &vec![b'x'; MAX_LINE + 3]).unwrap();
        lines.write(&mut log, b"\nend").unwrap();
        lines.flush(&mut log).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let found: Vec<(&str, usize)> = text
            .lines()
            .map(|line| {
                let (head, content) = (line.get(31..40).unwrap(), line.get(41..).unwrap_or_default());
                (head.trim_end(), content.len())
            })
            .collect();
        let expected =
            [("stdout F", 3), ("stdout F", 3), ("stdout F", 0), ("stdout P", MAX_LINE), ("stdout F", 3)];
        assert_eq!(
            found.iter().map(|(h, _)| *h).collect::<Vec<_>>(),
            expected.iter().map(|e| e.0).chain(["stdout F"]).collect::<Vec<_>>()
        );
        assert_eq!(found.len(), 6, "{text}");
        assert!(text.ends_with(" stdout F end\n"));
    }
}
