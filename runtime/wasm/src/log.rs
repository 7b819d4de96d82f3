//! A container's log in the CRI format: `<time> <stream> <F|P> <line>`. Bounded: a guest that writes faster than
//! the disk waits.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast};

/// The longest line in one piece; a longer one is written in parts.
pub(crate) const MAX_LINE: usize = 16 << 10;
/// How much may wait for the disk before a guest has to.
const MAX_WAITING: usize = 256 << 10;

/// How long a rotation waits for what was written before.
const SETTLE: std::time::Duration = std::time::Duration::from_millis(200);

/// How many pieces a follower may be behind.
const FOLLOWED: usize = 256;

/// Which of the two streams a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// The writer has taken bytes and not yet written them.
    writing: bool,
    wakers: Vec<Waker>,
}

/// The log of one container, shared by its instances.
pub(crate) struct Log {
    path: PathBuf,
    file: Mutex<File>,
    waiting: Mutex<Waiting>,
    /// Its writer has something to do: also when there is no log any more.
    work: Arc<Notify>,
    idle: Notify,
    /// For those who watch it as it is written; made for the first of them, as its room is taken at once.
    followers: OnceLock<broadcast::Sender<(Stream, Bytes)>>,
}

impl Drop for Log {
    fn drop(&mut self) {
        let rest = std::mem::take(&mut self.waiting.get_mut().bytes);
        if !rest.is_empty() {
            self.write(&rest);
        }
        self.work.notify_one();
    }
}

impl Log {
    /// What is written from now on; one who is too slow misses some.
    pub fn follow(&self) -> broadcast::Receiver<(Stream, Bytes)> {
        self.followers.get_or_init(|| broadcast::Sender::new(FOLLOWED)).subscribe()
    }

    /// Shows followers what a guest has written.
    pub fn tell(&self, stream: Stream, bytes: &[u8]) {
        if let Some(followers) = self.followers.get().filter(|followers| followers.receiver_count() > 0) {
            let _ = followers.send((stream, Bytes::copy_from_slice(bytes)));
        }
    }

    /// Opens `path` to append, and starts its writer, which lives as long as the log.
    pub fn open(path: &Path) -> io::Result<Arc<Log>> {
        let log = Arc::new(Log {
            path: path.to_owned(),
            file: Mutex::new(open(path)?),
            waiting: Mutex::default(),
            work: Arc::default(),
            idle: Notify::new(),
            followers: OnceLock::new(),
        });
        let (weak, work) = (Arc::downgrade(&log), log.work.clone());
        tokio::spawn(async move {
            while let Some(log) = weak.upgrade() {
                let written = log.write_waiting().await;
                drop(log);
                if !written {
                    work.notified().await;
                }
            }
        });
        Ok(log)
    }

