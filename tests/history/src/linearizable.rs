//! Whether the calls on one key can have happened one after the other, each at some moment between its begin and its end
//! (Wing and Gong's search with Lowe's memory of states, as in porcupine).

use std::collections::HashSet;

use crate::calls::{Answer, Call, Op, Val};

/// The state of a key.
type State = Option<Val>;

/// The state after a call, if it can have had this answer in `state`.
fn step(state: State, call: &Call) -> Option<State> {
    let open = call.answer == Answer::Unknown;
    match (call.op, call.answer, state) {
        (Op::Get, Answer::Read(value, _), Some(now)) => (value == now).then_some(state),
        (Op::Get, Answer::Missing, None) => Some(None),
        (Op::Get, ..) => None,
        (Op::Create(new), Answer::Done(_) | Answer::Unknown, None) => Some(Some(new)),
        (Op::Create(_), Answer::Exists, Some(_)) => Some(state),
        (Op::Put(new), Answer::Done(_) | Answer::Unknown, Some(_)) => Some(Some(new)),
        (Op::Cas(old, new), Answer::Done(_) | Answer::Unknown, Some(now)) if old == now => Some(Some(new)),
        (Op::Cas(old, _), Answer::Conflict, Some(now)) => (old != now).then_some(state),
        (Op::Delete, Answer::Done(_) | Answer::Unknown, Some(_)) => Some(None),
        (Op::Put(_) | Op::Cas(..) | Op::Delete, Answer::Missing, None) => Some(None),
        // What nobody knows of may have been refused as well; that changes nothing and need not be tried.
        _ if open => None,
        _ => None,
    }
}

/// A set of calls.
type Taken = Vec<u64>;

/// Begin or end of a call, in a list that calls can be taken out of and put back into.
struct Events {
    next: Vec<usize>,
    prev: Vec<usize>,
    /// The call, and whether it is its begin.
    what: Vec<(usize, bool)>,
    /// Where the end of a call is.
    end: Vec<usize>,
}

impl Events {
    fn new(calls: &[Call]) -> Self {
        let mut order: Vec<(u64, bool, usize)> = Vec::new();
        for (index, call) in calls.iter().enumerate() {
            order.push((call.began, false, index));
            order.push((if call.answer == Answer::Unknown { u64::MAX } else { call.ended }, true, index));
        }
        // Of two at the same moment the begin goes first: then they overlap, which allows more.
        order.sort_unstable();
        let count = order.len();
        let mut end = vec![0; calls.len()];
        let mut what = vec![(usize::MAX, false)];
        for (at, (_, is_end, index)) in order.into_iter().enumerate() {
            what.push((index, !is_end));
            if is_end {
                end[index] = at + 1;
            }
        }
        // A ring; 0 is its head.
        let next = (1..=count).chain([0]).collect();
        let prev = [count].into_iter().chain(0..count).collect();
        Self { next, prev, what, end }
    }

    fn unlink(&mut self, at: usize) {
        let (prev, next) = (self.prev[at], self.next[at]);
        self.next[prev] = next;
        self.prev[next] = prev;
    }

    fn relink(&mut self, at: usize) {
        let (prev, next) = (self.prev[at], self.next[at]);
        self.next[prev] = at;
        self.prev[next] = at;
    }

    fn take(&mut self, at: usize) {
        self.unlink(at);
        self.unlink(self.end[self.what[at].0]);
    }

    fn put_back(&mut self, at: usize) {
        self.relink(self.end[self.what[at].0]);
        self.relink(at);
    }
}

/// Most states that are tried for one key.
const MOST_STATES: usize = 20_000_000;

