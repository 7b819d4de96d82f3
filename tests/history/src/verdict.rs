//! Whether what clients and watchers saw can have come from one correct store.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::Seen;
use crate::calls::{Answer, Call, History, Op, Val};
use crate::linearizable;

/// Everything that was seen.
pub struct Evidence {
    /// By clients.
    pub history: History,
    /// By the watcher of each server.
    pub watches: Vec<Vec<Seen>>,
    /// By a list at each server when all was over: key, value, revision.
    pub last: Vec<BTreeMap<String, (Val, u64)>>,
}

/// What is wrong; empty: nothing.
pub fn judge(evidence: &Evidence) -> Vec<String> {
    let mut wrong = Vec::new();
    watches(&evidence.watches, &mut wrong);
    let Some(log) = evidence.watches.first() else { return vec!["nobody watched".into()] };
    let changes = Changes::new(log, &mut wrong);
    writes(&evidence.history, &changes, &mut wrong);
    order(&evidence.history, &changes, &mut wrong);
    for (server, last) in evidence.last.iter().enumerate() {
        let expected = changes.at(u64::MAX);
        if *last != expected {
            wrong.push(format!("server {server} holds {last:?} where {expected:?} was told by watches"));
        }
    }
    for (key, calls) in &evidence.history.calls {
        if let Err(why) = linearizable::check(&resolved(key, calls, &changes)) {
            wrong.push(format!("{key} is not linearizable: {why}"));
        }
    }
    wrong
}

/// Each watcher saw each revision once and in order, and all the same.
fn watches(watches: &[Vec<Seen>], wrong: &mut Vec<String>) {
    for (index, seen) in watches.iter().enumerate() {
        if let Some(pair) = seen.windows(2).find(|pair| pair[0].revision >= pair[1].revision) {
            wrong.push(format!("watcher {index} saw {:?} and then {:?}", pair[0], pair[1]));
        }
        let first = &watches[0];
        if seen == first {
            continue;
        }
        let at = seen.iter().zip(first).position(|(a, b)| a != b).unwrap_or(seen.len().min(first.len()));
        wrong.push(format!(
            "watcher {index} saw {} changes, watcher 0 {}; change {at} is {:?} and {:?}",
            seen.len(),
            first.len(),
            seen.get(at),
            first.get(at)
        ));
    }
}

/// The changes in order, as watchers were told them.
struct Changes {
    by_key: BTreeMap<String, BTreeMap<u64, Option<Val>>>,
    /// Where each value was written.
    written: HashMap<Val, (String, u64)>,
}

impl Changes {
    fn new(log: &[Seen], wrong: &mut Vec<String>) -> Self {
        let mut changes = Self { by_key: BTreeMap::new(), written: HashMap::new() };
        for seen in log {
            let there = changes.value(&seen.key, seen.revision.saturating_sub(1));
            let fits = match seen.value {
                Some(_) => seen.added == there.is_none(),
                None => there.is_some(),
            };
            if !fits {
                wrong.push(format!("{seen:?} was told where the key was {there:?}"));
            }
            changes.by_key.entry(seen.key.clone()).or_default().insert(seen.revision, seen.value);
            if let Some(value) = seen.value
                && let Some(before) = changes.written.insert(value, (seen.key.clone(), seen.revision))
            {
                wrong.push(format!("value {value} was written twice: {before:?} and {seen:?}"));
            }
        }
        changes
    }

    /// The value of a key at a revision.
    fn value(&self, key: &str, revision: u64) -> Option<Val> {
        self.by_key.get(key)?.range(..=revision).next_back().and_then(|(_, value)| *value)
    }

    fn at(&self, revision: u64) -> BTreeMap<String, (Val, u64)> {
        let one = |(key, all): (&String, &BTreeMap<u64, Option<Val>>)| {
            let (at, value) = all.range(..=revision).next_back()?;
            Some((key.clone(), ((*value)?, *at)))
        };
        self.by_key.iter().filter_map(one).collect()
    }
}

/// What was acknowledged is there, once; what was refused is not.
fn writes(history: &History, changes: &Changes, wrong: &mut Vec<String>) {
    for (key, calls) in &history.calls {
        for call in calls {
            let found = call.op.value().and_then(|value| changes.written.get(&value));
            match call.answer {
                Answer::Done(Some(revision)) if found != Some(&(key.clone(), revision)) => {
                    wrong.push(format!(
                        "an acknowledged write of {key} is lost: {call:?}, watchers saw {found:?}"
                    ));
                }
                Answer::Exists | Answer::Missing | Answer::Conflict | Answer::Refused if found.is_some() => {
                    wrong.push(format!(
                        "a refused write of {key} was done all the same: {call:?} at {found:?}"
                    ));
                }
                _ => {}
            }
            if let Answer::Read(value, revision) = call.answer
                && changes.written.get(&value) != Some(&(key.clone(), revision))
            {
                wrong.push(format!("{key} was read as nobody wrote it: {call:?}"));
            }
        }
    }
}

