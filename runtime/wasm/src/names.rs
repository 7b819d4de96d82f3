//! The cluster's names: what each question is answered, by the Service table. Pure: who asks and over what is elsewhere.

use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
};

use crate::{
    protocol::{DnsConfig, Name, ServiceTable, Srv},
    routes::Cidr,
};

/// Names that lead to names are followed so far.
const MAX_ALIASES: usize = 8;
/// Suffixes that are tried at most, as the kubelet passes on.
const MAX_SEARCHES: usize = 32;
/// The most that `ndots` may ask for, as in glibc's resolv.conf.
const MAX_NDOTS: usize = 15;

/// What is asked of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    Address,
    Service,
    Pointer,
    Alias,
    /// Anything else: of the cluster's names there is none such.
    Other,
}

/// What a name has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Address(Ipv4Addr),
    Alias(String),
    Service(Srv),
    Pointer(String),
}

/// A record of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub name: String,
    pub value: Value,
}

/// The answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Possibly none: the name exists, and has nothing of the kind.
    Records(Vec<Record>),
    /// The records so far lead to a name of another domain, which others have to be asked for.
    Onward(Vec<Record>, String),
    /// There is no such name.
    Unknown,
    /// A name of another domain.
    Elsewhere,
}

/// What a guest's lookup finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Addresses(Vec<Ipv4Addr>),
    /// Names of other domains, the first of which that has addresses is meant.
    Elsewhere(Vec<String>),
    Nothing,
}

/// How a resolver completes names: `search` and `ndots` of a resolv.conf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Search {
    suffixes: Vec<String>,
    /// A name with so many dots is first taken as it is.
    ndots: usize,
}

impl Search {
    /// Without `ndots` among the options one dot is enough, as in any resolv.conf; of several the last counts.
    pub fn of(dns: &DnsConfig) -> Search {
        let suffix = |suffix: &String| suffix.trim_matches('.').to_ascii_lowercase();
        let ndots = dns.options.iter().rev().find_map(|option| option.strip_prefix("ndots:")?.parse().ok());
        Search {
            suffixes: dns.searches.iter().take(MAX_SEARCHES).map(suffix).collect(),
            ndots: ndots.unwrap_or(1).min(MAX_NDOTS),
        }
    }

    /// The names to try, in their order; one that ends with a dot is whole.
    fn candidates(&self, name: &str) -> Vec<String> {
        let name = name.to_ascii_lowercase();
        if let Some(whole) = name.strip_suffix('.') {
            return vec![whole.to_owned()];
        }
        let mut all: Vec<String> = self.suffixes.iter().map(|suffix| format!("{name}.{suffix}")).collect();
        let as_it_is = if name.matches('.').count() < self.ndots { all.len() } else { 0 };
        all.insert(as_it_is, name);
        all
    }
}

/// The names of the table, indexed.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Such as `cluster.local`.
    pub domain: String,
    names: HashMap<String, Name>,
    /// Names that exist only because names below them do.
    parents: HashSet<String>,
    reverse: HashMap<Ipv4Addr, Vec<String>>,
}

impl Names {
    /// The index of a table.
    pub fn new(table: &ServiceTable) -> Names {
        let domain = if table.domain.is_empty() { "cluster.local" } else { &table.domain };
        let mut names = Names { domain: domain.to_ascii_lowercase(), ..Names::default() };
        names.parents.insert(names.domain.clone());
        for entry in &table.names {
            let mut rest = entry.name.as_str();
            while let Some((_, parent)) = rest.split_once('.') {
                if parent == names.domain || !names.parents.insert(parent.to_owned()) {
                    break;
                }
                rest = parent;
            }
            if entry.reverse {
                for address in &entry.addresses {
                    names.reverse.entry(*address).or_default().push(entry.name.clone());
                }
            }
            names.names.insert(entry.name.clone(), entry.clone());
        }
        names
    }

