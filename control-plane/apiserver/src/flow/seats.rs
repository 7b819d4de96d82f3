//! The seats of all levels: taken, lent and given back.
//!
//! A level always gets the seats that it may not lend. Beyond those, and up to its own number and what it may borrow, it
//! gets what is free of all seats and is not kept for what others may not lend.

use std::time::Duration;

use tokio::sync::oneshot;

use super::queues::{Queues, Waiter};
use super::{PriorityLevel, Rejected};

/// One level.
struct Level {
    name: String,
    /// Its own seats, those of them that it never lends, and the most that it ever uses.
    nominal: u32,
    kept: u32,
    most: u32,
    in_use: u32,
    running: u64,
    queues: Option<Queues>,
    /// It is in the configuration.
    live: bool,
}

/// How a level stands.
pub(crate) struct Stand {
    pub name: String,
    pub nominal: u32,
    pub kept: u32,
    pub most: u32,
    pub in_use: u32,
    pub running: u64,
    pub waiting: usize,
}

/// What becomes of a call that asks for seats.
#[derive(Debug)]
pub(super) enum Turn {
    /// It has them.
    Now { queue: Option<usize>, seats: u32 },
    /// It is told when it has them.
    Wait { queue: usize, seats: u32, id: u64, turn: oneshot::Receiver<()> },
}

/// All levels.
pub(super) struct Seats {
    total: u32,
    in_use: u32,
    /// Free seats that are kept for levels that may not lend them.
    reserved: u32,
    levels: Vec<Level>,
    waiting: usize,
    next_id: u64,
}

impl Level {
    fn owed(&self) -> u32 {
        self.kept.saturating_sub(self.in_use)
    }
}

impl Seats {
    pub fn new(total: u32) -> Self {
        Self { total, in_use: 0, reserved: 0, levels: Vec::new(), waiting: 0, next_id: 0 }
    }

    /// Takes over other levels; the slot of each, `None` for those that are exempt.
    pub fn arrange(&mut self, levels: &[PriorityLevel]) -> Vec<Option<usize>> {
        for level in &mut self.levels {
            (level.live, level.nominal, level.kept, level.most) = (false, 0, 0, 1);
        }
        let shares: u64 = levels.iter().filter_map(|l| l.limits.as_ref()).map(|l| u64::from(l.shares)).sum();
        let mut slots = Vec::with_capacity(levels.len());
        for level in levels {
            let Some(limits) = &level.limits else {
                slots.push(None);
                continue;
            };
            let nominal = (u64::from(self.total) * u64::from(limits.shares)).div_ceil(shares.max(1));
            let nominal = u32::try_from(nominal).unwrap_or(self.total);
            let percent = |p: u32| u32::try_from(u64::from(nominal) * u64::from(p) / 100).unwrap_or(0);
            let kept = nominal.saturating_sub(percent(limits.lendable_percent.min(100)));
            let most = match limits.borrowing_percent {
                Some(p) => nominal.saturating_add(percent(p)).min(self.total),
                None => self.total,
            };
            let slot = self.slot(&level.name);
            slots.push(Some(slot));
            if let Some(found) = self.levels.get_mut(slot) {
                (found.live, found.nominal, found.kept) = (true, nominal, kept);
                found.most = most.max(1);
                match (&mut found.queues, limits.queuing) {
                    (Some(queues), Some(shape)) if queues.shape() != shape => queues.reshape(shape),
                    (Some(_), Some(_)) => {}
                    (queues @ None, Some(shape)) => *queues = Some(Queues::new(shape)),
                    // Who waits goes on to wait.
                    (queues, None) => *queues = queues.take().filter(|q| q.waiting > 0),
                }
            }
        }
        self.reserved = self.levels.iter().map(Level::owed).sum();
        self.dispatch();
        slots
    }

    /// The slot of a level: its own, one that nobody needs any more, or a new one.
    fn slot(&mut self, name: &str) -> usize {
        let idle = |l: &Level| !l.live && l.in_use == 0 && l.queues.as_ref().is_none_or(|q| q.waiting == 0);
        let known = self.levels.iter().position(|l| l.name == name);
        let level = Level {
            name: name.to_owned(),
            nominal: 0,
            kept: 0,
            most: 1,
            in_use: 0,
            running: 0,
            queues: None,
            live: true,
        };
        if let Some(at) = known {
            return at;
        }
        match self.levels.iter().position(idle) {
            Some(at) => {
                if let Some(old) = self.levels.get_mut(at) {
                    *old = level;
                }
                at
            }
            None => {
                self.levels.push(level);
                self.levels.len() - 1
            }
        }
    }

