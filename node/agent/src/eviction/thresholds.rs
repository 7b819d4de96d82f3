//! Pure: thresholds as flags say them, and what readings make of them.

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_api::quantity::Quantity;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::signals::{Reading, Readings, Signal};

/// How much has to be left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// Bytes, inodes or processes.
    Number(u64),
    /// Of the capacity; 0 to 1.
    Share(f64),
}

impl Amount {
    /// In the signal's unit.
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Amount::Number(number) => number,
            Amount::Share(share) => (capacity as f64 * share) as u64,
        }
    }

    /// As a configuration shows it.
    pub fn words(self) -> String {
        match self {
            Amount::Number(number) => number.to_string(),
            Amount::Share(share) => format!("{}%", (share * 1000.0).round() / 10.0),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f64 = percent.parse().map_err(|_| format!("{text:?} is not a percentage"))?;
            let fits = (0.0..=100.0).contains(&percent);
            return if fits {
                Ok(Amount::Share(percent / 100.0))
            } else {
                Err(format!("{text:?} is not a percentage"))
            };
        }
        let quantity = Quantity::parse(text).map_err(|e| format!("{text:?}: {e}"))?;
        u64::try_from(quantity.value()).map(Amount::Number).map_err(|_| format!("{text:?} is negative"))
    }
}

/// Less than this is too little.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    /// Of what.
    pub signal: Signal,
    /// How much has to be left.
    pub amount: Amount,
    /// `Some`: only after so long.
    pub grace: Option<Duration>,
}

/// A kubelet's.
pub fn defaults() -> Vec<Threshold> {
    let text = "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,\
        imagefs.available<15%,imagefs.inodesFree<5%";
    hard(text).unwrap_or_default()
}

fn pairs(text: &str, between: char) -> impl Iterator<Item = Result<(Signal, &str), String>> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(move |part| {
        let (name, value) = part.split_once(between).ok_or_else(|| format!("{part:?} has no {between:?}"))?;
        let signal =
            Signal::parse(name.trim()).ok_or_else(|| format!("there is no eviction signal {name:?}"))?;
        Ok((signal, value.trim()))
    })
}

/// Reads `memory.available<100Mi,nodefs.available<10%`. An amount of nothing is no threshold.
///
/// # Errors
/// What is wrong with the text.
pub fn hard(text: &str) -> Result<Vec<Threshold>, String> {
    let all = pairs(text, '<').map(|pair| {
        let (signal, amount) = pair?;
        Ok(Threshold { signal, amount: Amount::parse(amount)?, grace: None })
    });
    let all: Vec<Threshold> = all.collect::<Result<_, String>>()?;
    Ok(all.into_iter().filter(|t| !matches!(t.amount, Amount::Number(0) | Amount::Share(0.0))).collect())
}

/// Reads soft thresholds and their graces, `memory.available=1m30s`.
///
/// # Errors
/// What is wrong with the texts; a soft threshold without a grace.
pub fn soft(thresholds: &str, graces: &str) -> Result<Vec<Threshold>, String> {
    let mut periods = BTreeMap::new();
    for pair in pairs(graces, '=') {
        let (signal, period) = pair?;
        periods.insert(signal, crate::tuning::duration(period)?);
    }
    let with = |threshold: Threshold| match periods.get(&threshold.signal) {
        Some(grace) => Ok(Threshold { grace: Some(*grace), ..threshold }),
        None => Err(format!("the soft threshold of {} has no grace period", threshold.signal.name())),
    };
    hard(thresholds)?.into_iter().map(with).collect()
}

/// Which conditions a node has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// `MemoryPressure`.
    pub memory: bool,
    /// `DiskPressure`.
    pub disk: bool,
    /// `PIDPressure`.
    pub pid: bool,
}

impl Pressure {
    fn set(&mut self, signal: Signal) {
        match signal {
            Signal::MemoryAvailable => self.memory = true,
            Signal::PidAvailable => self.pid = true,
            _ => self.disk = true,
        }
    }

    /// The names of the conditions that hold.
    pub fn names(self) -> Vec<&'static str> {
        let all = [(self.memory, "MemoryPressure"), (self.disk, "DiskPressure"), (self.pid, "PIDPressure")];
        all.into_iter().filter(|(holds, _)| *holds).map(|(_, name)| name).collect()
    }
}

/// A threshold that is crossed and asks for an eviction.
#[derive(Clone, Debug, PartialEq)]
pub struct Crossed {
    /// Which.
    pub threshold: Threshold,
    /// What is left.
    pub reading: Reading,
}

