//! Applets over two volumes.

use super::*;

struct Said {
    code: i32,
    out: Vec<u8>,
    err: String,
}

async fn said(dir: &Path, args: &[&str], input: &[u8]) -> Said {
    let mount = |name: &str, guest: &str, read_only| Mount {
        host_path: dir.join(name),
        guest_path: guest.into(),
        read_only,
    };
    let place = Place {
        mounts: vec![mount("data", "/data", false), mount("conf", "/etc/conf", true)],
        env: vec![("A".into(), "1".into())],
        working_dir: "/data".into(),
    };
    let (to, stdin) = mpsc::channel(4);
    let (output, mut from) = mpsc::channel(4);
    let input = Bytes::copy_from_slice(input);
    tokio::spawn(async move { to.send(input).await });
    let args = args.iter().map(|a| (*a).to_owned()).collect();
    let collect = async {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        while let Some(piece) = from.recv().await {
            match piece {
                Output::Stdout(bytes) => out.extend(bytes),
                Output::Stderr(bytes) => err.extend(bytes),
            }
        }
        (out, String::from_utf8(err).unwrap())
    };
    let (code, (out, err)) = tokio::join!(run(place, args, stdin, output), collect);
    Said { code, out, err }
}

#[tokio::test]
async fn people_look_around() {
    let dir = tempfile::tempdir().unwrap();
    for sub in ["data/sub", "conf"] {
        std::fs::create_dir_all(dir.path().join(sub)).unwrap();
    }
    std::fs::write(dir.path().join("data/a"), "hello").unwrap();
    std::fs::write(dir.path().join("secret"), "no").unwrap();
    std::os::unix::fs::symlink("../secret", dir.path().join("data/out")).unwrap();
    let cases: [(&[&str], i32, &str); 10] = [
        (&["echo", "a", "b"], 0, "a b\n"),
        (&["env"], 0, "A=1\n"),
        (&["printenv", "B"], 1, ""),
        (&["pwd"], 0, "/data\n"),
        (&["ls", "/"], 0, "data\netc\n"),
        (&["ls"], 0, "a\nout\nsub\n"),
        (&["cat", "a", "/data/sub/../a"], 0, "hellohello"),
        (&["cat"], 0, "from input"),
        (&["test", "-d", "/data/sub"], 0, ""),
        (&["test", "-d", "/data/a"], 1, ""),
    ];
    for (args, code, out) in cases {
        let said = said(dir.path(), args, b"from input").await;
        assert_eq!(
            (said.code, String::from_utf8_lossy(&said.out).as_ref()),
            (code, out),
            "{args:?} {}",
            said.err
        );
    }
    for path in ["out", "/etc/passwd", "../../secret", "/data/../../secret"] {
        let said = said(dir.path(), &["cat", path], b"").await;
        assert!(said.code != 0 && said.out.is_empty() && !said.err.is_empty(), "{path}");
    }
}

#[tokio::test]
async fn archives_go_out_and_come_in() {
    let dir = tempfile::tempdir().unwrap();
    for sub in ["data/from/deep", "data/to", "conf"] {
        std::fs::create_dir_all(dir.path().join(sub)).unwrap();
    }
    std::fs::write(dir.path().join("data/from/deep/a"), "hello").unwrap();
    let out = said(dir.path(), &["tar", "cf", "-", "/data/from"], b"").await;
    assert_eq!((out.code, out.err.as_str()), (0, ""));
    let back = said(dir.path(), &["tar", "-xmf", "-", "-C", "/data/to"], &out.out).await;
    assert_eq!((back.code, back.err.as_str()), (0, ""));
    assert_eq!(std::fs::read_to_string(dir.path().join("data/to/data/from/deep/a")).unwrap(), "hello");
    let refused = said(dir.path(), &["tar", "xf", "-", "-C", "/etc/conf"], &out.out).await;
    assert!(refused.code != 0 && refused.err.contains("read-only"), "{}", refused.err);
}
