//! A sidecar without a port: it exports an interface, and others of its pod call it.
//!
//! The tokens are lines `TOKEN USER GROUP,GROUP EXPIRES` of the file that `TOKENS` names, a Secret that only this container sees.
use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

wit_bindgen::generate!({ world: "auth", path: "../wit" });

use exports::demo::auth::tokens::{Guest, GuestSession, Refusal, Session, User};

struct Auth;

struct Open {
    user: String,
    actions: RefCell<Vec<String>>,
}

impl Guest for Auth {
    type Session = Open;

    fn who(token: String) -> Result<User, Refusal> {
        let path = std::env::var("TOKENS").unwrap_or_else(|_| "/secrets/tokens".into());
        let lines = std::fs::read_to_string(path).map_err(|_| Refusal::Unknown)?;
        let line = lines.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut found = line.filter(|line| line.first() == Some(&token.as_str()));
        let Some([_, name, groups, expires]) = found.next().as_deref().map(|line| <[&str; 4]>::try_from(line).unwrap_or_default())
        else {
            return Err(Refusal::Unknown);
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        match expires.parse() {
            Ok(end) if end < now => Err(Refusal::Expired(end)),
            _ => Ok(User { name: name.into(), groups: groups.split(',').map(String::from).collect() }),
        }
    }

    fn close(session: Session) -> Vec<String> {
        let session = session.into_inner::<Open>();
        println!("{}: {} actions", session.user, session.actions.borrow().len());
        session.actions.take()
    }
}

impl GuestSession for Open {
    fn new(user: User) -> Open {
        Open { user: user.name, actions: RefCell::default() }
    }

    fn note(&self, action: String) -> u32 {
        let mut actions = self.actions.borrow_mut();
        actions.push(action);
        actions.len() as u32
    }
}

export!(Auth);
