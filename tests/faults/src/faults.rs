//! What is done to the servers.

use std::time::Duration;

use anyhow::Result;
use coracle_e2e::netns::Host;
use coracle_e2e::succeed;
use nix::sys::signal::Signal;
use rand::Rng;
use rand::rngs::StdRng;

use crate::cluster::{Cluster, SERVERS};

/// Which server is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Whoever leads when it begins.
    Leader,
    /// This one.
    Server(usize),
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SIGKILL, and a new start.
    Kill(Target),
    /// SIGKILL to all at once.
    KillAll,
    /// SIGTERM, and a new start.
    Restart(Target),
    /// It stands still.
    Pause(Target),
    /// It stands still for moments, again and again: everything that it does is late.
    Delay(Target),
    /// Nothing passes between it and the other servers; clients reach it.
    Isolate(Target),
    /// It does not hear the other servers, but they hear it.
    Deaf(Target),
    /// The other servers do not hear it, but it hears them.
    Mute(Target),
    /// Two servers cannot reach each other; both reach the third.
    Apart(usize, usize),
    /// A third of what it sends to the others and hears from them is lost.
    Lossy(Target),
    /// Its cable is pulled: nobody reaches it, clients included.
    Unplug(Target),
    /// Its disk is full for a while.
    DiskFull(Target),
    /// Its clock shows a time so many seconds from the right one, and then the right one again.
    Clock(Target, i64),
}

/// A fault and how long it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub kind: Kind,
    /// How long.
    pub lasts: Duration,
}

/// So many faults.
pub fn plan(rng: &mut StdRng, count: usize) -> Vec<Fault> {
    let mut faults: Vec<Fault> = Vec::new();
    for index in 0..count {
        let target =
            if rng.random_bool(0.5) { Target::Leader } else { Target::Server(rng.random_range(0..SERVERS)) };
        let one = rng.random_range(0..SERVERS);
        // Each kind in turn, so that few faults are all of different kinds; then in any order.
        let kind = match (index + rng.random_range(0..2) * 6) % 13 {
            0 => Kind::Kill(target),
            1 => Kind::Pause(target),
            2 => Kind::Isolate(target),
            3 => Kind::Deaf(target),
            4 => Kind::Delay(target),
            5 => Kind::Restart(target),
            6 => Kind::Mute(target),
            7 => Kind::Apart(one, (one + 1) % SERVERS),
            8 => Kind::Lossy(target),
            9 => Kind::Unplug(target),
            10 => Kind::KillAll,
            11 => Kind::Clock(target, rng.random_range(-7200..7200)),
            _ => Kind::DiskFull(target),
        };
        faults.push(Fault { kind, lasts: Duration::from_millis(rng.random_range(500..5000)) });
    }
    for index in (1..faults.len()).rev() {
        faults.swap(index, rng.random_range(0..=index));
    }
    faults
}