/// Checks the calls on one key, which does not exist at the begin.
///
/// # Errors
/// Says which call no order explains; or that there are too many orders to try.
pub fn check(calls: &[Call]) -> Result<(), String> {
    let calls: Vec<Call> = calls
        .iter()
        .filter(|call| call.answer != Answer::Refused)
        // A read without an answer says nothing.
        .filter(|call| !(call.op == Op::Get && call.answer == Answer::Unknown))
        .copied()
        .collect();
    let known = calls.iter().filter(|call| call.answer != Answer::Unknown).count();
    let mut events = Events::new(&calls);
    let mut taken: Taken = vec![0; calls.len().div_ceil(64)];
    let mut seen: HashSet<(Taken, State)> = HashSet::new();
    let mut path: Vec<(usize, State)> = Vec::new();
    let (mut state, mut done, mut at, mut deepest) = (None, 0, events.next[0], (0, 0));
    while done < known {
        let (index, begins) = events.what[at];
        if at != 0 && begins {
            let next = step(state, &calls[index]);
            taken[index / 64] |= 1 << (index % 64);
            match next {
                Some(next) if seen.insert((taken.clone(), next)) => {
                    if seen.len() > MOST_STATES {
                        return Err("too many orders are possible to try them all".into());
                    }
                    path.push((at, state));
                    state = next;
                    done += usize::from(calls[index].answer != Answer::Unknown);
                    events.take(at);
                    at = events.next[0];
                }
                _ => {
                    taken[index / 64] &= !(1 << (index % 64));
                    at = events.next[at];
                }
            }
            continue;
        }
        // The end of a call that was not taken: what was taken before must have been wrong.
        if path.len() >= deepest.0 && at != 0 {
            deepest = (path.len(), index);
        }
        let Some((last, before)) = path.pop() else {
            return Err(explain(&calls, deepest.1));
        };
        state = before;
        let index = events.what[last].0;
        taken[index / 64] &= !(1 << (index % 64));
        done -= usize::from(calls[index].answer != Answer::Unknown);
        events.put_back(last);
        at = events.next[last];
    }
    Ok(())
}

/// The call that could not be placed, with those around it.
fn explain(calls: &[Call], index: usize) -> String {
    let odd = &calls[index];
    let mut near: Vec<&Call> = calls
        .iter()
        .filter(|call| call.began <= odd.ended && call.ended.saturating_add(5_000_000_000) >= odd.began)
        .collect();
    near.sort_by_key(|call| call.began);
    let skip = near.len().saturating_sub(24);
    let lines: Vec<String> = near.into_iter().skip(skip).map(show).collect();
    format!("no order explains {}\nnear it:\n{}", show(odd), lines.join("\n"))
}

