//! The few programs that people type into any container, run by the host over a wasm container's volumes: nothing else
//! of the host's files can be named, because every file is reached through the handle of a volume (cap-std).

mod archive;

use std::{
    io::{self, Read, Write},
    path::{Component, Path, PathBuf},
};

use bytes::Bytes;
use cap_std::fs::Dir;
use coracle_streaming::Output;
use tokio::sync::mpsc;

use crate::{hosts::filesystem, protocol::Mount};

/// Their names.
pub(crate) const NAMES: [&str; 10] =
    ["cat", "echo", "env", "false", "ls", "printenv", "pwd", "tar", "test", "true"];

/// The most entries that are listed of one folder.
const MAX_ENTRIES: usize = 100_000;

/// What an applet sees.
pub(crate) struct Place {
    pub mounts: Vec<Mount>,
    pub env: Vec<(String, String)>,
    /// Empty: the root.
    pub working_dir: String,
}

/// Runs one to its end; answers its exit code.
pub(crate) async fn run(
    place: Place,
    args: Vec<String>,
    stdin: mpsc::Receiver<Bytes>,
    output: mpsc::Sender<Output>,
) -> i32 {
    let ran = tokio::task::spawn_blocking(move || {
        let mut io = Io { stdin: Input { stdin, piece: Bytes::new() }, output };
        let (name, rest) = args.split_first().map_or(("", &[][..]), |(n, r)| (n.as_str(), r));
        match applet(&place, &mut io, name, rest) {
            Ok(code) => code,
            Err(error) => {
                let _ = io.error(&format!("{name}: {error}\n"));
                1
            }
        }
    });
    ran.await.unwrap_or(1)
}

/// What came in, as something to read. Blocking.
struct Input {
    stdin: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.stdin.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let length = self.piece.len().min(buffer.len());
        let (now, room) = (self.piece.split_to(length), buffer.get_mut(..length).unwrap_or_default());
        room.copy_from_slice(&now);
        Ok(length)
    }
}

struct Io {
    stdin: Input,
    output: mpsc::Sender<Output>,
}

impl Io {
    fn error(&mut self, words: &str) -> io::Result<()> {
        let words = Bytes::copy_from_slice(words.as_bytes());
        self.output.blocking_send(Output::Stderr(words)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Its standard output. Blocking; writes come in pieces that fit a message.
impl Write for Io {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.get(..32 << 10).unwrap_or(bytes);
        let piece = Output::Stdout(Bytes::copy_from_slice(taken));
        self.output.blocking_send(piece).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(taken.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn applet(place: &Place, io: &mut Io, name: &str, args: &[String]) -> io::Result<i32> {
    match name {
        "true" => Ok(0),
        "false" => Ok(1),
        "echo" => {
            let (args, end) = match args.split_first() {
                Some((first, rest)) if first == "-n" => (rest, ""),
                _ => (args, "\n"),
            };
            io.write_all(format!("{}{end}", args.join(" ")).as_bytes())?;
            Ok(0)
        }
        "env" | "printenv" => printenv(place, io, args),
        "pwd" => {
            io.write_all(format!("{}\n", place.absolute("").display()).as_bytes())?;
            Ok(0)
        }
        "cat" => cat(place, io, args),
        "ls" => ls(place, io, args),
        "test" => test(place, args),
        "tar" => archive::tar(place, io, args),
        _ => Err(io::Error::new(io::ErrorKind::Unsupported, "no such applet")),
    }
}

fn printenv(place: &Place, io: &mut Io, args: &[String]) -> io::Result<i32> {
    if let Some(name) = args.first() {
        return Ok(match place.env.iter().find(|(n, _)| n == name) {
            Some((_, value)) => {
                io.write_all(format!("{value}\n").as_bytes())?;
                0
            }
            None => 1,
        });
    }
    let all: String = place.env.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    io.write_all(all.as_bytes())?;
    Ok(0)
}

fn cat(place: &Place, io: &mut Io, args: &[String]) -> io::Result<i32> {
    let mut code = 0;
    let paths = if args.is_empty() { vec!["-"] } else { args.iter().map(String::as_str).collect() };
    for path in paths {
        let copied = if path == "-" {
            let mut buffer = vec![0; 32 << 10];
            loop {
                match io.stdin.read(&mut buffer)? {
                    0 => break Ok(()),
                    read => io.write_all(buffer.get(..read).unwrap_or_default())?,
                }
            }
        } else {
            place
                .find(path)
                .and_then(|found| found.open())
                .and_then(|mut file| io::copy(&mut file, io))
                .map(drop)
        };
        if let Err(error) = copied {
            io.error(&format!("cat: {path}: {error}\n"))?;
            code = 1;
        }
    }
    Ok(code)
}

fn ls(place: &Place, io: &mut Io, args: &[String]) -> io::Result<i32> {
    let (flags, paths): (Vec<&str>, Vec<&str>) =
        args.iter().map(String::as_str).partition(|a| a.starts_with('-'));
    let long = flags.iter().any(|f| f.contains('l'));
    let all = flags.iter().any(|f| f.contains('a'));
    let paths = if paths.is_empty() { vec![""] } else { paths };
    let mut code = 0;
    for path in &paths {
        if paths.len() > 1 {
            io.write_all(format!("{path}:\n").as_bytes())?;
        }
        let listed = place.list(path);
        match listed {
            Ok(mut entries) => {
                entries.retain(|(name, _)| all || !name.starts_with('.'));
                entries.sort();
                let line = |(name, shown): &(String, String)| match long {
                    true => format!("{shown} {name}\n"),
                    false => format!("{name}\n"),
                };
                io.write_all(entries.iter().map(line).collect::<String>().as_bytes())?;
            }
            Err(error) => {
                io.error(&format!("ls: {path}: {error}\n"))?;
                code = 2;
            }
        }
    }
    Ok(code)
}

fn test(place: &Place, args: &[String]) -> io::Result<i32> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let found = |path: &str| place.metadata(path);
    let holds = match words.as_slice() {
        ["-d", path] => found(path).is_ok_and(|dir| dir),
        ["-f", path] => found(path).is_ok_and(|dir| !dir),
        ["-e", path] => found(path).is_ok(),
        ["-n", text] => !text.is_empty(),
        ["-z", text] => text.is_empty(),
        [a, "=", b] => a == b,
        [a, "!=", b] => a != b,
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "only -d, -e, -f, -n, -z, = and != are known",
            ));
        }
    };
    Ok(i32::from(!holds))
}

/// A place inside a volume.
struct Found {
    volume: Dir,
    /// Below the volume; `.` is the volume itself.
    path: PathBuf,
    read_only: bool,
}

impl Found {
    fn open(&self) -> io::Result<cap_std::fs::File> {
        if self.volume.metadata(&self.path)?.is_dir() {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder"));
        }
        self.volume.open(&self.path)
    }
}

impl Place {
    /// An absolute path without `.` and `..`.
    fn absolute(&self, path: &str) -> PathBuf {
        let mut clean = PathBuf::from("/");
        for part in Path::new("/").join(&self.working_dir).join(path).components() {
            match part {
                Component::Normal(part) => clean.push(part),
                Component::ParentDir => drop(clean.pop()),
                _ => {}
            }
        }
        clean
    }