impl Fault {
    /// Does it, waits, and puts everything right again.
    ///
    /// # Errors
    /// When a tool fails, or a server does not come back.
    pub fn inject(&self, cluster: &mut Cluster) -> Result<()> {
        let lasts = || std::thread::sleep(self.lasts);
        match self.kind {
            Kind::Kill(target) => {
                let server = find(cluster, target);
                cluster.end(server, Signal::SIGKILL)?;
                lasts();
                start(cluster, &[server])
            }
            Kind::KillAll => {
                for server in 0..SERVERS {
                    cluster.end(server, Signal::SIGKILL)?;
                }
                start(cluster, &[0, 1, 2])
            }
            Kind::Restart(target) => {
                let server = find(cluster, target);
                cluster.end(server, Signal::SIGTERM)?;
                start(cluster, &[server])
            }
            Kind::Pause(target) => {
                let server = find(cluster, target);
                cluster.signal(server, Signal::SIGSTOP)?;
                lasts();
                cluster.signal(server, Signal::SIGCONT)
            }
            Kind::Delay(target) => {
                let server = find(cluster, target);
                let until = std::time::Instant::now() + self.lasts;
                while std::time::Instant::now() < until {
                    cluster.signal(server, Signal::SIGSTOP)?;
                    std::thread::sleep(Duration::from_millis(250));
                    cluster.signal(server, Signal::SIGCONT)?;
                    std::thread::sleep(Duration::from_millis(60));
                }
                Ok(())
            }
            Kind::Isolate(target) => {
                self.cut(cluster, target, &Cut { hears: false, heard: false, of_ten: 10 })
            }
            Kind::Deaf(target) => self.cut(cluster, target, &Cut { hears: false, heard: true, of_ten: 10 }),
            Kind::Mute(target) => self.cut(cluster, target, &Cut { hears: true, heard: false, of_ten: 10 }),
            Kind::Lossy(target) => self.cut(cluster, target, &Cut { hears: false, heard: false, of_ten: 3 }),
            Kind::Apart(one, other) => {
                let other = cluster.host(other)?.address.clone();
                let cut = Cut { hears: false, heard: false, of_ten: 10 };
                cut.make(cluster.host(one)?, &[other])?;
                lasts();
                heal(cluster.host(one)?)
            }
            Kind::Unplug(target) => {
                let server = find(cluster, target);
                cluster.host(server)?.set_connected(false)?;
                lasts();
                cluster.host(server)?.set_connected(true)
            }
            Kind::Clock(target, seconds) => {
                let server = find(cluster, target);
                cluster.set_clock(server, seconds)?;
                lasts();
                cluster.set_clock(server, 0)
            }
            Kind::DiskFull(target) => {
                let server = find(cluster, target);
                cluster.fill(server)?;
                lasts();
                cluster.empty(server)?;
                // It ends when it cannot write, and is started again as a service manager does.
                if !cluster.goes_on(server)? {
                    cluster.end(server, Signal::SIGKILL)?;
                    start(cluster, &[server])?;
                }
                Ok(())
            }
        }
    }

    fn cut(&self, cluster: &Cluster, target: Target, cut: &Cut) -> Result<()> {
        let server = find(cluster, target);
        let others = (0..SERVERS).filter(|other| *other != server);
        let others: Vec<String> =
            others.map(|other| Ok(cluster.host(other)?.address.clone())).collect::<Result<_>>()?;
        cut.make(cluster.host(server)?, &others)?;
        std::thread::sleep(self.lasts);
        heal(cluster.host(server)?)
    }
}

fn find(cluster: &Cluster, target: Target) -> usize {
    match target {
        Target::Server(index) => index,
        Target::Leader => cluster.leader().unwrap_or(0),
    }
}

fn start(cluster: &mut Cluster, servers: &[usize]) -> Result<()> {
    for server in servers {
        cluster.spawn(*server)?;
    }
    servers.iter().try_for_each(|server| cluster.wait_ready(*server))
}

/// What does not pass.
struct Cut {
    /// Whether what others send arrives.
    hears: bool,
    /// Whether what it sends arrives.
    heard: bool,
    /// How many packets of ten are lost.
    of_ten: u32,
}

impl Cut {
    fn make(&self, host: &Host, others: &[String]) -> Result<()> {
        let others = others.join(", ");
        let chance = match self.of_ten {
            10.. => String::new(),
            some => format!("numgen random mod 10 < {some}"),
        };
        let mut script = String::from("table ip cut {\n");
        if !self.hears {
            script += &format!(
                "chain in {{ type filter hook input priority -300; ip saddr {{ {others} }} {chance} drop; }}\n"
            );
        }
        if !self.heard {
            script += &format!(
                "chain out {{ type filter hook output priority -300; ip daddr {{ {others} }} {chance} drop; }}\n"
            );
        }
        succeed(host.command("nft").arg(script + "}")).map(drop)
    }
}

fn heal(host: &Host) -> Result<()> {
    succeed(host.command("nft").args(["delete", "table", "ip", "cut"])).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn a_seed_makes_the_same_faults_of_many_kinds() {
        let make = |seed| plan(&mut StdRng::seed_from_u64(seed), 30);
        assert_eq!(make(7), make(7));
        assert_ne!(make(7), make(8));
        let kinds: std::collections::HashSet<_> =
            make(7).iter().map(|fault| std::mem::discriminant(&fault.kind)).collect();
        assert!(kinds.len() >= 9, "{}", kinds.len());
        // What the behaviours promise of the seed that is run everywhere.
        assert!(make(1).iter().any(|fault| matches!(fault.kind, Kind::Clock(..))));
    }
}
