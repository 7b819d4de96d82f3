//! Log files in CRI format (`<time> <stdout|stderr> <P|F> <text>`), read as the API asks for them.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use k8s_openapi::jiff::Timestamp;
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, BufReader, SeekFrom};
use tokio::sync::mpsc;

pub mod rotate;

/// The longest line that is read in one piece, in bytes: CRI writers split at 16 KiB.
const MAX_LINE: u64 = 1 << 20;
const CHUNK: u64 = 64 << 10;
const POLL: std::time::Duration = std::time::Duration::from_millis(100);

/// What a reader of logs asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Query {
    /// Go on when the end is reached.
    pub follow: bool,
    /// Only the last so many lines.
    pub tail: Option<u64>,
    /// Only lines from this time on.
    pub since: Option<Timestamp>,
    /// With their times.
    pub timestamps: bool,
    /// At most so many bytes.
    pub limit: Option<u64>,
}

/// One line of a log file.
#[derive(Debug, PartialEq)]
struct Entry<'a> {
    time: &'a str,
    whole: bool,
    text: &'a [u8],
}

/// Reads one line; `None`: it is not in CRI format.
fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let _stream = parts.next()?;
    let tags = parts.next()?;
    let text = parts.next().unwrap_or_default();
    Some(Entry { time, whole: !tags.starts_with(b"P"), text })
}

/// What the writer of a line wrote: without time and stream; a part of a line without a newline.
pub fn text(line: &[u8]) -> Vec<u8> {
    render(line, &Query::default(), &mut false).unwrap_or_default()
}

/// How many lines end in a file, and where the last `lines` of them begin.
async fn tail_offset(file: &mut File, lines: u64) -> std::io::Result<(u64, u64)> {
    let end = file.seek(SeekFrom::End(0)).await?;
    if lines == 0 || end == 0 {
        return Ok((0, end));
    }
    // What the file ends with is a line, with its newline or without.
    let (mut at, mut seen) = (end, 0_u64);
    while at > 0 {
        let size = CHUNK.min(at);
        at -= size;
        file.seek(SeekFrom::Start(at)).await?;
        let mut chunk = vec![0; usize::try_from(size).unwrap_or(0)];
        file.read_exact(&mut chunk).await?;
        for (index, byte) in chunk.iter().enumerate().rev() {
            let position = at + u64::try_from(index).unwrap_or(0);
            // The newline that ends the file begins no line.
            if *byte == b'\n' && position + 1 < end {
                seen += 1;
                if seen == lines {
                    return Ok((seen, position + 1));
                }
            }
        }
    }
    Ok((seen + 1, 0))
}

/// Sends what `query` asks for to `out`, until the end, or with `follow` until `alive` says that the container is gone
/// and all is read. Ends when nobody listens.
pub async fn stream<F, Fut>(
    path: PathBuf,
    query: Query,
    mut alive: F,
    out: mpsc::Sender<std::io::Result<Bytes>>,
) where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    if let Err(error) = copy(&path, &query, &mut alive, &out).await {
        let _ = out.send(Err(error)).await;
    }
}

async fn open(path: &Path, follow: bool) -> std::io::Result<File> {
    for _ in 0..if follow { 50 } else { 1 } {
        match File::open(path).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && follow => {
                tokio::time::sleep(POLL).await
            }
            other => return other,
        }
    }
    File::open(path).await
}

async fn copy<F, Fut>(
    path: &Path,
    query: &Query,
    alive: &mut F,
    out: &mpsc::Sender<std::io::Result<Bytes>>,
) -> std::io::Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let current = open(path, query.follow).await?;
    let mut files = begin(path, current, query.tail).await?;
    let Some(mut reader) = files.pop_front().map(BufReader::new) else { return Ok(()) };
    let mut left = query.limit.unwrap_or(u64::MAX);
    let mut line = Vec::new();
    let mut last_look = false;
    let mut continued = false;
    loop {
        let room = MAX_LINE.saturating_sub(u64::try_from(line.len()).unwrap_or(0));
        let read = (&mut reader).take(room).read_until(b'\n', &mut line).await?;
        let complete = line.ends_with(b"\n") || u64::try_from(line.len()).unwrap_or(0) >= MAX_LINE;
        if read > 0 && complete {
            let text = render(&line, query, &mut continued);
            line.clear();
            let Some(mut text) = text else { continue };
            let size = usize::try_from(left).unwrap_or(usize::MAX).min(text.len());
            text.truncate(size);
            left -= u64::try_from(size).unwrap_or(0);
            if size > 0 && out.send(Ok(text.into())).await.is_err() {
                return Ok(());
            }
            if left == 0 {
                return Ok(());
            }
            continue;
        }
        if let Some(next) = files.pop_front() {
            reader = BufReader::new(next);
            line.clear();
            continue;
        }
        if !query.follow {
            return Ok(());
        }
        // All of this file is read: when it was put aside, the container goes on in a new one.
        if let Some(next) = successor(path, &reader).await {
            reader = BufReader::new(next);
            line.clear();
            continue;
        }
        if last_look {
            return Ok(());
        }
        // One more look after the container is gone: its last words may have come in between.
        last_look = !alive().await;
        if !last_look {
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                () = out.closed() => return Ok(()),
            }
        }
    }
}

