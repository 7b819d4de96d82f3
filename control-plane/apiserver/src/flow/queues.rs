//! The queues of one level: who is dealt which, and whose turn it is.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::oneshot;

use super::Queuing;

/// How long a call is thought to take before it is known, in seconds.
const ESTIMATE: f64 = 0.003;

/// A call that waits.
pub(super) struct Waiter {
    pub id: u64,
    pub seats: u32,
    pub turn: oneshot::Sender<()>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiter>,
    /// Seats that its calls hold.
    executing: u32,
    /// The virtual time at which its next call is due: what its calls have used so far.
    due: f64,
}

/// All queues of a level. Time is virtual: it is where the queue stands whose turn it was last.
pub(super) struct Queues {
    shape: Queuing,
    queues: Vec<Queue>,
    now: f64,
    pub waiting: usize,
}

impl Queues {
    pub fn new(shape: Queuing) -> Self {
        let queues = (0..shape.queues.max(1)).map(|_| Queue::default()).collect();
        Self { shape, queues, now: 0.0, waiting: 0 }
    }

    pub fn shape(&self) -> Queuing {
        self.shape
    }

    /// Another shape; more queues are added, and none is taken away while somebody waits.
    pub fn reshape(&mut self, shape: Queuing) {
        self.shape = shape;
        let wanted = shape.queues.max(1);
        if wanted >= self.queues.len() || self.waiting == 0 {
            self.queues.resize_with(wanted, Queue::default);
        }
    }

    /// The least busy queue of the hand that a flow is dealt.
    pub fn choose(&self, hash: u64) -> usize {
        let weight = |at: &usize| self.queues.get(*at).map_or(u64::MAX, Queue::weight);
        deal(hash, self.queues.len().min(self.shape.queues.max(1)), self.shape.hand_size)
            .into_iter()
            .min_by_key(weight)
            .unwrap_or(0)
    }

    /// Puts a call at the end of a queue; false: it is full.
    pub fn push(&mut self, at: usize, waiter: Waiter) -> bool {
        let (most, now) = (self.shape.length, self.now);
        let Some(queue) = self.queues.get_mut(at).filter(|q| q.waiting.len() < most) else { return false };
        if queue.waiting.is_empty() && queue.executing == 0 {
            // Who was away has saved up nothing.
            queue.due = queue.due.max(now);
        }
        queue.waiting.push_back(waiter);
        self.waiting += 1;
        true
    }

    /// Seats that the next call needs, and its queue.
    pub fn next(&self) -> Option<(usize, u32)> {
        let waiting = self.queues.iter().enumerate().filter(|(_, q)| !q.waiting.is_empty());
        let (at, queue) = waiting.min_by(|(_, a), (_, b)| a.due.total_cmp(&b.due))?;
        Some((at, queue.waiting.front()?.seats))
    }

    /// Takes the next call of a queue out of it.
    pub fn pop(&mut self, at: usize) -> Option<Waiter> {
        let queue = self.queues.get_mut(at)?;
        let waiter = queue.waiting.pop_front()?;
        self.waiting -= 1;
        self.now = self.now.max(queue.due);
        Some(waiter)
    }

    /// A call of this queue has got its seats.
    pub fn begin(&mut self, at: usize, seats: u32) {
        let now = self.now;
        let Some(queue) = self.queues.get_mut(at) else { return };
        if queue.waiting.is_empty() && queue.executing == 0 {
            queue.due = queue.due.max(now);
        }
        queue.executing += seats;
        queue.due += f64::from(seats) * ESTIMATE;
    }

    /// A call of this queue has given its seats back after this time.
    pub fn end(&mut self, at: usize, seats: u32, took: Duration) {
        let Some(queue) = self.queues.get_mut(at) else { return };
        queue.executing = queue.executing.saturating_sub(seats);
        queue.due += f64::from(seats) * (took.as_secs_f64() - ESTIMATE);
    }

    /// Takes a call out that waits no longer; false: it was not there.
    pub fn remove(&mut self, at: usize, id: u64) -> bool {
        let Some(queue) = self.queues.get_mut(at) else { return false };
        let Some(place) = queue.waiting.iter().position(|w| w.id == id) else { return false };
        queue.waiting.remove(place);
        self.waiting -= 1;
        true
    }
}

impl Queue {
    fn weight(&self) -> u64 {
        u64::from(self.executing) + self.waiting.iter().map(|w| u64::from(w.seats)).sum::<u64>()
    }
}

/// Deals a hand of different cards out of a deck.
fn deal(mut hash: u64, deck: usize, hand: usize) -> Vec<usize> {
    let hand = hand.clamp(1, deck.max(1));
    let mut cards: Vec<usize> = Vec::with_capacity(hand);
    for dealt in 0..hand {
        let left = (deck - dealt) as u64;
        let mut card = (hash % left) as usize;
        hash /= left;
        // The n-th of those that are left; `cards` is in order.
        let mut place = 0;
        while let Some(taken) = cards.get(place).filter(|taken| **taken <= card) {
            let _ = taken;
            card += 1;
            place += 1;
        }
        cards.insert(place, card);
    }
    cards
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_hold_different_cards_of_the_deck() {
        for hash in (0..200).map(|i: u64| i.wrapping_mul(0x9E37_79B9_7F4A_7C15)) {
            let cards = deal(hash, 16, 4);
            assert!(cards.len() == 4 && cards.is_sorted() && cards.iter().all(|c| *c < 16), "{cards:?}");
            assert!(cards.windows(2).all(|w| w[0] != w[1]), "{cards:?}");
        }
        assert_eq!(deal(7, 1, 6), [0]);
        let all: std::collections::BTreeSet<usize> =
            (0..4000_u64).flat_map(|h| deal(h.wrapping_mul(0x9E37_79B9_7F4A_7C15), 16, 4)).collect();
        assert_eq!(all.len(), 16);
    }

    #[test]
    fn who_used_more_waits_longer() {
        let mut q = Queues::new(Queuing { queues: 2, hand_size: 1, length: 10 });
        let waiter = |id| Waiter { id, seats: 1, turn: oneshot::channel().0 };
        for id in 0..4 {
            assert!(q.push(0, waiter(id)));
        }
        assert!(q.push(1, waiter(10)));
        let mut order = Vec::new();
        while let Some((at, seats)) = q.next() {
            order.push(q.pop(at).expect("waiter").id);
            q.begin(at, seats);
            q.end(at, seats, Duration::from_millis(50));
        }
        assert_eq!(order, [0, 10, 1, 2, 3]);
        assert_eq!(q.waiting, 0);
    }
}
