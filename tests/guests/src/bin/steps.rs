//! A command that carries out its arguments one by one, each a verb and its words, such as `print hello` or `exit 3`.

use std::time::Duration;

fn main() {
    for step in std::env::args().skip(1) {
        let (verb, rest) = step.split_once(' ').unwrap_or((&step, ""));
        match verb {
            "print" => println!("{rest}"),
            "env" => println!("{rest}={}", std::env::var(rest).unwrap_or_else(|_| "(unset)".into())),
            "read" => match std::fs::read_to_string(rest) {
                Ok(text) => println!("{rest}: {}", text.trim_end()),
                Err(error) => println!("{rest}: error {:?}", error.kind()),
            },
            "write" => {
                let (path, text) = rest.split_once(' ').unwrap_or((rest, ""));
                match std::fs::write(path, text) {
                    Ok(()) => println!("{path}: written"),
                    Err(error) => println!("{path}: error {:?}", error.kind()),
                }
            }
            // Waits until a file is there.
            "await" => {
                while !std::path::Path::new(rest).exists() {
                    sleep(20);
                }
            }
            "sleep" => sleep(number(rest)),
            // `tick N MS`: N numbered lines, MS apart.
            "tick" => {
                let (count, pause) = rest.split_once(' ').unwrap_or((rest, "0"));
                for n in 1..=number(count) {
                    println!("tick {n}");
                    sleep(number(pause));
                }
            }
            "exit" => std::process::exit(i32::try_from(number(rest)).unwrap_or(99)),
            other => {
                eprintln!("unknown step {other:?}");
                std::process::exit(2);
            }
        }
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or(0)
}

fn sleep(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}
