//! Priority and fairness: which calls run now, which wait, and which are sent away.
//!
//! A call is of the first [`FlowSchema`] that matches it, which names a [`PriorityLevel`]. A level has seats; a call takes
//! one or more and gives them back when it is answered. Who finds none free waits in one of the level's queues: its user
//! (or namespace) is dealt a few of them, so that one that floods fills its own and leaves those of most others alone.
//! What these are the registry says, for the server knows no kinds: [`FlowSource`].

mod classify;
mod follow;
mod queues;
mod seats;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use http::HeaderValue;
use parking_lot::Mutex;

use crate::objects::Objects;
use crate::request::UserInfo;

pub(crate) use classify::{Ask, What};
pub(crate) use follow::follow;
pub(crate) use seats::Stand;

use seats::{Seats, Turn};

/// All seats of a server, shared out among its levels.
pub(crate) const TOTAL_SEATS: u32 = 600;
/// Most seats of one call.
const MOST_SEATS: u64 = 10;
/// Objects of a list for which one seat is taken.
const OBJECTS_A_SEAT: u64 = 100;

/// How calls of one importance share seats.
#[derive(Clone, Debug, PartialEq)]
pub struct PriorityLevel {
    /// Its name.
    pub name: String,
    /// The object's uid.
    pub uid: String,
    /// How many it has; `None`: its calls need none.
    pub limits: Option<Limits>,
}

/// The seats of a level.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Its part of all seats, relative to the shares of the others.
    pub shares: u32,
    /// Percent of its seats that others may use while they are free.
    pub lendable_percent: u32,
    /// Percent of its seats that it may use in addition; `None`: as many as are free.
    pub borrowing_percent: Option<u32>,
    /// Where calls wait; `None`: who finds no seat is sent away.
    pub queuing: Option<Queuing>,
}

/// The queues of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queuing {
    /// How many there are.
    pub queues: usize,
    /// How many of them one flow is dealt.
    pub hand_size: usize,
    /// How many calls wait in one.
    pub length: usize,
}

/// Which calls belong to a level.
#[derive(Clone, Debug)]
pub struct FlowSchema {
    /// Its name.
    pub name: String,
    /// The object's uid.
    pub uid: String,
    /// The name of its level.
    pub level: String,
    /// Lower ones are asked first.
    pub precedence: i64,
    /// What tells its flows apart.
    pub distinguisher: Distinguisher,
    /// Matches where any of them does.
    pub rules: Vec<FlowRule>,
}

/// What tells the flows of a schema apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distinguisher {
    /// Nothing: all calls are one flow.
    None,
    /// The caller's name.
    User,
    /// The namespace of the call.
    Namespace,
}

/// Who asks for what.
#[derive(Clone, Debug, Default)]
pub struct FlowRule {
    /// Any of these callers.
    pub subjects: Vec<Subject>,
    /// Calls to resources: any of these.
    pub resources: Vec<ResourceRule>,
    /// Other calls: any of these.
    pub paths: Vec<PathRule>,
}

/// A caller. `*` means everyone.
#[derive(Clone, Debug)]
pub enum Subject {
    /// By user name.
    User(String),
    /// By group.
    Group(String),
    /// A service account of a namespace.
    ServiceAccount(String, String),
}

/// Calls to resources. `*` means all.
#[derive(Clone, Debug, Default)]
pub struct ResourceRule {
    /// Verbs.
    pub verbs: Vec<String>,
    /// API groups.
    pub groups: Vec<String>,
    /// Resources, as `pods` or `pods/status`.
    pub resources: Vec<String>,
    /// Calls outside any namespace.
    pub cluster_scope: bool,
    /// Calls in these namespaces.
    pub namespaces: Vec<String>,
}

/// Calls to paths that are no resource. `*` means all, at the end of a path too.
#[derive(Clone, Debug, Default)]
pub struct PathRule {
    /// Verbs.
    pub verbs: Vec<String>,
    /// Paths.
    pub paths: Vec<String>,
}

/// Levels and schemas.
#[derive(Clone, Debug, Default)]
pub struct FlowConfig {
    /// The levels.
    pub levels: Vec<PriorityLevel>,
    /// The schemas, in any order.
    pub schemas: Vec<FlowSchema>,
}

