//! Many seeds, each in a process of its own.

use std::collections::VecDeque;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs seeds from one on, as many at a time as there are processors; `arguments` go to each. Returns what they printed.
///
/// # Errors
/// The first seed whose run was wrong, with what it said.
pub fn each_alone(program: &Path, from: u64, seeds: u64, arguments: &[&str]) -> Result<Vec<String>> {
    let most = std::thread::available_parallelism().map_or(1, usize::from);
    let mut running: VecDeque<(u64, Child)> = VecDeque::new();
    let mut said = Vec::new();
    let end = |(seed, child): (u64, Child)| -> Result<String> {
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("seed {seed}: {text}{errors}");
        }
        Ok(text)
    };
    let mut wrong = None;
    for seed in from..from.saturating_add(seeds) {
        if running.len() == most
            && let Some(oldest) = running.pop_front()
        {
            match end(oldest) {
                Ok(text) => said.push(text),
                Err(error) => {
                    wrong = Some(error);
                    break;
                }
            }
        }
        let mut command = Command::new(program);
        command.args(["--alone", "--seed", &seed.to_string()]).args(arguments);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        running.push_back((seed, child.with_context(|| format!("start {}", program.display()))?));
    }
    for child in running {
        match end(child) {
            Ok(text) => said.push(text),
            Err(error) => wrong = wrong.or(Some(error)),
        }
    }
    wrong.map_or(Ok(said), Err)
}