/// What is remembered between two looks.
#[derive(Debug, Default)]
pub struct Monitor {
    /// By threshold: since when it is crossed.
    since: BTreeMap<usize, Timestamp>,
    /// By threshold: when it last was.
    last: BTreeMap<usize, Timestamp>,
}

impl Monitor {
    /// The conditions that the node has now, and the threshold that asks for an eviction: memory first, hard ones first.
    pub fn look(
        &mut self,
        thresholds: &[Threshold],
        transition: Duration,
        readings: &Readings,
        now: Timestamp,
    ) -> (Pressure, Option<Crossed>) {
        let (mut pressure, mut acting) = (Pressure::default(), Vec::new());
        for (index, threshold) in thresholds.iter().enumerate() {
            let reading = readings.get(&threshold.signal).copied();
            let crossed = reading.filter(|r| r.available < threshold.amount.of(r.capacity));
            let Some(reading) = crossed else {
                self.since.remove(&index);
                // A condition does not flap: it stays for a while after its cause.
                let stays = self.last.get(&index).is_some_and(|last| now < after(*last, transition));
                if stays {
                    pressure.set(threshold.signal);
                }
                continue;
            };
            let since = *self.since.entry(index).or_insert(now);
            if now >= after(since, threshold.grace.unwrap_or_default()) {
                self.last.insert(index, now);
                pressure.set(threshold.signal);
                acting.push(Crossed { threshold: threshold.clone(), reading });
            }
        }
        acting.sort_by_key(|c| (c.threshold.signal, c.threshold.grace.is_some()));
        (pressure, acting.into_iter().next())
    }
}

fn after(at: Timestamp, wait: Duration) -> Timestamp {
    let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
    at.saturating_add(wait).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readings(memory: u64) -> Readings {
        let full = Reading { available: 50, capacity: 100 };
        Readings::from([
            (Signal::MemoryAvailable, Reading { available: memory, capacity: 1000 }),
            (Signal::NodefsAvailable, full),
        ])
    }

    #[test]
    fn flags() {
        let parsed =
            hard("memory.available<100Mi, nodefs.available<10%,imagefs.available<0%").expect("thresholds");
        assert_eq!(parsed.len(), 2);
        assert_eq!(parsed[0].amount, Amount::Number(100 << 20));
        assert_eq!(parsed[1].amount.of(500), 50);
        assert!(hard("memory<1").is_err() && hard("memory.available>1").is_err());
        assert!(hard("nodefs.available<101%").is_err());
        let soft_one = soft("memory.available<1Gi", "memory.available=1m").expect("a threshold");
        assert_eq!(soft_one[0].grace, Some(Duration::from_secs(60)));
        assert!(soft("memory.available<1Gi", "").is_err());
        assert_eq!(defaults().len(), 5);
    }

    #[test]
    fn conditions_stay_for_the_transition_and_soft_ones_wait() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let transition = Duration::from_secs(300);
        let mut thresholds = hard("memory.available<100").expect("thresholds");
        let mut monitor = Monitor::default();
        let memory = Pressure { memory: true, ..Default::default() };
        let look = |monitor: &mut Monitor, thresholds: &[Threshold], left, now| {
            let (pressure, crossed) = monitor.look(thresholds, transition, &readings(left), at(now));
            (pressure, crossed.map(|c| c.reading.available))
        };
        assert_eq!(look(&mut monitor, &thresholds, 100, 0), (Pressure::default(), None));
        assert_eq!(look(&mut monitor, &thresholds, 99, 10), (memory, Some(99)));
        assert_eq!(look(&mut monitor, &thresholds, 500, 20), (memory, None));
        assert_eq!(look(&mut monitor, &thresholds, 500, 309), (memory, None));
        assert_eq!(look(&mut monitor, &thresholds, 500, 310), (Pressure::default(), None));
        thresholds[0].grace = Some(Duration::from_secs(60));
        let mut monitor = Monitor::default();
        assert_eq!(look(&mut monitor, &thresholds, 99, 0), (Pressure::default(), None));
        assert_eq!(look(&mut monitor, &thresholds, 500, 30), (Pressure::default(), None));
        assert_eq!(look(&mut monitor, &thresholds, 99, 40), (Pressure::default(), None));
        assert_eq!(look(&mut monitor, &thresholds, 99, 100), (memory, Some(99)));
    }
}
