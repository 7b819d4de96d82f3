//! Stands in for the `busybox` image of manifests that wait for a Service: `sh -c 'until nslookup NAME; do echo WORDS; sleep
//! SECONDS; done'`. It knows no other script, and asks for names as every guest does.

use std::net::ToSocketAddrs;
use std::time::Duration;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let script = args.last().map(String::as_str).unwrap_or_default();
    let Some((name, words, seconds)) = parse(script) else {
        eprintln!("this busybox waits for names only; it cannot run {script:?}");
        std::process::exit(2);
    };
    loop {
        match (name, 80_u16).to_socket_addrs() {
            Ok(found) => {
                let addresses: Vec<String> = found.map(|a| a.ip().to_string()).collect();
                if !addresses.is_empty() {
                    println!("Name: {name}\nAddress: {}", addresses.join(" "));
                    return;
                }
            }
            Err(error) => eprintln!("nslookup: can't resolve '{name}': {error}"),
        }
        println!("{words}");
        std::thread::sleep(Duration::from_secs(seconds));
    }
}

fn parse(script: &str) -> Option<(&str, &str, u64)> {
    let rest = script.trim().strip_prefix("until nslookup ")?;
    let (name, rest) = rest.split_once("; do echo ")?;
    let (words, rest) = rest.split_once("; sleep ")?;
    let seconds = rest.strip_suffix("; done")?.trim().parse().ok()?;
    Some((name.trim(), words, seconds))
}
