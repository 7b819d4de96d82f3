//! The second run of the changing half of the chain: for plugins that asked to see what those after them changed.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

/// What the chain remembers between its runs of one call.
#[derive(Default)]
pub struct Rounds(Mutex<State>);

#[derive(Default)]
struct State {
    second: bool,
    wanted: bool,
    plugins: HashMap<&'static str, Notes>,
}

/// What one plugin with many callees noted.
#[derive(Default)]
struct Notes {
    /// Callees that would be called again.
    willing: BTreeSet<String>,
    /// Callees that are to be called again.
    due: BTreeSet<String>,
    /// The object as the plugin left it.
    left: Option<Value>,
}

/// One run of a plugin.
pub struct Turn<'a> {
    rounds: &'a Rounds,
    plugin: &'static str,
}

impl Rounds {
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Begins the second run, if a plugin wants it. False: there is none.
    pub(crate) fn again(&self) -> bool {
        self.with(|s| {
            let again = s.wanted && !s.second;
            s.second |= again;
            again
        })
    }

    /// Begins the turn of a plugin; `object` is what it is given.
    pub fn turn(&self, plugin: &'static str, object: &Value) -> Turn<'_> {
        self.with(|s| {
            let second = s.second;
            let notes = s.plugins.entry(plugin).or_default();
            // Others changed it since: every callee is asked again that is willing.
            if second && notes.left.as_ref().is_some_and(|left| left != object) {
                notes.due.append(&mut notes.willing);
            }
        });
        Turn { rounds: self, plugin }
    }
}

impl Turn<'_> {
    fn with<T>(&self, change: impl FnOnce(&mut Notes) -> T) -> T {
        self.rounds.with(|s| change(s.plugins.entry(self.plugin).or_default()))
    }

    /// Whether a callee is to be called in this run.
    pub fn is_due(&self, callee: &str) -> bool {
        let second = self.rounds.with(|s| s.second);
        !second || self.with(|n| n.due.contains(callee))
    }

    /// Whether this is the second run.
    pub fn is_second(&self) -> bool {
        self.rounds.with(|s| s.second)
    }

    /// A callee was called. `changed`: it changed the object; `willing`: it would be called again.
    pub fn called(&self, callee: &str, changed: bool, willing: bool) {
        if changed {
            self.rounds.with(|s| s.wanted = true);
            self.with(|n| n.due.append(&mut n.willing));
        }
        if willing {
            self.with(|n| n.willing.insert(callee.to_owned()));
        }
    }

    /// Ends the turn; `object` is what the plugin leaves.
    pub fn end(self, object: &Value) {
        self.with(|n| n.left = Some(object.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn who_is_asked_again() {
        let rounds = Rounds::default();
        let turn = rounds.turn("hooks", &json!(1));
        assert!(turn.is_due("a") && turn.is_due("b"));
        turn.called("a", false, true);
        turn.called("b", true, true);
        turn.end(&json!(2));
        assert!(rounds.again());
        let turn = rounds.turn("hooks", &json!(2));
        assert!(turn.is_due("a"), "b changed the object after a");
        assert!(!turn.is_due("b"), "nothing changed after b");
        assert!(!rounds.again());
    }

    #[test]
    fn what_other_plugins_change_counts() {
        let rounds = Rounds::default();
        let turn = rounds.turn("hooks", &json!(1));
        turn.called("a", true, true);
        turn.called("never", false, false);
        turn.end(&json!(2));
        assert!(rounds.again());
        let turn = rounds.turn("hooks", &json!(3));
        assert!(turn.is_due("a") && !turn.is_due("never"));
        let calm = Rounds::default();
        calm.turn("hooks", &json!(1)).called("a", false, true);
        assert!(!calm.again());
    }
}
