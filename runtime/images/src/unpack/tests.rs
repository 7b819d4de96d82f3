//! Layers, good and bad, into temporary folders. Needs root.

use super::*;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

fn entry(archive: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, path: &str, link: &str, text: &str) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o750);
    header.set_uid(7);
    header.set_gid(8);
    header.set_mtime(1_000);
    header.set_size(text.len() as u64);
    header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    archive.append(&header, text.as_bytes()).unwrap();
}

fn unpack(entries: &[(tar::EntryType, &str, &str, &str)]) -> (tempfile::TempDir, io::Result<()>) {
    let mut archive = tar::Builder::new(Vec::new());
    for (kind, path, link, text) in entries {
        entry(&mut archive, *kind, path, link, text);
    }
    let dir = tempfile::tempdir().unwrap();
    let result = layer(archive.into_inner().unwrap().as_slice(), dir.path());
    (dir, result)
}

use tar::EntryType as E;

#[test]
fn a_layer_is_placed_with_its_whiteouts() {
    assert!(rustix::process::geteuid().is_root(), "this test needs root");
    let (dir, result) = unpack(&[
        (E::Directory, "etc", "", ""),
        (E::Regular, "etc/a", "", "one"),
        (E::Link, "etc/b", "etc/a", ""),
        (E::Symlink, "etc/c", "/etc/a", ""),
        (E::Regular, "deep/er/d", "", "two"),
        (E::Regular, "etc/.wh.gone", "", ""),
        (E::Regular, "deep/.wh..wh..opq", "", ""),
    ]);
    result.unwrap();
    let at = |path: &str| dir.path().join(path);
    let found = fs::metadata(at("etc/a")).unwrap();
    assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777, found.nlink()), (7, 8, 0o750, 2));
    assert_eq!(found.mtime(), 1_000);
    assert_eq!(fs::read_link(at("etc/c")).unwrap(), Path::new("/etc/a"));
    let gone = fs::symlink_metadata(at("etc/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let mut opaque = [0; 8];
    let length = rustix::fs::getxattr(at("deep"), "trusted.overlay.opaque", &mut opaque).unwrap();
    assert_eq!(&opaque[..length], b"y");
}

#[test]
fn nothing_leaves_the_folder() {
    let outside = tempfile::tempdir().unwrap();
    let there = outside.path().display().to_string();
    let cases: [&[(E, &str, &str, &str)]; 6] = [
        &[(E::Regular, "../x", "", "x")],
        &[(E::Regular, "a/../../x", "", "x")],
        &[(E::Symlink, "l", &there, ""), (E::Regular, "l/x", "", "x")],
        &[(E::Symlink, "l", "..", ""), (E::Regular, "l/x", "", "x")],
        &[(E::Link, "x", "../../etc/passwd", "")],
        &[(E::Symlink, "l", "/etc", ""), (E::Link, "x", "l/passwd", "")],
    ];
    for case in cases {
        assert!(unpack(case).1.is_err(), "{case:?}");
    }
    // A link is replaced, not followed.
    let target = outside.path().join("kept");
    fs::write(&target, "kept").unwrap();
    let link = target.display().to_string();
    unpack(&[(E::Symlink, "l", &link, ""), (E::Regular, "l", "", "new")]).1.unwrap();
    assert_eq!(fs::read_to_string(&target).unwrap(), "kept");
    // `/x` is below the layer's root.
    let (dir, result) = unpack(&[(E::Regular, "/x", "", "x")]);
    result.unwrap();
    assert!(dir.path().join("x").is_file());
}

#[test]
fn compressed_layers_are_read() {
    let mut archive = tar::Builder::new(Vec::new());
    entry(&mut archive, E::Regular, "x", "", "text");
    let plain = archive.into_inner().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut gzip, &plain).unwrap();
    for bytes in [gzip.finish().unwrap(), zstd::encode_all(plain.as_slice(), 1).unwrap(), plain] {
        let dir = tempfile::tempdir().unwrap();
        layer(bytes.as_slice(), dir.path()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("x")).unwrap(), "text");
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(layer(&b"this is no archive at all"[..], dir.path()).is_err());
}
