//! A command that does what its first argument says, and prints what came of it.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket},
    time::Duration,
};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let arg = |n: usize| args.get(n).map(String::as_str).unwrap_or_default();
    match arg(1) {
        "exit" => std::process::exit(arg(2).parse().unwrap_or(99)),
        "fail" => panic!("as asked"),
        "print" => {
            println!("{}", arg(2));
            eprintln!("to stderr");
            print!("no newline");
        }
        "flood" => {
            let line = "x".repeat(1023);
            for _ in 0..arg(2).parse::<usize>().unwrap_or(0) {
                println!("{line}");
            }
        }
        "spin" => loop {
            std::hint::black_box(0);
        },
        "grow" => {
            let mut kept = Vec::new();
            for _ in 0..arg(2).parse::<usize>().unwrap_or(0) {
                kept.push(vec![1u8; 1 << 20]);
            }
            println!("grown {}", kept.len());
        }
        "sockets" => sockets(arg(2), arg(3), arg(4)),
        "files" => files(arg(2)),
        "hammer" => hammer(arg(2), arg(3)),
        "sleep" => sleep(arg(2)),
        "connect" => println!("{}", connect(arg(2))),
        "listen" => listen(arg(2), arg(3)),
        "udp" => println!("{}", udp(arg(2), arg(3))),
        "write" => report(std::fs::write(arg(2), arg(3))),
        "read" => println!("{:?}", std::fs::read_to_string(arg(2)).map_err(|e| e.kind())),
        "env" => {
            for (name, value) in std::env::vars() {
                println!("{name}={value}");
            }
        }
        "resolve" => match (arg(2), 80u16).to_socket_addrs() {
            Ok(found) => println!("{:?}", found.map(|a| a.ip()).collect::<Vec<_>>()),
            Err(error) => println!("error {}", error),
        },
        other => {
            eprintln!("unknown: {other}");
            std::process::exit(2);
        }
    }
}

/// Connects as often as it can, or this often, and holds the connections; then writes how many they are, and waits.
fn sockets(to: &str, ready: &str, most: &str) {
    let (mut held, most) = (Vec::new(), most.parse().unwrap_or(usize::MAX));
    let mut error = None;
    while held.len() < most && error.is_none() {
        match TcpStream::connect(to) {
            Ok(stream) => held.push(stream),
            Err(why) => error = Some(why.kind()),
        }
    }
    println!("held {}: {error:?}", held.len());
    report(std::fs::write(ready, held.len().to_string()));
    sleep("600000");
}

/// Opens a file as often as it can.
fn files(path: &str) {
    let mut held = Vec::new();
    while let Ok(file) = std::fs::File::open(path) {
        held.push(file);
    }
    println!("held {}", held.len());
}

/// Reads a file again and again, and tells all that it ever was.
fn hammer(path: &str, times: &str) {
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..times.parse::<usize>().unwrap_or(0) {
        if let Ok(text) = std::fs::read_to_string(path) {
            seen.insert(text);
        }
    }
    println!("{seen:?}");
}

fn sleep(ms: &str) {
    std::thread::sleep(Duration::from_millis(ms.parse().unwrap_or(0)));
}

fn report(result: std::io::Result<()>) {
    match result {
        Ok(()) => println!("done"),
        Err(error) => println!("error {:?}", error.kind()),
    }
}

fn connect(to: &str) -> String {
    let attempt = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(to)?;
        let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(format!("connected from {} to {peer}: {answer}", local.ip()))
    };
    attempt().unwrap_or_else(|error| format!("error {:?}", error.kind()))
}

/// Accepts one connection and tells it its address; writes the own address to `ready` first.
fn listen(at: &str, ready: &str) {
    let listener = match TcpListener::bind(at) {
        Ok(listener) => listener,
        Err(error) => return println!("error {:?}", error.kind()),
    };
    if let Ok(local) = listener.local_addr() {
        println!("listening on {local}");
        if !ready.is_empty() {
            report(std::fs::write(ready, local.to_string()));
        }
    }
    if let Ok((mut stream, peer)) = listener.accept() {
        let _ = write!(stream, "hello {}", peer.ip());
        println!("served {}", peer.ip());
    }
}

fn udp(from: &str, to: &str) -> String {
    let attempt = || -> std::io::Result<usize> { UdpSocket::bind(from)?.send_to(b"x", to) };
    match attempt() {
        Ok(sent) => format!("sent {sent}"),
        Err(error) => format!("error {:?}", error.kind()),
    }
}
