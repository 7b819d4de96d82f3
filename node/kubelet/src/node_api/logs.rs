//! Container logs, read from files in the CRI format: `TIME STREAM TAG LINE`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use coracle_cri_api::v1::ContainerState;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, BufReader};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::Shared;
use crate::cri::POD_UID;

/// How often a followed log is looked at.
const POLL: Duration = Duration::from_millis(50);
/// The longest line of a log file; longer ones are cut by the runtime.
const MAX_LINE: u64 = 256 << 10;

/// What is asked, in the API's own words.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Query {
    pub follow: Option<bool>,
    pub previous: Option<bool>,
    pub timestamps: Option<bool>,
    pub tail_lines: Option<usize>,
    pub limit_bytes: Option<usize>,
    pub since_seconds: Option<i64>,
    pub since_time: Option<String>,
}

/// Why there is no log.
#[derive(Debug)]
pub enum Error {
    NotFound(String),
    BadRequest(String),
    Runtime(String),
}

/// The log as a streaming body.
///
/// # Errors
/// When the pod has no such container here, or no such attempt.
pub async fn open(
    shared: &Arc<Shared>,
    namespace: &str,
    pod: &str,
    container: &str,
    query: Query,
) -> Result<Body, Error> {
    let since = since(&query)?;
    let sandboxes =
        shared.cri.sandboxes().await.map_err(|status| Error::Runtime(status.message().to_owned()))?;
    let newest = sandboxes
        .iter()
        .filter(|one| {
            one.metadata.as_ref().is_some_and(|meta| meta.name == pod && meta.namespace == namespace)
        })
        .max_by_key(|one| one.created_at);
    let uid = newest.and_then(|one| one.labels.get(POD_UID)).cloned();
    let uid = uid.ok_or_else(|| {
        Error::NotFound(format!("pod {pod:?} of namespace {namespace:?} does not run here"))
    })?;
    let observed =
        shared.cri.observe(&uid).await.map_err(|status| Error::Runtime(status.message().to_owned()))?;
    let chosen = if query.previous.unwrap_or(false) {
        observed.previous(container)
    } else {
        observed.latest(container)
    };
    let chosen = chosen.ok_or_else(|| {
        let what = if query.previous.unwrap_or(false) { "previous terminated " } else { "" };
        Error::BadRequest(format!("{what}container {container:?} in pod {pod:?} not found"))
    })?;
    let reader = Reader {
        path: PathBuf::from(&chosen.log_path),
        follow: query.follow.unwrap_or(false),
        timestamps: query.timestamps.unwrap_or(false),
        since,
        left: query.limit_bytes.unwrap_or(usize::MAX),
        shared: shared.clone(),
        uid,
        id: chosen.id.clone(),
    };
    let (lines, receiver) = mpsc::channel(64);
    let tail = query.tail_lines;
    tokio::spawn(async move {
        if let Err(error) = reader.send(tail, &lines).await {
            let _ = lines.send(Err(error)).await;
        }
    });
    Ok(Body::from_stream(ReceiverStream::new(receiver)))
}

fn since(query: &Query) -> Result<Option<Timestamp>, Error> {
    if let Some(text) = &query.since_time {
        return text
            .parse()
            .map(Some)
            .map_err(|error| Error::BadRequest(format!("sinceTime {text:?}: {error}")));
    }
    let Some(seconds) = query.since_seconds else { return Ok(None) };
    Timestamp::from_second(Timestamp::now().as_second().saturating_sub(seconds))
        .map(Some)
        .map_err(|error| Error::BadRequest(format!("sinceSeconds {seconds}: {error}")))
}

struct Reader {
    path: PathBuf,
    follow: bool,
    timestamps: bool,
    since: Option<Timestamp>,
    left: usize,
    shared: Arc<Shared>,
    uid: String,
    id: String,
}

type Lines = mpsc::Sender<std::io::Result<Bytes>>;

impl Reader {
    async fn send(mut self, tail: Option<usize>, lines: &Lines) -> std::io::Result<()> {
        let file = match tokio::fs::File::open(&self.path).await {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut file = BufReader::new(file);
        if let Some(tail) = tail {
            let start = self.tail_start(&mut file, tail).await?;
            file.seek(std::io::SeekFrom::Start(start)).await?;
        }
        let mut line = Vec::new();
        let mut last_look = false;
        loop {
            let read = (&mut file).take(MAX_LINE).read_until(b'\n', &mut line).await?;
            if read > 0 && line.ends_with(b"\n") {
                last_look = false;
                if !self.line(&line, lines).await {
                    return Ok(());
                }
                line.clear();
                continue;
            }
            // A line that is not whole yet stays in the buffer.
            if !self.follow || last_look || line.len() as u64 >= MAX_LINE {
                return Ok(());
            }
            if !self.running().await {
                // What was written between the look at the file and the end of the container.
                last_look = true;
                continue;
            }
            tokio::select! {
                () = lines.closed() => return Ok(()),
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }

    /// The offset of the last `tail` whole lines, found in one pass with bounded memory.
    async fn tail_start(&self, file: &mut BufReader<tokio::fs::File>, tail: usize) -> std::io::Result<u64> {
        let mut starts = std::collections::VecDeque::new();
        let mut offset = 0;
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = file.take(MAX_LINE).read_until(b'\n', &mut line).await?;
            if read == 0 {
                return Ok(starts.pop_front().unwrap_or(offset));
            }
            if whole(&line) {
                starts.push_back(offset);
                if starts.len() > tail.min(1_000_000) {
                    starts.pop_front();
                }
            }
            offset += read as u64;
        }
    }

    /// Sends one line; false when no more is wanted.
    async fn line(&mut self, line: &[u8], lines: &Lines) -> bool {
        let Some((time, text)) = parse(line) else { return true };
        if self.since.is_some_and(|since| time.parse::<Timestamp>().is_ok_and(|at| at < since)) {
            return true;
        }
        let mut out = Vec::with_capacity(line.len());
        if self.timestamps {
            out.extend_from_slice(time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(text);
        out.truncate(self.left);
        self.left -= out.len();
        lines.send(Ok(Bytes::from(out))).await.is_ok() && self.left > 0
    }

    async fn running(&self) -> bool {
        let observed = self.shared.cri.observe(&self.uid).await;
        // A runtime that does not answer now is no end of the container.
        observed.map_or(true, |all| {
            all.containers
                .iter()
                .any(|one| one.id == self.id && one.state() == ContainerState::ContainerRunning)
        })
    }
}

/// The time and the text of a line; the text of a partial one is without its line break.
fn parse(line: &[u8]) -> Option<(&str, &[u8])> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let _stream = parts.next()?;
    let tag = parts.next()?;
    let text = parts.next()?;
    Some((time, if tag == b"P" { text.strip_suffix(b"\n").unwrap_or(text) } else { text }))
}

fn whole(line: &[u8]) -> bool {
    line.splitn(4, |byte| *byte == b' ').nth(2).is_some_and(|tag| tag.starts_with(b"F"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_cri_format() {
        let time = "2026-01-01T00:00:00.000000000Z";
        let full = format!("{time} stdout F hello world\n");
        assert_eq!(parse(full.as_bytes()), Some((time, &b"hello world\n"[..])));
        let part = format!("{time} stderr P half\n");
        assert_eq!(parse(part.as_bytes()), Some((time, &b"half"[..])));
        assert_eq!(parse(b"nonsense\n"), None);
        assert!(whole(full.as_bytes()) && !whole(part.as_bytes()));
    }
}