/// The files to be read, oldest first: those that were put aside and the current one, at the first line that is asked for.
async fn begin(path: &Path, current: File, tail: Option<u64>) -> std::io::Result<VecDeque<File>> {
    let mut known = identity(&current).await.into_iter().collect::<Vec<_>>();
    let mut files = VecDeque::from([current]);
    for old in rotate::aside(path)?.iter().rev() {
        // One that is forgotten at this moment is not there any more.
        let Ok(file) = File::open(old).await else { continue };
        // The current one may just have been put aside.
        let Some(id) = identity(&file).await.filter(|id| !known.contains(id)) else { continue };
        known.push(id);
        files.push_front(file);
    }
    let mut left = tail.unwrap_or(u64::MAX);
    for file in files.iter_mut().rev().filter(|_| tail.is_some()) {
        let (lines, start) = tail_offset(file, left).await?;
        file.seek(SeekFrom::Start(start)).await?;
        left -= lines.min(left);
    }
    Ok(files)
}

async fn identity(file: &File) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    file.metadata().await.ok().map(|m| (m.dev(), m.ino()))
}

/// The file that has the name now, when it is another than the one that is read.
async fn successor(path: &Path, reader: &BufReader<File>) -> Option<File> {
    use std::os::unix::fs::MetadataExt;
    let now = tokio::fs::metadata(path).await.ok()?;
    let open = reader.get_ref().metadata().await.ok()?;
    if (now.dev(), now.ino()) == (open.dev(), open.ino()) {
        return None;
    }
    File::open(path).await.ok()
}

fn render(line: &[u8], query: &Query, continued: &mut bool) -> Option<Vec<u8>> {
    let bare = line.strip_suffix(b"\n").unwrap_or(line);
    let Some(entry) = parse(bare) else { return Some(line.to_vec()) };
    let begins = !std::mem::replace(continued, !entry.whole);
    if let Some(since) = query.since
        && entry.time.parse::<Timestamp>().is_ok_and(|time| time < since)
    {
        return None;
    }
    let mut text = Vec::with_capacity(line.len());
    if query.timestamps && begins {
        text.extend_from_slice(entry.time.as_bytes());
        text.push(b' ');
    }
    text.extend_from_slice(entry.text);
    if entry.whole {
        text.push(b'\n');
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-11-21T05:00:00.000000001Z stdout F one\n\
        2026-11-21T05:00:01.000000001Z stderr P tw\n\
        2026-11-21T05:00:01.000000002Z stderr F o\n\
        2026-11-21T05:00:02.000000001Z stdout F \n\
        2026-11-21T05:00:03.000000001Z stdout F four\n";

    async fn read(query: Query) -> String {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("0.log"), LOG).expect("a log");
        read_in(dir.path(), query).await
    }

    async fn read_in(dir: &Path, query: Query) -> String {
        let path = dir.join("0.log");
        let (out, mut lines) = mpsc::channel(8);
        tokio::spawn(stream(path, query, || async { false }, out));
        let mut all = Vec::new();
        while let Some(line) = lines.recv().await {
            all.extend_from_slice(&line.expect("a line"));
        }
        String::from_utf8(all).expect("text")
    }

    #[tokio::test]
    async fn queries() {
        let table = [
            (Query::default(), "one\ntwo\n\nfour\n"),
            (Query { tail: Some(2), ..Default::default() }, "\nfour\n"),
            (Query { tail: Some(0), ..Default::default() }, ""),
            (Query { tail: Some(100), ..Default::default() }, "one\ntwo\n\nfour\n"),
            (Query { limit: Some(5), ..Default::default() }, "one\nt"),
            (Query { since: "2026-11-21T05:00:02Z".parse().ok(), ..Default::default() }, "\nfour\n"),
            (Query { follow: true, ..Default::default() }, "one\ntwo\n\nfour\n"),
            (
                Query { tail: Some(1), timestamps: true, ..Default::default() },
                "2026-11-21T05:00:03.000000001Z four\n",
            ),
        ];
        for (query, expected) in table {
            assert_eq!(read(query.clone()).await, expected, "{query:?}");
        }
    }

    #[tokio::test]
    async fn across_files_that_were_put_aside() {
        let dir = tempfile::tempdir().expect("a directory");
        let line = |n| format!("2026-11-21T05:00:0{n}.000000001Z stdout F {n}\n");
        for (name, from) in [("0.log.20261121-050001", 0), ("0.log.20261121-050003", 2), ("0.log", 4)] {
            std::fs::write(dir.path().join(name), line(from) + &line(from + 1)).expect("a log");
        }
        std::fs::write(dir.path().join("0.log.other"), "no log\n").expect("a file");
        let table = [
            (Query::default(), "0\n1\n2\n3\n4\n5\n"),
            (Query { follow: true, ..Default::default() }, "0\n1\n2\n3\n4\n5\n"),
            (Query { tail: Some(1), ..Default::default() }, "5\n"),
            (Query { tail: Some(2), ..Default::default() }, "4\n5\n"),
            (Query { tail: Some(3), ..Default::default() }, "3\n4\n5\n"),
            (Query { tail: Some(6), follow: true, ..Default::default() }, "0\n1\n2\n3\n4\n5\n"),
            (Query { tail: Some(9), ..Default::default() }, "0\n1\n2\n3\n4\n5\n"),
            (Query { tail: Some(0), ..Default::default() }, ""),
            (Query { limit: Some(5), ..Default::default() }, "0\n1\n2"),
            (Query { since: "2026-11-21T05:00:03Z".parse().ok(), ..Default::default() }, "3\n4\n5\n"),
        ];
        for (query, expected) in table {
            assert_eq!(read_in(dir.path(), query.clone()).await, expected, "{query:?}");
        }
    }

    #[test]
    fn other_lines_pass_as_they_are() {
        let mut continued = false;
        assert_eq!(render(b"plain\n", &Query::default(), &mut continued), Some(b"plain\n".to_vec()));
    }
}
