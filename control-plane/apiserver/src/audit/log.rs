//! The file: one thread that writes lines, a bounded queue before it, and older files beside it.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tokio::sync::oneshot;

/// Events that wait to be written.
const QUEUE: usize = 10_000;
/// Most files of the past that are looked at.
const MAX_FILES: usize = 10_000;

/// Where the log goes and how much of it is kept.
#[derive(Clone, Debug)]
pub struct LogFile {
    /// The file; `-` is standard output, which is never turned over.
    pub path: PathBuf,
    /// Days that files of the past are kept; 0: for ever.
    pub max_age_days: u64,
    /// Files of the past that are kept; 0: all.
    pub max_backups: usize,
    /// Mebibytes after which a new file is begun; 0: 100.
    pub max_size_mib: u64,
}

enum Message {
    Event(Box<Value>),
    Flush(oneshot::Sender<()>),
}

/// The way to the thread, which ends with it.
pub(super) struct Log {
    sender: SyncSender<Message>,
}

impl Log {
    pub fn start(file: LogFile) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(QUEUE);
        let mut writer = Writer::open(file)?;
        std::thread::Builder::new().name("audit".into()).spawn(move || writer.run(&receiver))?;
        Ok(Self { sender })
    }

    /// Hands an event over; false: the queue is full, and it is lost.
    pub fn write(&self, event: Value) -> bool {
        self.sender.try_send(Message::Event(Box::new(event))).is_ok()
    }

    pub async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        let sender = self.sender.clone();
        let sent = tokio::task::spawn_blocking(move || sender.send(Message::Flush(done)).is_ok());
        if sent.await.unwrap_or(false) {
            let _ = flushed.await;
        }
    }
}

struct Writer {
    file: LogFile,
    out: Option<BufWriter<Box<dyn Write + Send>>>,
    written: u64,
    failed: bool,
}

impl Writer {
    fn open(file: LogFile) -> io::Result<Self> {
        let (out, written) = begin(&file.path)?;
        Ok(Self { file, out: Some(out), written, failed: false })
    }

    fn run(&mut self, receiver: &Receiver<Message>) {
        loop {
            let message = match receiver.try_recv() {
                Ok(message) => message,
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => {
                    // Nobody waits: what was written is to be seen.
                    let flushed = self.flush();
                    self.told(flushed);
                    let Ok(message) = receiver.recv() else { break };
                    message
                }
            };
            match message {
                Message::Event(event) => {
                    let done = self.line(&event);
                    self.told(done);
                }
                Message::Flush(done) => {
                    let flushed = self.flush();
                    self.told(flushed);
                    let _ = done.send(());
                }
            }
        }
        let flushed = self.flush();
        self.told(flushed);
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.as_mut().map_or(Ok(()), Write::flush)
    }

    /// Says once that writing fails, and once that it works again.
    fn told(&mut self, done: io::Result<()>) {
        match done {
            Err(error) if !self.failed => {
                tracing::error!(%error, path = %self.file.path.display(), "the audit log cannot be written");
                self.failed = true;
                self.out = None;
            }
            Ok(()) if self.failed && self.out.is_some() => {
                tracing::info!("the audit log is written again");
                self.failed = false;
            }
            _ => {}
        }
    }

    fn line(&mut self, event: &Value) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let most = if self.file.max_size_mib == 0 { 100 } else { self.file.max_size_mib } << 20;
        if self.written > 0 && self.written + line.len() as u64 > most && self.file.path != Path::new("-") {
            self.turn_over()?;
        }
        if self.out.is_none() {
            let (out, written) = begin(&self.file.path)?;
            (self.out, self.written) = (Some(out), written);
        }
        self.written += line.len() as u64;
        self.out.as_mut().map_or(Ok(()), |out| out.write_all(&line))
    }

    /// Puts the file aside under the time of now, and forgets the oldest.
    fn turn_over(&mut self) -> io::Result<()> {
        self.flush()?;
        self.out = None;
        let stamp = jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%S").to_string();
        let millis = jiff::Timestamp::now().subsec_millisecond();
        let aside = sibling(&self.file.path, &format!("{stamp}.{millis:03}"));
        std::fs::rename(&self.file.path, aside)?;
        self.forget()
    }

    fn forget(&self) -> io::Result<()> {
        let mut past = past_files(&self.file.path)?;
        // Their names sort by time.
        past.sort();
        let too_many = match self.file.max_backups {
            0 => 0,
            most => past.len().saturating_sub(most),
        };
        let age = Duration::from_secs(self.file.max_age_days.saturating_mul(24 * 3600));
        for (i, path) in past.iter().enumerate() {
            let written = std::fs::metadata(path).and_then(|m| m.modified());
            let old = written.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|a| a > age));
            if i < too_many || (self.file.max_age_days > 0 && old) {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

type Out = BufWriter<Box<dyn Write + Send>>;

/// Opens the file at its end; how long it is.
fn begin(path: &Path) -> io::Result<(Out, u64)> {
    use std::os::unix::fs::OpenOptionsExt;
    if path == Path::new("-") {
        return Ok((BufWriter::new(Box::new(io::stdout())), 0));
    }
    if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)?;
    }
    let file = File::options().append(true).create(true).mode(0o600).open(path)?;
    let written = file.metadata()?.len();
    Ok((BufWriter::new(Box::new(file)), written))
}

fn parts(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.map(|p| p.to_string_lossy().into_owned());
    let extension = text(path.extension()).map_or(String::new(), |e| format!(".{e}"));
    (text(path.file_stem()).unwrap_or_default(), extension)
}

fn sibling(path: &Path, stamp: &str) -> PathBuf {
    let (stem, extension) = parts(path);
    path.with_file_name(format!("{stem}-{stamp}{extension}"))
}

fn past_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (stem, extension) = parts(path);
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)?.take(MAX_FILES) {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let stamp = name.strip_prefix(&format!("{stem}-")).and_then(|n| n.strip_suffix(&extension));
        if stamp.is_some_and(|s| s.len() == 23 && s.as_bytes().get(10) == Some(&b'T')) {
            found.push(folder.join(name));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn files_are_turned_over_and_the_oldest_forgotten() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("audit.log");
        let other = dir.path().join("audit-notes.log");
        std::fs::write(&other, "mine").expect("file");
        let file = LogFile { path: path.clone(), max_age_days: 0, max_backups: 2, max_size_mib: 1 };
        let log = Log::start(file).expect("log");
        let filler = "x".repeat(300 << 10);
        for i in 0..20 {
            assert!(log.write(json!({"i": i, "filler": filler})));
            // Names have milliseconds.
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        log.flush().await;
        assert_eq!(past_files(&path).expect("files").len(), 2);
        let last = std::fs::read_to_string(&path).expect("log");
        assert!(last.lines().last().is_some_and(|l| l.contains("\"i\":19")));
        assert!(last.len() <= 1 << 20 && other.exists());
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).expect("file").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_full_queue_loses_events_and_holds_nobody_up() {
        let (sender, receiver) = sync_channel(2);
        let log = Log { sender };
        let told = (0..5).filter(|i| log.write(json!(i))).count();
        assert_eq!(told, 2);
        drop(receiver);
        assert!(!log.write(json!(9)));
    }
}