    /// Takes seats, or a place in a queue.
    pub fn ask(&mut self, slot: usize, seats: u32, hash: impl FnOnce() -> u64) -> Result<Turn, Rejected> {
        let Some(level) = self.levels.get(slot) else { return Err(Rejected::ConcurrencyLimit) };
        // A call that is larger than its level runs alone.
        let seats = seats.clamp(1, level.nominal.max(1));
        let Some(queues) = &level.queues else {
            let free = self.take(slot, seats);
            return if free { Ok(Turn::Now { queue: None, seats }) } else { Err(Rejected::ConcurrencyLimit) };
        };
        let queue = queues.choose(hash());
        if queues.waiting == 0 && self.take(slot, seats) {
            if let Some(queues) = self.queues(slot) {
                queues.begin(queue, seats);
            }
            return Ok(Turn::Now { queue: Some(queue), seats });
        }
        let (sender, turn) = oneshot::channel();
        let id = self.next_id;
        self.next_id += 1;
        let waiter = Waiter { id, seats, turn: sender };
        if !self.queues(slot).is_some_and(|q| q.push(queue, waiter)) {
            return Err(Rejected::QueueFull);
        }
        self.waiting += 1;
        Ok(Turn::Wait { queue, seats, id, turn })
    }

    fn queues(&mut self, slot: usize) -> Option<&mut Queues> {
        self.levels.get_mut(slot)?.queues.as_mut()
    }

    fn take(&mut self, slot: usize, seats: u32) -> bool {
        let Some(level) = self.levels.get_mut(slot) else { return false };
        let wanted = level.in_use + seats;
        let owed = level.owed();
        let own = wanted <= level.kept;
        // What is free and kept for nobody else.
        let spare = self.total.saturating_sub(self.in_use + (self.reserved - owed));
        // No level stands still while a seat is free.
        let alone = level.in_use == 0 && self.in_use < self.total;
        if !own && !alone && (wanted > level.most || seats > spare) {
            return false;
        }
        level.in_use = wanted;
        level.running += 1;
        self.in_use += seats;
        self.reserved -= owed - level.owed();
        true
    }

    fn release(&mut self, slot: usize, seats: u32) {
        let Some(level) = self.levels.get_mut(slot) else { return };
        let owed = level.owed();
        level.in_use = level.in_use.saturating_sub(seats);
        level.running = level.running.saturating_sub(1);
        self.in_use = self.in_use.saturating_sub(seats);
        self.reserved += level.owed() - owed;
    }

    /// Gives seats back, and to whom they are due.
    pub fn leave(&mut self, slot: usize, queue: Option<usize>, seats: u32, took: Duration) {
        self.release(slot, seats);
        if let (Some(queue), Some(queues)) = (queue, self.queues(slot)) {
            queues.end(queue, seats, took);
        }
        if self.waiting > 0 {
            self.dispatch();
        }
    }

    /// A call that waits no longer; false: it does not wait.
    pub fn give_up(&mut self, slot: usize, queue: usize, id: u64) -> bool {
        let gone = self.queues(slot).is_some_and(|q| q.remove(queue, id));
        if gone {
            self.waiting -= 1;
        }
        gone
    }

    /// Lets those run that can.
    fn dispatch(&mut self) {
        for slot in 0..self.levels.len() {
            while self.waiting > 0 {
                let Some((queue, seats)) = self.queues(slot).and_then(|q| q.next()) else { break };
                if !self.take(slot, seats) {
                    break;
                }
                let Some(waiter) = self.queues(slot).and_then(|q| q.pop(queue)) else { break };
                self.waiting -= 1;
                if let Some(queues) = self.queues(slot) {
                    queues.begin(queue, seats);
                }
                if waiter.turn.send(()).is_err() {
                    self.release(slot, seats);
                    if let Some(queues) = self.queues(slot) {
                        queues.end(queue, seats, Duration::ZERO);
                    }
                }
            }
        }
    }