fn show(call: &Call) -> String {
    let seconds = |at: u64| if at == u64::MAX { "never".into() } else { format!("{:.3}", at as f64 / 1e9) };
    let (began, ended) = (seconds(call.began), seconds(call.ended));
    format!("client {} {began}..{ended} {:?} -> {:?}", call.client, call.op, call.answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(began: u64, ended: u64, op: Op, answer: Answer) -> Call {
        Call { client: 0, began, ended, op, answer }
    }

    const DONE: Answer = Answer::Done(None);

    #[test]
    fn good_histories() {
        use Op::{Cas, Create, Delete, Get, Put};
        let read = |value| Answer::Read(value, 0);
        let good: [&[Call]; 6] = [
            &[],
            &[call(0, 1, Create(1), DONE), call(2, 3, Get, read(1)), call(4, 5, Delete, DONE)],
            // Overlapping: the read may see either.
            &[
                call(0, 1, Create(1), DONE),
                call(2, 9, Put(2), DONE),
                call(3, 4, Get, read(1)),
                call(5, 6, Get, read(2)),
            ],
            // Unknown: it took effect, late, or never.
            &[
                call(0, 1, Create(1), DONE),
                call(2, 3, Put(2), Answer::Unknown),
                call(4, 5, Get, read(1)),
                call(6, 7, Get, read(2)),
            ],
            &[call(0, 1, Create(1), Answer::Unknown), call(2, 3, Get, Answer::Missing)],
            // Two compare with the same value; one wins.
            &[
                call(0, 1, Create(1), DONE),
                call(2, 9, Cas(1, 2), DONE),
                call(2, 9, Cas(1, 3), Answer::Conflict),
                call(10, 11, Get, read(2)),
            ],
        ];
        for calls in good {
            assert_eq!(check(calls), Ok(()), "{calls:?}");
        }
    }

    #[test]
    fn bad_histories() {
        use Op::{Cas, Create, Delete, Get, Put};
        let read = |value| Answer::Read(value, 0);
        let bad: [(&str, &[Call]); 9] = [
            (
                "a stale read",
                &[call(0, 1, Create(1), DONE), call(2, 3, Put(2), DONE), call(4, 5, Get, read(1))],
            ),
            ("a lost write", &[call(0, 1, Create(1), DONE), call(2, 3, Get, Answer::Missing)]),
            ("a write out of nothing", &[call(0, 1, Create(1), DONE), call(2, 3, Get, read(7))]),
            (
                "both win",
                &[call(0, 1, Create(1), DONE), call(2, 9, Cas(1, 2), DONE), call(2, 9, Cas(1, 3), DONE)],
            ),
            (
                "back in time",
                &[
                    call(0, 1, Create(1), DONE),
                    call(2, 9, Put(2), DONE),
                    call(3, 4, Get, read(2)),
                    call(5, 6, Get, read(1)),
                ],
            ),
            (
                "a refused write is seen",
                &[
                    call(0, 1, Create(1), DONE),
                    call(2, 3, Cas(5, 6), Answer::Conflict),
                    call(4, 5, Get, read(6)),
                ],
            ),
            ("created twice", &[call(0, 1, Create(1), DONE), call(2, 3, Create(2), DONE)]),
            (
                "deleted and there",
                &[call(0, 1, Create(1), DONE), call(2, 3, Delete, DONE), call(4, 5, Get, read(1))],
            ),
            (
                "an unknown write is seen, gone and seen again",
                &[
                    call(0, 1, Create(1), DONE),
                    call(2, 3, Put(2), Answer::Unknown),
                    call(4, 5, Get, read(2)),
                    call(6, 7, Put(3), DONE),
                    call(8, 9, Get, read(2)),
                ],
            ),
        ];
        for (what, calls) in bad {
            assert!(check(calls).is_err(), "{what}");
        }
    }

    /// A correct register under many random clients passes; the same history with one answer changed does not.
    #[test]
    fn long_histories_are_judged_quickly() {
        use rand::rngs::StdRng;
        use rand::{Rng, SeedableRng};
        let mut rng = StdRng::seed_from_u64(1);
        let (mut state, mut calls) = (None, Vec::new());
        for n in 1..1500_u64 {
            let at = n * 10;
            let (op, answer, next) = match (rng.random_range(0..4), state) {
                (0, None) => (Op::Create(n), DONE, Some(n)),
                (0, Some(_)) => (Op::Create(n), Answer::Exists, state),
                (1, Some(old)) => (Op::Cas(old, n), DONE, Some(n)),
                (2, Some(_)) if n % 7 == 0 => (Op::Delete, DONE, None),
                (_, None) => (Op::Get, Answer::Missing, None),
                (_, Some(now)) => (Op::Get, Answer::Read(now, 0), state),
            };
            state = next;
            // It takes effect at `at`; begin and end lie around that.
            let (began, ended) = (at - rng.random_range(0..40).min(at), at + rng.random_range(0..40));
            calls.push(call(began, ended, op, answer));
            if n % 500 == 0 {
                calls.push(call(at, u64::MAX, Op::Put(1_000_000 + n), Answer::Unknown));
            }
        }
        assert_eq!(check(&calls), Ok(()));
        let stale =
            calls.iter().position(|c| matches!(c.answer, Answer::Read(..)) && c.began > 10_000).unwrap();
        calls[stale].answer = Answer::Read(1, 0);
        assert!(check(&calls).is_err());
    }
}
