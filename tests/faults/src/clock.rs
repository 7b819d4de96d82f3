//! Moves the clock of one running process, which knows nothing of it.
//!
//! Linux has no wall clock for some processes only, and programs do not ask the kernel for the time: they call a function of the
//! page that it maps into each of them (the vDSO). This writes another beginning into a process's own copy of that function: a jump
//! to code behind the page's end of text that asks the kernel and adds so many seconds to the time of day. Monotonic time stays.
//! For x86-64, as root.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use object::{Object, ObjectSymbol};

/// Bytes behind the text that are known to be free.
const ROOM: usize = 64;
/// What is written over the beginning of the function: a jump.
const JUMP: usize = 5;
/// How often a process is stopped anew because one of its threads was asking for the time.
const TRIES: usize = 100;

/// Where the function lies in the memory of a process.
struct Place {
    /// The first address of the page.
    base: u64,
    /// The function, from there.
    function: usize,
    length: usize,
    /// What the page holds.
    image: Vec<u8>,
}

/// Sets the time of day of a process to the right one plus so many seconds.
///
/// # Errors
/// Without root, on other processors, or where the kernel's page is not what is known here.
pub fn set_offset(pid: u32, seconds: i64) -> Result<()> {
    ensure!(cfg!(target_arch = "x86_64"), "clocks of processes are moved on x86-64 only");
    let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"));
    let memory = memory.with_context(|| format!("open the memory of process {pid}"))?;
    let place = find(pid, &memory)?;
    let process = Pid::from_raw(i32::try_from(pid)?);
    for _ in 0..TRIES {
        kill(process, Signal::SIGSTOP)?;
        let written = wait_stopped(pid).and_then(|()| match is_asking(pid, &place)? {
            true => Ok(false),
            false => write(&memory, &place, seconds).map(|()| true),
        });
        kill(process, Signal::SIGCONT)?;
        if written? {
            return Ok(());
        }
    }
    bail!("process {pid} does nothing but ask for the time")
}

fn find(pid: u32, memory: &File) -> Result<Place> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let line = maps.lines().find(|line| line.ends_with("[vdso]")).context("the process has no vDSO")?;
    let range = line.split(' ').next().and_then(|range| range.split_once('-')).context("no range")?;
    let (base, end) = (u64::from_str_radix(range.0, 16)?, u64::from_str_radix(range.1, 16)?);
    let mut image = vec![0; usize::try_from(end - base)?];
    memory.read_exact_at(&mut image, base)?;
    let elf = object::File::parse(&*image).context("the vDSO is no ELF file")?;
    let symbol = elf.dynamic_symbols().find(|symbol| symbol.name() == Ok("__vdso_clock_gettime"));
    let symbol = symbol.context("the vDSO does not tell the time")?;
    let (function, length) = (usize::try_from(symbol.address())?, usize::try_from(symbol.size())?);
    ensure!(length > JUMP && function + length + ROOM < image.len(), "the vDSO is of an unknown form");
    Ok(Place { base, function, length, image })
}

/// Waits until each thread stands still.
fn wait_stopped(pid: u32) -> Result<()> {
    coracle_e2e::eventually("the process stands still", std::time::Duration::from_secs(5), || {
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let stat = std::fs::read_to_string(task?.path().join("stat"))?;
            // The state comes after the name, which may hold anything.
            if !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['T', 't'])) {
                return Ok(false);
            }
        }
        Ok(true)
    })
}

/// Whether a thread was stopped inside of the function.
fn is_asking(pid: u32, place: &Place) -> Result<bool> {
    let from = place.base + place.function as u64;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let said = std::fs::read_to_string(task?.path().join("syscall"))?;
        let at = said.trim().rsplit(' ').next().and_then(|at| at.strip_prefix("0x"));
        let at = at.and_then(|at| u64::from_str_radix(at, 16).ok());
        // One that does not say where it is may be there.
        if at.is_none_or(|at| at >= from && at < from + place.length as u64) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn write(memory: &File, place: &Place, seconds: i64) -> Result<()> {
    let free = place.image.len() - ROOM;
    let jump = i32::try_from(free - place.function - JUMP)?.to_le_bytes();
    let moved = place.image.get(place.function) == Some(&0xe9)
        && place.image.get(place.function + 1..place.function + JUMP) == Some(&jump[..]);
    ensure!(
        moved || place.image.iter().skip(free).all(|byte| *byte == 0),
        "there is no room behind the vDSO's text"
    );
    // mov eax, 228 (clock_gettime); syscall; test edi, edi (CLOCK_REALTIME); jne ret; mov rdx, seconds; add [rsi], rdx; ret
    let mut code = vec![0xb8, 0xe4, 0, 0, 0, 0x0f, 0x05, 0x85, 0xff, 0x75, 0x0d, 0x48, 0xba];
    code.extend_from_slice(&seconds.to_le_bytes());
    code.extend_from_slice(&[0x48, 0x01, 0x16, 0xc3]);
    memory.write_all_at(&code, place.base + free as u64)?;
    if !moved {
        let mut start = vec![0xe9];
        start.extend_from_slice(&jump);
        memory.write_all_at(&start, place.base + place.function as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_process_is_told_another_time_and_the_right_one_again() {
        let mut child = Command::new("python3")
            .args(["-uc", "import time\nwhile input(): print(time.time(), time.monotonic())"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut asks, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut lines = BufReader::new(answers).lines();
        let mut ask = || {
            asks.write_all(b"x\n").unwrap();
            let line = lines.next().unwrap().unwrap();
            let (time, monotonic) = line.split_once(' ').unwrap();
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
            (time.parse::<f64>().unwrap() - now, monotonic.parse::<f64>().unwrap())
        };
        let (_, mut before) = ask();
        for seconds in [0, 3600, -86_400, 7, 0] {
            set_offset(child.id(), seconds).unwrap();
            let (ahead, monotonic) = ask();
            assert!((ahead - seconds as f64).abs() < 5.0, "{ahead} instead of {seconds}");
            assert!(monotonic >= before && monotonic < before + 60.0);
            before = monotonic;
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
