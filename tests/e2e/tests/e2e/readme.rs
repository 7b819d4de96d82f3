//! The README's transcript, run as it stands.

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, kubectl, root, shown};

/// Row: README: the transcript, as an unprivileged user
#[test]
fn the_transcript_works_as_an_unprivileged_user() -> Result<Ended> {
    transcript(Profile::Loopback)
}

/// Row: README: the transcript, as root
#[test]
fn the_transcript_works_as_the_user_of_the_test() -> Result<Ended> {
    transcript(Profile::LoopbackAsIs)
}

/// Runs the README's block that starts with `# transcript` in a shell, line by line, each of which has to succeed.
fn transcript(profile: Profile) -> Result<Ended> {
    let readme = std::fs::read_to_string(root().join("README.md"))?;
    let block = readme
        .split("```")
        .find_map(|block| block.strip_prefix("sh\n# transcript"))
        .context("the README has no block that starts with `# transcript`")?;
    let (_, script) = block.split_once('\n').context("an empty transcript")?;
    let mut cluster = Cluster::start(profile)?;
    cluster.push("hello", "hello:v1")?;
    let bin = cluster.data_dir().with_file_name("bin");
    std::fs::create_dir_all(&bin)?;
    std::fs::copy(kubectl()?, bin.join("kubectl"))?;
    let examples = cluster.data_dir().with_file_name("examples/hello/manifests");
    std::fs::create_dir_all(&examples)?;
    for entry in std::fs::read_dir(root().join("examples/hello/manifests"))? {
        let entry = entry?;
        std::fs::copy(entry.path(), examples.join(entry.file_name()))?;
    }
    let path = format!(
        "{}:{}:/usr/bin:/bin",
        bin.display(),
        cluster.program().parent().context("a program without a directory")?.display()
    );
    let out = cluster.command("bash").args(["-euxo", "pipefail", "-c", script]).env("PATH", path).output()?;
    ensure!(out.status.success(), "{}", shown(&out));
    cluster.stop()
}