    pub fn stand(&self) -> Vec<Stand> {
        let stand = |l: &Level| Stand {
            name: l.name.clone(),
            nominal: l.nominal,
            kept: l.kept,
            most: l.most,
            in_use: l.in_use,
            running: l.running,
            waiting: l.queues.as_ref().map_or(0, |q| q.waiting),
        };
        self.levels.iter().filter(|l| l.live).map(stand).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Limits, Queuing};

    fn level(name: &str, shares: u32, lendable: u32, borrowing: Option<u32>, queue: bool) -> PriorityLevel {
        let queuing = queue.then_some(Queuing { queues: 4, hand_size: 2, length: 2 });
        let limits = Limits { shares, lendable_percent: lendable, borrowing_percent: borrowing, queuing };
        PriorityLevel { name: name.into(), uid: String::new(), limits: Some(limits) }
    }

    fn fill(s: &mut Seats, slot: usize) -> usize {
        (0..1000).take_while(|_| matches!(s.ask(slot, 1, || 1), Ok(Turn::Now { .. }))).count()
    }

    #[test]
    fn levels_keep_what_they_do_not_lend_and_borrow_the_rest() {
        let mut s = Seats::new(100);
        let levels = [level("a", 50, 50, None, true), level("b", 50, 50, Some(0), true)];
        let slots: Vec<usize> = s.arrange(&levels).into_iter().flatten().collect();
        let (a, b) = (slots[0], slots[1]);
        assert_eq!(fill(&mut s, a), 75, "its own and the half of the other's that is lent");
        assert_eq!(fill(&mut s, b), 25, "what it keeps");
        let Ok(Turn::Wait { mut turn, .. }) = s.ask(b, 1, || 1) else { panic!("a seat or a refusal") };
        assert!(turn.try_recv().is_err());
        for _ in 0..75 {
            s.leave(a, None, 1, Duration::ZERO);
        }
        assert!(turn.try_recv().is_ok(), "who waited got a seat");
        assert_eq!(26 + fill(&mut s, b), 50, "it may not borrow");
    }

    #[test]
    fn full_queues_and_levels_without_queues_refuse() {
        let mut s = Seats::new(2);
        let slots = s.arrange(&[level("q", 1, 0, Some(0), true), level("r", 1, 0, Some(0), false)]);
        let (q, r) = (slots[0].unwrap_or(9), slots[1].unwrap_or(9));
        assert!(matches!(s.ask(r, 1, || 0), Ok(Turn::Now { .. })));
        assert_eq!(s.ask(r, 1, || 0).err(), Some(Rejected::ConcurrencyLimit));
        assert!(matches!(s.ask(q, 1, || 5), Ok(Turn::Now { .. })));
        let waiting: Vec<Turn> = (0..20).filter_map(|_| s.ask(q, 1, || 5).ok()).collect();
        assert_eq!(waiting.len(), 4, "two queues of two, whoever asks");
        assert_eq!(s.ask(q, 1, || 5).err(), Some(Rejected::QueueFull));
        // Another flow has other queues.
        assert!((0..64).any(|h| s.ask(q, 1, || h).is_ok()));
    }

    #[test]
    fn seats_go_to_who_waits_and_large_calls_run_alone() {
        let mut s = Seats::new(4);
        let slot = s.arrange(&[level("a", 1, 0, None, true)])[0].unwrap_or(9);
        let Ok(Turn::Now { queue, seats }) = s.ask(slot, 10, || 1) else { panic!("no seat") };
        assert_eq!(seats, 4);
        let Ok(Turn::Wait { queue: second, id, mut turn, .. }) = s.ask(slot, 1, || 2) else { panic!("seat") };
        assert!(turn.try_recv().is_err());
        s.leave(slot, queue, seats, Duration::from_millis(1));
        assert!(turn.try_recv().is_ok());
        assert!(!s.give_up(slot, second, id), "it is not in the queue any more");
        s.leave(slot, Some(second), 1, Duration::from_millis(1));
        assert_eq!((s.in_use, s.reserved, s.waiting), (0, 4, 0));
    }
}
