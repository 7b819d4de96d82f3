//! Signals by their names in the Kubernetes API (`SIGTERM`, `SIGRTMIN+3`), in CRI, and by their numbers on Linux.

use crate::v1::Signal;

/// The name in the API; `None`: what the image or the runtime says.
pub fn name(signal: Signal) -> Option<String> {
    let plain = signal.as_str_name();
    (signal != Signal::RuntimeDefault).then(|| plain.replace("PLUS", "+").replace("MINUS", "-"))
}

/// The signal of a name in the API, or in an image (`QUIT`, `9`); `None` when there is none.
pub fn parse(name: &str) -> Option<Signal> {
    if let Ok(wanted) = name.parse::<i32>() {
        return (1..=Signal::Sigrtmax as i32)
            .filter_map(|n| Signal::try_from(n).ok())
            .find(|one| number(*one) == wanted);
    }
    let upper = name.to_ascii_uppercase().replace('+', "PLUS").replace('-', "MINUS");
    let long = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    Signal::from_str_name(&long)
}

/// The number on Linux, with glibc's real-time signals (34 to 64); SIGTERM's where nothing is said.
pub fn number(signal: Signal) -> i32 {
    const FIRST: i32 = Signal::Sigrtmin as i32;
    match signal {
        Signal::Sigabrt | Signal::Sigiot => 6,
        Signal::Sigalrm => 14,
        Signal::Sigbus => 7,
        Signal::Sigchld | Signal::Sigcld => 17,
        Signal::Sigcont => 18,
        Signal::Sigfpe => 8,
        Signal::Sighup => 1,
        Signal::Sigill => 4,
        Signal::Sigint => 2,
        Signal::Sigio | Signal::Sigpoll => 29,
        Signal::Sigkill => 9,
        Signal::Sigpipe => 13,
        Signal::Sigprof => 27,
        Signal::Sigpwr => 30,
        Signal::Sigquit => 3,
        Signal::Sigsegv => 11,
        Signal::Sigstkflt => 16,
        Signal::Sigstop => 19,
        Signal::Sigsys => 31,
        Signal::Sigterm | Signal::RuntimeDefault => 15,
        Signal::Sigtrap => 5,
        Signal::Sigtstp => 20,
        Signal::Sigttin => 21,
        Signal::Sigttou => 22,
        Signal::Sigurg => 23,
        Signal::Sigusr1 => 10,
        Signal::Sigusr2 => 12,
        Signal::Sigvtalrm => 26,
        Signal::Sigwinch => 28,
        Signal::Sigxcpu => 24,
        Signal::Sigxfsz => 25,
        // They stand in their order, without a gap.
        real_time => 34 + (real_time as i32 - FIRST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_many_names() {
        for (text, expected) in [
            ("SIGQUIT", 3),
            ("INT", 2),
            ("9", 9),
            ("SIGRTMIN", 34),
            ("SIGRTMIN+15", 49),
            ("SIGRTMAX-14", 50),
            ("SIGRTMAX", 64),
            ("37", 37),
        ] {
            assert_eq!(parse(text).map(number), Some(expected), "{text}");
        }
        assert_eq!(parse("SIGRTMIN+3").and_then(name).as_deref(), Some("SIGRTMIN+3"));
        assert_eq!((parse("nonsense"), parse("0"), parse("65"), parse("-9")), (None, None, None, None));
        assert_eq!((name(Signal::RuntimeDefault), number(Signal::RuntimeDefault)), (None, 15));
    }
}