    /// The volume that a path lies in: the one with the longest path.
    fn find(&self, path: &str) -> io::Result<Found> {
        let path = self.absolute(path);
        let inside = |mount: &&Mount| path.starts_with(&mount.guest_path);
        let mount =
            self.mounts.iter().filter(inside).max_by_key(|m| Path::new(&m.guest_path).components().count());
        let Some(mount) = mount else {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "no such file: it is in no volume of this container",
            ));
        };
        let rest = path.strip_prefix(&mount.guest_path).unwrap_or(Path::new("."));
        let rest = if rest.as_os_str().is_empty() { Path::new(".") } else { rest };
        let volume = filesystem::open(&mount.host_path)?;
        Ok(Found { volume, path: rest.to_owned(), read_only: mount.read_only })
    }

    /// Whether a path is a folder; an error when it is not there.
    fn metadata(&self, path: &str) -> io::Result<bool> {
        let absolute = self.absolute(path);
        match self.find(path) {
            Ok(found) => Ok(found.volume.metadata(&found.path)?.is_dir()),
            // The folders above the volumes.
            Err(_) if self.mounts.iter().any(|m| Path::new(&m.guest_path).starts_with(&absolute)) => Ok(true),
            Err(_) if absolute == Path::new("/") => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// The entries of a folder as (name, shown in long form).
    fn list(&self, path: &str) -> io::Result<Vec<(String, String)>> {
        let absolute = self.absolute(path);
        let mut entries: Vec<(String, String)> = Vec::new();
        match self.find(path) {
            Ok(found) if found.volume.metadata(&found.path)?.is_dir() => {
                for entry in found.volume.read_dir(&found.path)?.take(MAX_ENTRIES) {
                    let entry = entry?;
                    let name = entry.file_name().to_string_lossy().into_owned();
                    let shown = entry.metadata().map(|m| long(&m)).unwrap_or_default();
                    entries.push((name, shown));
                }
            }
            Ok(found) => {
                let shown = long(&found.volume.metadata(&found.path)?);
                return Ok(vec![(path.to_owned(), shown)]);
            }
            Err(error) if !self.metadata(path).unwrap_or(false) => return Err(error),
            Err(_) => {}
        }
        // Volumes and the folders above them.
        for mount in &self.mounts {
            let below = Path::new(&mount.guest_path).strip_prefix(&absolute).ok();
            if let Some(name) = below.and_then(|b| b.components().next()) {
                let name = name.as_os_str().to_string_lossy().into_owned();
                if !entries.iter().any(|(n, _)| *n == name) {
                    entries.push((name, "d          - ".into()));
                }
            }
        }
        Ok(entries)
    }
}

fn long(meta: &cap_std::fs::Metadata) -> String {
    let kind = if meta.is_dir() {
        'd'
    } else if meta.is_symlink() {
        'l'
    } else {
        '-'
    };
    format!("{kind} {:>10} ", meta.len())
}

#[cfg(test)]
mod tests;