impl FlowConfig {
    /// What holds where nothing else does: administrators are exempt, everyone else shares one level.
    fn fallback() -> Self {
        let level = |name: &str, limits| PriorityLevel { name: name.into(), uid: String::new(), limits };
        let rule = |group: &str| {
            let all = || vec!["*".to_owned()];
            let resources = ResourceRule {
                verbs: all(),
                groups: all(),
                resources: all(),
                cluster_scope: true,
                namespaces: all(),
            };
            FlowRule {
                subjects: vec![Subject::Group(group.into())],
                resources: vec![resources],
                paths: vec![PathRule { verbs: all(), paths: all() }],
            }
        };
        let schema = |name: &str, precedence, group| FlowSchema {
            name: name.into(),
            uid: String::new(),
            level: name.into(),
            precedence,
            distinguisher: Distinguisher::User,
            rules: vec![rule(group)],
        };
        let queuing = Some(Queuing { queues: 64, hand_size: 6, length: 50 });
        let limits = Limits { shares: 5, lendable_percent: 0, borrowing_percent: None, queuing };
        Self {
            levels: vec![level("exempt", None), level("catch-all", Some(limits))],
            schemas: vec![schema("exempt", 1, "system:masters"), schema("catch-all", 10_000, "*")],
        }
    }
}

/// Where levels and schemas come from.
#[async_trait]
pub trait FlowSource: Send + Sync + 'static {
    /// Prefixes of the store below which they lie.
    fn prefixes(&self) -> Vec<String>;

    /// All of them as they are now; those that are not well-formed are left out.
    async fn load(&self, objects: &Objects) -> FlowConfig;
}

/// A schema that calls are of, with what is derived from it once.
pub(crate) struct Flow {
    pub name: String,
    pub level_name: String,
    /// The slot of its level among the seats; `None`: exempt.
    slot: Option<usize>,
    schema: FlowSchema,
    /// Headers of answers.
    pub schema_uid: HeaderValue,
    pub level_uid: HeaderValue,
    pub dispatched: AtomicU64,
    pub rejected: [AtomicU64; Rejected::ALL.len()],
}

/// Why a call is sent away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejected {
    /// Its level has no queues and no seat is free.
    ConcurrencyLimit,
    /// Its queue is full.
    QueueFull,
    /// It has waited too long.
    TimeOut,
}

impl Rejected {
    pub const ALL: [Self; 3] = [Self::ConcurrencyLimit, Self::QueueFull, Self::TimeOut];

    /// In the words of metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::ConcurrencyLimit => "concurrency-limit",
            Self::QueueFull => "queue-full",
            Self::TimeOut => "time-out",
        }
    }
}

/// All levels and schemas with the calls that run and wait.
pub(crate) struct Flows {
    flows: ArcSwap<Vec<Arc<Flow>>>,
    seats: Arc<Mutex<Seats>>,
}

impl Default for Flows {
    fn default() -> Self {
        let flows = Self { flows: ArcSwap::default(), seats: Arc::new(Mutex::new(Seats::new(TOTAL_SEATS))) };
        flows.replace(FlowConfig::fallback());
        flows
    }
}

impl Flows {
    /// Takes over a configuration. Calls that run or wait go on.
    pub fn replace(&self, mut config: FlowConfig) {
        let fallback = FlowConfig::fallback();
        for level in fallback.levels {
            if !config.levels.iter().any(|l| l.name == level.name) {
                config.levels.push(level);
            }
        }
        // Nobody is left without a schema, whatever was deleted.
        config.schemas.extend(fallback.schemas.into_iter().map(|s| FlowSchema {
            precedence: if s.name == "exempt" { s.precedence } else { i64::MAX },
            ..s
        }));
        config.schemas.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        let mut seats = self.seats.lock();
        let slots = seats.arrange(&config.levels);
        drop(seats);
        let old = self.flows.load();
        let flow = |schema: FlowSchema| {
            let level = config.levels.iter().position(|l| l.name == schema.level)?;
            let slot = *slots.get(level)?;
            let before = old.iter().find(|f| f.name == schema.name && f.level_name == schema.level);
            let counter = |at: fn(&Flow) -> &AtomicU64| {
                AtomicU64::new(before.map_or(0, |f| at(f).load(Ordering::Relaxed)))
            };
            let uid = |uid: &str| HeaderValue::from_str(uid).unwrap_or(HeaderValue::from_static(""));
            Some(Arc::new(Flow {
                name: schema.name.clone(),
                level_name: schema.level.clone(),
                slot,
                schema_uid: uid(&schema.uid),
                level_uid: uid(&config.levels.get(level)?.uid),
                dispatched: counter(|f| &f.dispatched),
                rejected: [
                    counter(|f| &f.rejected[0]),
                    counter(|f| &f.rejected[1]),
                    counter(|f| &f.rejected[2]),
                ],
                schema,
            }))
        };
        let flows = config.schemas.into_iter().filter_map(flow).collect();
        self.flows.store(Arc::new(flows));
    }