    /// Writes what waits; false when nothing did.
    async fn write_waiting(self: &Arc<Log>) -> bool {
        let bytes = {
            let mut waiting = self.waiting.lock();
            if waiting.bytes.is_empty() {
                return false;
            }
            waiting.writing = true;
            std::mem::take(&mut waiting.bytes)
        };
        let log = self.clone();
        let _ = tokio::task::spawn_blocking(move || log.write(&bytes)).await;
        let wakers = {
            let mut waiting = self.waiting.lock();
            waiting.writing = false;
            std::mem::take(&mut waiting.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
        self.idle.notify_waiters();
        true
    }

    fn write(&self, bytes: &[u8]) {
        if let Err(error) = self.file.lock().write_all(bytes) {
            tracing::warn!(path = %self.path.display(), %error, "lines of a container's log are lost");
        }
    }

    /// How many bytes a guest may write now; registers the waker when none.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<usize> {
        let mut waiting = self.waiting.lock();
        match MAX_WAITING.checked_sub(waiting.bytes.len()) {
            Some(room) if room > 0 => Poll::Ready(room),
            _ => {
                waiting.wakers.push(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// How many bytes a guest may write now; 0 when it has to wait.
    pub fn room(&self) -> usize {
        MAX_WAITING.saturating_sub(self.waiting.lock().bytes.len())
    }

    /// Adds one line, or a part of one. Never waits: callers ask for room first.
    fn push(&self, stream: Stream, complete: bool, line: &[u8]) {
        let mut waiting = self.waiting.lock();
        let tag = if complete { 'F' } else { 'P' };
        let now = jiff::Timestamp::now();
        let _ = write!(waiting.bytes, "{now:.9} {} {tag} ", stream.name());
        waiting.bytes.extend_from_slice(line);
        waiting.bytes.push(b'\n');
        drop(waiting);
        self.work.notify_one();
    }

    /// Adds text of the host's own, such as a backtrace, on stderr; cut at 64 KiB, dropped when the log is full.
    pub fn note(&self, text: &str) {
        if self.room() == 0 {
            return;
        }
        let end = text.floor_char_boundary(64 << 10);
        let mut lines = Lines::new(Stream::Stderr);
        lines.write(self, text.get(..end).unwrap_or_default().as_bytes());
        lines.flush(self);
    }

    /// Waits until everything written so far is in the file.
    pub async fn settled(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            {
                let waiting = self.waiting.lock();
                if waiting.bytes.is_empty() && !waiting.writing {
                    return;
                }
            }
            self.work.notify_one();
            idle.await;
        }
    }

    /// Opens the path anew. What waits is written to the old file first, unless a guest writes on and on.
    pub async fn reopen(self: &Arc<Log>) -> io::Result<()> {
        let _ = tokio::time::timeout(SETTLE, self.settled()).await;
        let log = self.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let file = open(&log.path)?;
            *log.file.lock() = file;
            Ok(())
        });
        opened.await.map_err(io::Error::other)?
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

/// Cuts what a guest writes into lines.
pub(crate) struct Lines {
    stream: Stream,
    partial: Vec<u8>,
}

impl Lines {
    /// Lines of one stream of one instance.
    pub fn new(stream: Stream) -> Lines {
        Lines { stream, partial: Vec::new() }
    }

    /// Which stream they are of.
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// Adds bytes; complete lines, and parts of too long ones, go to the log.
    pub fn write(&mut self, log: &Log, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = MAX_LINE - self.partial.len();
            let window = bytes.get(..room.min(bytes.len())).unwrap_or(bytes);
            if let Some(end) = window.iter().position(|b| *b == b'\n') {
                self.partial.extend_from_slice(window.get(..end).unwrap_or_default());
                log.push(self.stream, true, &self.partial);
                self.partial.clear();
                bytes = bytes.get(end + 1..).unwrap_or_default();
                continue;
            }
            self.partial.extend_from_slice(window);
            bytes = bytes.get(window.len()..).unwrap_or_default();
            if self.partial.len() == MAX_LINE && !bytes.is_empty() {
                log.push(self.stream, false, &self.partial);
                self.partial.clear();
            }
        }
    }

    /// The stream has ended: what is left is a line.
    pub fn flush(&mut self, log: &Log) {
        if !self.partial.is_empty() {
            log.push(self.stream, true, &self.partial);
            self.partial.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_waits_is_written_when_the_log_goes() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("0.log");
        let log = Log::open(&path)?;
        // Nothing else has run since: its writer knows of no line.
        Lines::new(Stream::Stdout).write(&log, b"last words\n");
        drop(log);
        assert!(std::fs::read_to_string(&path)?.ends_with(" stdout F last words\n"));
        Ok(())
    }

    #[tokio::test]
    async fn lines_parts_and_rotation() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("deep/er/0.log");
        let log = Log::open(&path)?;
        let mut out = Lines::new(Stream::Stdout);
        out.write(&log, b"one\ntw");
        out.write(&log, b"o\n\n");
        out.write(&log, &vec![b'x'; MAX_LINE + 3]);
        out.write(&log, b"\nend");
        out.flush(&log);
        log.note("a\nb");
        log.settled().await;
        std::fs::rename(&path, dir.path().join("rotated"))?;
        log.reopen().await?;
        log.note("after");
        log.settled().await;

        let text = std::fs::read_to_string(dir.path().join("rotated"))?;
        let lines: Vec<(String, usize)> = text
            .lines()
            .map(|line| {
                let (time, rest) = line.split_once(' ').unwrap_or_default();
                assert!(time.len() == 30 && time.ends_with('Z'), "{time}");
                let (head, content) = rest.split_at(rest.find(" F ").or(rest.find(" P ")).unwrap_or(0) + 3);
                (head.trim().to_owned(), content.len())
            })
            .collect();
        let expected = [
            ("stdout F", 3),
            ("stdout F", 3),
            ("stdout F", 0),
            ("stdout P", MAX_LINE),
            ("stdout F", 3),
            ("stdout F", 3),
            ("stderr F", 1),
            ("stderr F", 1),
        ];
        let expected: Vec<_> = expected.map(|(h, n)| (h.to_owned(), n)).into();
        assert_eq!(lines, expected);
        assert!(std::fs::read_to_string(&path)?.ends_with("stderr F after\n"));
        Ok(())
    }

    #[tokio::test]
    async fn a_flood_has_to_wait() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let log = Log::open(&dir.path().join("log"))?;
        let held = log.file.lock();
        let mut out = Lines::new(Stream::Stdout);
        let mut written = 0;
        while log.room() > 0 && written < 10_000 {
            out.write(&log, &[b'y'; 1000]);
            out.write(&log, b"\n");
            written += 1;
        }
        assert!(written < 10_000, "room never ran out");
        drop(held);
        std::future::poll_fn(|cx| log.poll_room(cx)).await;
        Ok(())
    }
}
