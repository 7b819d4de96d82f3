//! The text that a scraper reads.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::Ordering;

use coracle_store::Range;

use super::{BUCKETS, Labels, Metrics, Series};
use crate::flow::{Rejected, TOTAL_SEATS};
use crate::state::Shared;

/// Everything that a server tells of itself.
pub(crate) fn all(shared: &Shared) -> String {
    let mut out = String::with_capacity(64 << 10);
    shared.metrics.requests(&mut out);
    shared.metrics.streams(&mut out);
    flows(shared, &mut out);
    objects(shared, &mut out);
    if let Some(audit) = &shared.audit {
        audit.render(&mut out);
    }
    process(&mut out);
    out += &shared.objects.store().metrics();
    out
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// A label's value; what is in it came from paths.
struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            match c {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("\\n")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

fn labels(l: &Labels, dry_run: bool) -> String {
    let mut out = String::from("component=\"apiserver\"");
    if dry_run {
        let _ = write!(out, ",dry_run=\"{}\"", l.dry_run);
    }
    for (name, value) in [
        ("group", l.group.as_str()),
        ("resource", &l.resource),
        ("scope", l.scope),
        ("subresource", &l.subresource),
        ("verb", l.verb),
        ("version", &l.version),
    ] {
        let _ = write!(out, ",{name}=\"{}\"", Escaped(value));
    }
    out
}

impl Metrics {
    fn requests(&self, out: &mut String) {
        let requests = self.requests.read();
        let mut series: Vec<&Series> = requests.values().collect();
        let order = |s: &Series| (s.labels.resource.clone(), s.labels.verb, s.code);
        series.sort_by_cached_key(|s| order(s));
        let name = "apiserver_request_total";
        head(out, name, "counter", "Calls that were answered, by what they were and the code of the answer.");
        for s in &series {
            let n = s.count.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}{{code=\"{}\",{}}} {n}", s.code, labels(&s.labels, true));
        }
        let name = "apiserver_request_duration_seconds";
        head(out, name, "histogram", "Time to the head of the answer.");
        for (labels, sum) in sums(&series) {
            let mut below = 0;
            for (bound, n) in BUCKETS.iter().zip(&sum.buckets) {
                below += n;
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
            }
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", sum.count);
            let _ = writeln!(out, "{name}_sum{{{labels}}} {}", sum.micros as f64 / 1e6);
            let _ = writeln!(out, "{name}_count{{{labels}}} {}", sum.count);
        }
        let name = "apiserver_current_inflight_requests";
        head(out, name, "gauge", "Calls that are worked on, streams not counted.");
        for (kind, n) in ["readOnly", "mutating"].iter().zip(&self.in_flight) {
            let _ = writeln!(out, "{name}{{request_kind=\"{kind}\"}} {}", n.load(Ordering::Relaxed));
        }
    }

    fn streams(&self, out: &mut String) {
        let running = self.running.read();
        let name = "apiserver_longrunning_requests";
        head(out, name, "gauge", "Watches that are open.");
        for (l, r) in running.iter() {
            let _ = writeln!(out, "{name}{{{}}} {}", labels(l, false), r.now.load(Ordering::Relaxed));
        }
        let name = "apiserver_watch_events_total";
        head(out, name, "counter", "Events that were sent to watches.");
        let mut sums: BTreeMap<(&str, &str, &str), u64> = BTreeMap::new();
        for (l, r) in running.iter() {
            *sums.entry((&l.group, &l.resource, &l.version)).or_default() += r.events.load(Ordering::Relaxed);
        }
        for ((group, resource, version), n) in sums {
            let _ = writeln!(
                out,
                "{name}{{group=\"{}\",resource=\"{}\",version=\"{}\"}} {n}",
                Escaped(group),
                Escaped(resource),
                Escaped(version)
            );
        }
    }
}

#[derive(Default)]
struct Sum {
    count: u64,
    micros: u64,
    buckets: [u64; BUCKETS.len()],
}

/// Histograms have no label for the code.
fn sums(series: &[&Series]) -> BTreeMap<String, Sum> {
    let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
    for s in series {
        let sum = sums.entry(labels(&s.labels, true)).or_default();
        sum.count += s.count.load(Ordering::Relaxed);
        sum.micros += s.micros.load(Ordering::Relaxed);
        for (total, n) in sum.buckets.iter_mut().zip(&s.buckets) {
            *total += n.load(Ordering::Relaxed);
        }
    }
    sums
}

fn flows(shared: &Shared, out: &mut String) {
    let stand = shared.flows.stand();
    let mut levels = |name: &str, help: &str, value: &dyn Fn(&crate::flow::Stand) -> u64| {
        let name = format!("apiserver_flowcontrol_{name}");
        head(out, &name, "gauge", help);
        for level in &stand {
            let _ = writeln!(out, "{name}{{priority_level=\"{}\"}} {}", Escaped(&level.name), value(level));
        }
    };
    levels("nominal_limit_seats", "Seats of a level.", &|l| l.nominal.into());
    levels("lower_limit_seats", "Seats that a level never lends.", &|l| l.kept.into());
    levels("upper_limit_seats", "The most seats that a level uses.", &|l| l.most.into());
    levels("current_executing_seats", "Seats that are taken.", &|l| l.in_use.into());
    levels("current_executing_requests", "Calls that have seats.", &|l| l.running);
    levels("current_inqueue_requests", "Calls that wait for seats.", &|l| l.waiting as u64);
    let flows = shared.flows.all();
    let name = "apiserver_flowcontrol_dispatched_requests_total";
    head(out, name, "counter", "Calls that got seats.");
    for flow in flows.iter() {
        let n = flow.dispatched.load(Ordering::Relaxed);
        let _ = writeln!(
            out,
            "{name}{{flow_schema=\"{}\",priority_level=\"{}\"}} {n}",
            Escaped(&flow.name),
            Escaped(&flow.level_name)
        );
    }
    let name = "apiserver_flowcontrol_rejected_requests_total";
    head(out, name, "counter", "Calls that were sent away.");
    for flow in flows.iter() {
        for (why, n) in Rejected::ALL.iter().zip(&flow.rejected) {
            let n = n.load(Ordering::Relaxed);
            if n > 0 {
                let _ = writeln!(
                    out,
                    "{name}{{flow_schema=\"{}\",priority_level=\"{}\",reason=\"{}\"}} {n}",
                    Escaped(&flow.name),
                    Escaped(&flow.level_name),
                    why.reason()
                );
            }
        }
    }
    let name = "apiserver_flowcontrol_seats_total";
    head(out, name, "gauge", "All seats of the server.");
    let _ = writeln!(out, "{name} {TOTAL_SEATS}");
}

fn objects(shared: &Shared, out: &mut String) {
    let store = shared.objects.store();
    let mut counts: BTreeMap<(String, String), u64> = BTreeMap::new();
    for def in shared.objects.resources().iter().filter(|d| d.verbs.iter().any(|v| v == "list")) {
        // What two groups or versions serve is counted where it is stored.
        let group = def.storage_group.clone().unwrap_or_else(|| def.group.clone());
        counts.entry((group, def.plural.clone())).or_insert_with(|| {
            let found = store.range(&Range::prefix(def.prefix()).limit(1));
            found.map_or(0, |found| found.count)
        });
    }
    let name = "apiserver_storage_objects";
    head(out, name, "gauge", "Objects that are stored, by resource.");
    for ((group, plural), n) in &counts {
        let dot = if group.is_empty() { "" } else { "." };
        let _ = writeln!(out, "{name}{{resource=\"{plural}{dot}{group}\"}} {n}");
    }
    let name = "apiserver_resource_objects";
    head(out, name, "gauge", "Objects that are stored, by group and resource.");
    for ((group, plural), n) in &counts {
        let _ = writeln!(out, "{name}{{group=\"{group}\",resource=\"{plural}\"}} {n}");
    }
}

/// Memory, CPU time and files of the process, under the usual names.
fn process(out: &mut String) {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    let (status, stat) = (read("status"), read("stat"));
    let kib = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    // Behind the name of the program, which may hold anything: user and system time are fields 14 and 15.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    let files = std::fs::read_dir("/proc/self/fd").map_or(0, |d| d.take(1 << 20).count());
    for (name, kind, help, value) in [
        (
            "process_resident_memory_bytes",
            "gauge",
            "Resident memory.",
            kib("VmRSS:").unwrap_or(0) as f64 * 1024.0,
        ),
        (
            "process_virtual_memory_bytes",
            "gauge",
            "Virtual memory.",
            kib("VmSize:").unwrap_or(0) as f64 * 1024.0,
        ),
        ("process_cpu_seconds_total", "counter", "CPU time.", (ticks(11) + ticks(12)) as f64 / 100.0),
        ("process_open_fds", "gauge", "Open files.", files as f64),
    ] {
        head(out, name, kind, help);
        let _ = writeln!(out, "{name} {value}");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn series_have_kubernetes_labels() {
        let metrics = Metrics::default();
        let l = Labels {
            verb: "POST",
            group: "apps".into(),
            version: "v1".into(),
            resource: "deploy\"ments".into(),
            scope: "resource",
            ..Labels::default()
        };
        metrics.observe(&l, 201, Duration::from_millis(3));
        metrics.observe(&l, 409, Duration::from_millis(300));
        let _running = metrics.in_flight(true);
        let mut out = String::new();
        metrics.requests(&mut out);
        let rest = "component=\"apiserver\",dry_run=\"\",group=\"apps\",resource=\"deploy\\\"ments\",scope=\"resource\",subresource=\"\",verb=\"POST\",version=\"v1\"";
        for line in [
            format!("apiserver_request_total{{code=\"201\",{rest}}} 1"),
            format!("apiserver_request_duration_seconds_bucket{{{rest},le=\"0.005\"}} 1"),
            format!("apiserver_request_duration_seconds_bucket{{{rest},le=\"0.4\"}} 2"),
            format!("apiserver_request_duration_seconds_count{{{rest}}} 2"),
            "apiserver_current_inflight_requests{request_kind=\"mutating\"} 1".to_owned(),
        ] {
            assert!(out.lines().any(|l| l == line), "{line}\n{out}");
        }
    }
}