    /// Answers a question about a lower-case name without a trailing dot; `ours` are the ranges whose addresses only this
    /// cluster can name, `pods` the one that pods lie in.
    pub fn answer(&self, name: &str, question: Question, ours: &[Cidr], pods: &Cidr) -> Answer {
        if let Some(address) = reversed(name) {
            return self.pointer(name, address, question, ours);
        }
        if !self.within(name) {
            return Answer::Elsewhere;
        }
        if let Some(address) = self.pod(name, pods) {
            let value = Value::Address(address);
            let records = match question {
                Question::Address => vec![Record { name: name.to_owned(), value }],
                _ => Vec::new(),
            };
            return Answer::Records(records);
        }
        let mut records = Vec::new();
        let mut current = name.to_owned();
        for _ in 0..MAX_ALIASES {
            let Some(entry) = self.names.get(&current) else {
                return match records.is_empty() {
                    false if !self.within(&current) => Answer::Onward(records, current),
                    false => Answer::Records(records),
                    true if self.parents.contains(&current) => Answer::Records(records),
                    true => Answer::Unknown,
                };
            };
            let Some(alias) = &entry.cname else {
                records.extend(values(entry, question));
                return Answer::Records(records);
            };
            records.push(Record { name: current, value: Value::Alias(alias.clone()) });
            if question == Question::Alias {
                break;
            }
            current = alias.clone();
        }
        Answer::Records(records)
    }

    fn pointer(&self, name: &str, address: Ipv4Addr, question: Question, ours: &[Cidr]) -> Answer {
        match self.reverse.get(&address) {
            Some(names) if question == Question::Pointer => {
                let record =
                    |target: &String| Record { name: name.to_owned(), value: Value::Pointer(target.clone()) };
                Answer::Records(names.iter().map(record).collect())
            }
            Some(_) => Answer::Records(Vec::new()),
            None if ours.iter().any(|range| range.contains(address)) => Answer::Unknown,
            None => Answer::Elsewhere,
        }
    }

    fn within(&self, name: &str) -> bool {
        let rest = name.strip_suffix(&self.domain);
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }

    /// `10-244-1-5.default.pod.cluster.local`.
    fn pod(&self, name: &str, pods: &Cidr) -> Option<Ipv4Addr> {
        let rest = name.strip_suffix(&self.domain)?.strip_suffix(".pod.")?;
        let (dashed, namespace) = rest.split_once('.')?;
        if namespace.is_empty() || namespace.contains('.') {
            return None;
        }
        dashed.replace('-', ".").parse().ok().filter(|ip| pods.contains(*ip))
    }

    /// What a guest's resolver would find. Names of the cluster are found before those of other domains.
    pub fn lookup(&self, name: &str, search: &Search, pods: &Cidr) -> Found {
        let mut others = Vec::new();
        for candidate in search.candidates(name) {
            match self.answer(&candidate, Question::Address, &[], pods) {
                Answer::Records(records) => {
                    let address = |record: Record| match record.value {
                        Value::Address(ip) => Some(ip),
                        _ => None,
                    };
                    let found: Vec<_> = records.into_iter().filter_map(address).collect();
                    if !found.is_empty() {
                        return Found::Addresses(found);
                    }
                }
                Answer::Onward(_, target) => return Found::Elsewhere(vec![target]),
                Answer::Elsewhere => others.push(candidate),
                Answer::Unknown => {}
            }
        }
        if others.is_empty() { Found::Nothing } else { Found::Elsewhere(others) }
    }
}

fn values(entry: &Name, question: Question) -> Vec<Record> {
    let record = |value| Record { name: entry.name.clone(), value };
    match question {
        Question::Address => entry.addresses.iter().map(|ip| record(Value::Address(*ip))).collect(),
        Question::Service => entry.srv.iter().map(|srv| record(Value::Service(srv.clone()))).collect(),
        Question::Pointer | Question::Alias | Question::Other => Vec::new(),
    }
}

/// The address of `4.3.2.1.in-addr.arpa`.
fn reversed(name: &str) -> Option<Ipv4Addr> {
    let octets = name.strip_suffix(".in-addr.arpa")?;
    let address: Ipv4Addr = octets.parse().ok()?;
    let [a, b, c, d] = address.octets();
    Some(Ipv4Addr::new(d, c, b, a))
}

#[cfg(test)]
mod tests;