/// Revisions grow with time: who asks after an answer sees what was answered, on any key.
fn order(history: &History, changes: &Changes, wrong: &mut Vec<String>) {
    // What was known to everyone at a time: the highest revision of an answer that had come.
    let mut known: Vec<(u64, u64)> = Vec::new();
    for call in history.calls.values().flatten() {
        if let Answer::Done(Some(revision)) | Answer::Read(_, revision) = call.answer {
            known.push((call.ended, revision));
        }
    }
    known.extend(history.lists.iter().map(|list| (list.ended, list.revision)));
    known.sort_unstable();
    let mut highest = 0;
    for (_, revision) in &mut known {
        highest = highest.max(*revision);
        *revision = highest;
    }
    let floor = |began: u64| {
        let before = known.partition_point(|(ended, _)| *ended < began);
        before.checked_sub(1).and_then(|at| known.get(at)).map_or(0, |(_, revision)| *revision)
    };
    for (key, calls) in &history.calls {
        for call in calls {
            let floor = floor(call.began);
            match call.answer {
                Answer::Done(Some(revision)) if revision <= floor => {
                    wrong.push(format!(
                        "{key}: {call:?} got a revision below {floor}, which was known before"
                    ));
                }
                // It was current at some time after it was asked for.
                Answer::Read(_, revision) => {
                    let next = changes.by_key.get(key).and_then(|all| all.range(revision + 1..).next());
                    if next.is_some_and(|(next, _)| *next <= floor) {
                        wrong.push(format!(
                            "{key}: {call:?} is older than revision {floor}, which was known before"
                        ));
                    }
                }
                _ => {}
            }
        }
    }
    for list in &history.lists {
        let floor = floor(list.began);
        if list.revision < floor {
            wrong.push(format!("a list of revision {} where {floor} was known before", list.revision));
        }
        let expected = changes.at(list.revision);
        if list.items != expected {
            wrong.push(format!(
                "a list of revision {} shows {:?}, not {expected:?}",
                list.revision, list.items
            ));
        }
    }
}

/// The calls on a key with what watches tell about those whose outcome nobody was told.
fn resolved(key: &str, calls: &[Call], changes: &Changes) -> Vec<Call> {
    let deleted: HashSet<u64> = changes
        .by_key
        .get(key)
        .into_iter()
        .flatten()
        .filter(|(_, v)| v.is_none())
        .map(|(at, _)| *at)
        .collect();
    let resolve = |call: &Call| {
        let mut call = *call;
        if call.answer != Answer::Unknown {
            return Some(call);
        }
        match call.op.value() {
            Some(value) => {
                let (_, revision) = changes.written.get(&value)?;
                (call.answer, call.ended) = (Answer::Done(Some(*revision)), u64::MAX);
                Some(call)
            }
            // Which of the deletions it was, if any, is not told.
            None => (call.op == Op::Delete && !deleted.is_empty()).then_some(call),
        }
    };
    calls.iter().filter_map(resolve).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(revision: u64, key: &str, value: Option<Val>, added: bool) -> Seen {
        Seen { revision, key: key.into(), value, added }
    }

    fn good() -> Evidence {
        let log = vec![seen(5, "a", Some(1), true), seen(6, "a", Some(2), false), seen(8, "a", None, false)];
        let call = |began, ended, op, answer| Call { client: 0, began, ended, op, answer };
        let calls = vec![
            call(0, 1, Op::Create(1), Answer::Done(Some(5))),
            call(2, 3, Op::Put(2), Answer::Unknown),
            call(4, 5, Op::Get, Answer::Read(2, 6)),
            call(6, 7, Op::Cas(1, 3), Answer::Conflict),
            call(8, 9, Op::Delete, Answer::Done(None)),
        ];
        let list = crate::calls::List {
            began: 5,
            ended: 6,
            revision: 7,
            items: BTreeMap::from([("a".into(), (2, 6))]),
        };
        let history = History { calls: BTreeMap::from([("a".into(), calls)]), lists: vec![list] };
        Evidence { history, watches: vec![log.clone(), log], last: vec![BTreeMap::new(); 2] }
    }

    #[test]
    fn a_good_run_passes() {
        assert_eq!(judge(&good()), Vec::<String>::new());
    }

    #[test]
    fn each_kind_of_lie_is_found() {
        type Lie = (&'static str, fn(&mut Evidence));
        let lies: [Lie; 10] = [
            ("saw", |e| e.watches[1].swap(0, 1)),
            ("saw", |e| drop(e.watches[1].remove(1))),
            ("saw", |e| {
                let again = e.watches[1][0].clone();
                e.watches[1].insert(1, again);
            }),
            ("is lost", |e| e.watches.iter_mut().for_each(|w| drop(w.remove(0)))),
            ("done all the same", |e| e.history.calls.get_mut("a").unwrap()[3].op = Op::Cas(1, 2)),
            ("older than", |e| e.history.calls.get_mut("a").unwrap()[2].answer = Answer::Read(1, 5)),
            ("below", |e| {
                let calls = e.history.calls.get_mut("a").unwrap();
                calls[0] = Call { began: 10, ended: 11, ..calls[0] };
            }),
            ("shows", |e| e.history.lists[0].items.clear()),
            ("known before", |e| {
                let list = &mut e.history.lists[0];
                (list.began, list.ended, list.revision) = (20, 21, 5);
            }),
            ("holds", |e| e.last[1] = BTreeMap::from([("a".into(), (2, 6))])),
        ];
        for (words, lie) in lies {
            let mut evidence = good();
            if words == "older than" {
                // A later call makes the newer revision known before the read begins.
                let calls = evidence.history.calls.get_mut("a").unwrap();
                let read = Call { began: 3, ended: 3, op: Op::Get, answer: Answer::Read(2, 6), client: 1 };
                calls.push(read);
            }
            lie(&mut evidence);
            let found = judge(&evidence);
            assert!(found.iter().any(|what| what.contains(words)), "{words}: {found:?}");
        }
    }
}