    /// The flow that a call is of.
    pub fn classify(&self, ask: &Ask<'_>) -> Option<Arc<Flow>> {
        self.flows.load().iter().find(|flow| flow.schema.matches(ask)).cloned()
    }

    /// All flows, for metrics.
    pub fn all(&self) -> Arc<Vec<Arc<Flow>>> {
        self.flows.load_full()
    }

    /// How the levels stand, for metrics.
    pub fn stand(&self) -> Vec<Stand> {
        self.seats.lock().stand()
    }

    /// Waits for seats. The call holds them until it drops what it gets.
    pub async fn admit(
        &self,
        flow: &Flow,
        user: &UserInfo,
        namespace: Option<&str>,
        seats: u32,
        patience: Duration,
    ) -> Result<Option<Ticket>, Rejected> {
        let Some(slot) = flow.slot else {
            flow.dispatched.fetch_add(1, Ordering::Relaxed);
            return Ok(None);
        };
        let admitted = self.seat(flow, slot, user, namespace, seats, patience).await;
        match &admitted {
            Ok(_) => flow.dispatched.fetch_add(1, Ordering::Relaxed),
            Err(why) => match flow.rejected.get(*why as usize) {
                Some(count) => count.fetch_add(1, Ordering::Relaxed),
                None => 0,
            },
        };
        admitted.map(Some)
    }

    async fn seat(
        &self,
        flow: &Flow,
        slot: usize,
        user: &UserInfo,
        namespace: Option<&str>,
        seats: u32,
        patience: Duration,
    ) -> Result<Ticket, Rejected> {
        let turn = self.seats.lock().ask(slot, seats, || flow.hash(user, namespace))?;
        let (queue, seats) = match turn {
            Turn::Now { queue, seats } => (queue, seats),
            Turn::Wait { queue, seats, id, turn } => {
                let mut waiting =
                    Waiting { all: self.seats.clone(), slot, queue, id, turn: Some(turn), seats };
                waiting.wait(patience).await?;
                (Some(queue), seats)
            }
        };
        Ok(Ticket { all: self.seats.clone(), slot, queue, seats, since: Instant::now() })
    }
}

impl Flow {
    /// Tells its flows apart.
    fn hash(&self, user: &UserInfo, namespace: Option<&str>) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        self.name.hash(&mut hasher);
        match self.schema.distinguisher {
            Distinguisher::None => {}
            Distinguisher::User => user.name.hash(&mut hasher),
            Distinguisher::Namespace => namespace.unwrap_or("").hash(&mut hasher),
        }
        hasher.finish()
    }
}

/// Seats that a list takes: the more objects it goes over, the more.
pub(crate) fn seats_of_list(objects: u64, limit: Option<u64>) -> u32 {
    let objects = limit.filter(|l| *l > 0).map_or(objects, |limit| objects.min(limit));
    u32::try_from(objects.div_ceil(OBJECTS_A_SEAT).clamp(1, MOST_SEATS)).unwrap_or(1)
}

/// The seats of a call that runs; given back when dropped.
pub(crate) struct Ticket {
    all: Arc<Mutex<Seats>>,
    slot: usize,
    queue: Option<usize>,
    seats: u32,
    since: Instant,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.all.lock().leave(self.slot, self.queue, self.seats, self.since.elapsed());
    }
}

/// A call in a queue; it leaves the queue when dropped.
struct Waiting {
    all: Arc<Mutex<Seats>>,
    slot: usize,
    queue: usize,
    id: u64,
    seats: u32,
    turn: Option<tokio::sync::oneshot::Receiver<()>>,
}

impl Waiting {
    async fn wait(&mut self, patience: Duration) -> Result<(), Rejected> {
        let Some(turn) = &mut self.turn else { return Ok(()) };
        if let Ok(Ok(())) = tokio::time::timeout(patience, turn).await {
            self.turn = None;
            return Ok(());
        }
        Err(Rejected::TimeOut)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(mut turn) = self.turn.take() else { return };
        let mut all = self.all.lock();
        // Its turn may have come at this very moment: then its seats are free again.
        if !all.give_up(self.slot, self.queue, self.id) && turn.try_recv().is_ok() {
            all.leave(self.slot, Some(self.queue), self.seats, Duration::ZERO);
        }
    }
}
