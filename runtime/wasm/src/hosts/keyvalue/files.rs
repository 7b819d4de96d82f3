//! Buckets as directories of a volume: a key is a file, written under another name and renamed. Who changes one number
//! of a bucket holds the lock on its `.lock`, so that containers, also of other processes, count right.

use std::{
    fmt::Write as _,
    io::{self, Read, Write},
    os::fd::AsFd,
    sync::atomic::{AtomicU64, Ordering},
};

use cap_std::fs::{Dir, File, OpenOptions};
use rustix::fs::FlockOperation;

use super::{Error, MAX_KEY, MAX_VALUE, Outcome, increment};

/// The lock of a bucket; no key is written so.
const LOCK: &str = ".lock";
/// The most keys of a bucket that are listed.
const MAX_KEYS: usize = 100_000;

pub(crate) struct Files {
    dir: Dir,
    read_only: bool,
}

/// The name of a key's file: what is not plain is written as `%` and two digits, and so is a leading dot.
fn file_name(key: &str) -> Outcome<String> {
    let mut name = String::with_capacity(key.len());
    for (at, byte) in key.bytes().enumerate() {
        let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') || (byte == b'.' && at > 0);
        if plain {
            name.push(char::from(byte));
        } else {
            let _ = write!(name, "%{byte:02x}");
        }
    }
    if name.is_empty() || name.len() > MAX_KEY {
        let words =
            format!("a key has 1 to {MAX_KEY} bytes, where each that is no letter or digit counts as three");
        return Err(Error::Other(words).into());
    }
    Ok(name)
}

/// The key of a file; `None` for files that are no keys.
fn key_of(name: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.bytes();
    if name.starts_with('.') {
        return None;
    }
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
            }
            plain => bytes.push(plain),
        }
    }
    String::from_utf8(bytes).ok()
}

impl Files {
    pub fn new(dir: Dir, read_only: bool) -> Files {
        Files { dir, read_only }
    }

    /// The bucket's directory, if there is one.
    fn bucket(&self, bucket: &str) -> Outcome<Option<Dir>> {
        match self.dir.open_dir(bucket) {
            Ok(dir) => Ok(Some(dir)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The bucket's directory, made if need be.
    fn writable(&self, bucket: &str) -> Outcome<Dir> {
        if self.read_only {
            return Err(Error::AccessDenied.into());
        }
        if let Some(dir) = self.bucket(bucket)? {
            return Ok(dir);
        }
        self.dir.create_dir_all(bucket)?;
        Ok(self.dir.open_dir(bucket)?)
    }

    pub fn get(&self, bucket: &str, key: &str) -> Outcome<Option<Vec<u8>>> {
        let name = file_name(key)?;
        let Some(dir) = self.bucket(bucket)? else { return Ok(None) };
        read(&dir, &name)
    }

    pub fn set(&self, bucket: &str, key: &str, value: &[u8]) -> Outcome<()> {
        write(&self.writable(bucket)?, &file_name(key)?, value)
    }

    pub fn delete(&self, bucket: &str, key: &str) -> Outcome<()> {
        match self.writable(bucket)?.remove_file(file_name(key)?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    pub fn keys(&self, bucket: &str) -> Outcome<Vec<String>> {
        let Some(dir) = self.bucket(bucket)? else { return Ok(Vec::new()) };
        let mut keys = Vec::new();
        for entry in dir.entries()? {
            keys.extend(entry?.file_name().to_str().and_then(key_of));
            if keys.len() > MAX_KEYS {
                let words = format!("the bucket has more than {MAX_KEYS} keys: they cannot be listed");
                return Err(Error::Other(words).into());
            }
        }
        keys.sort();
        Ok(keys)
    }

    pub fn increment(&self, bucket: &str, key: &str, delta: u64) -> Outcome<u64> {
        let (dir, name) = (self.writable(bucket)?, file_name(key)?);
        let _locked = lock(&dir)?;
        let sum = increment(read(&dir, &name)?.as_deref(), delta)?;
        write(&dir, &name, sum.to_string().as_bytes())?;
        Ok(sum)
    }
}

/// Held until the file is closed.
fn lock(dir: &Dir) -> Outcome<File> {
    let file = dir.open_with(LOCK, OpenOptions::new().create(true).write(true))?;
    rustix::fs::flock(file.as_fd(), FlockOperation::LockExclusive).map_err(io::Error::from)?;
    Ok(file)
}

fn read(dir: &Dir, name: &str) -> Outcome<Option<Vec<u8>>> {
    let file = match dir.open(name) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut value = Vec::new();
    file.take(MAX_VALUE as u64 + 1).read_to_end(&mut value)?;
    if value.len() > MAX_VALUE {
        return Err(Error::Other(format!("the value has more than {MAX_VALUE} bytes")).into());
    }
    Ok(Some(value))
}

fn write(dir: &Dir, name: &str, value: &[u8]) -> Outcome<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let temporary = format!(".{}-{number}.new", std::process::id());
    let mut file = dir.open_with(&temporary, OpenOptions::new().create_new(true).write(true))?;
    let written = file.write_all(value).and_then(|()| dir.rename(&temporary, dir, name));
    if written.is_err() {
        let _ = dir.remove_file(&temporary);
    }
    Ok(written?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_again_by_the_name_of_its_file() {
        for key in ["a", "a/b c", "../../etc/passwd", ".lock", "50%", "schön", "x.y"] {
            let Ok(name) = file_name(key) else { panic!("{key} has no name") };
            assert!(!name.contains('/') && !name.starts_with('.'), "{name}");
            assert_eq!(key_of(&name).as_deref(), Some(key));
        }
        assert!(file_name("").is_err() && file_name(&"ö".repeat(50)).is_err());
        assert_eq!((key_of(LOCK), key_of("%zz"), key_of("%a")), (None, None, None));
    }
}
