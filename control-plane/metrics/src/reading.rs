//! One reading of a node: its `/metrics/resource` as numbers. Pure.

use std::collections::HashMap;

/// The longest page that is read, in bytes.
pub const MAX_PAGE: usize = 32 << 20;

/// A counter of CPU time and a size of memory, at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Seconds of CPU time since the start.
    pub cpu_seconds: f64,
    /// Bytes in use.
    pub memory_bytes: f64,
    /// Milliseconds since the Unix epoch, where the page says so.
    pub at: Option<i64>,
}

/// A container: namespace, pod and name.
pub type Container = (String, String, String);

/// What a node has told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    pub node: Sample,
    pub containers: HashMap<Container, Sample>,
}

impl Reading {
    /// Reads the Prometheus text; lines of other families are left out.
    pub fn parse(page: &str) -> Self {
        let mut reading = Self::default();
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, labels, value, at)) = line_of(line) else { continue };
            let cpu = series.ends_with("_cpu_usage_seconds_total");
            let sample = match series {
                "node_cpu_usage_seconds_total" | "node_memory_working_set_bytes" => &mut reading.node,
                "container_cpu_usage_seconds_total" | "container_memory_working_set_bytes" => {
                    let label =
                        |name: &str| labels.iter().find(|(key, _)| key == name).map(|(_, v)| v.clone());
                    let (Some(namespace), Some(pod), Some(container)) =
                        (label("namespace"), label("pod"), label("container"))
                    else {
                        continue;
                    };
                    reading.containers.entry((namespace, pod, container)).or_default()
                }
                _ => continue,
            };
            if cpu {
                sample.cpu_seconds = value;
                sample.at = at.or(sample.at);
            } else {
                sample.memory_bytes = value;
            }
        }
        reading
    }
}

type Line<'a> = (&'a str, Vec<(String, String)>, f64, Option<i64>);

// `name{label="value",...} number [milliseconds]`
fn line_of(line: &str) -> Option<Line<'_>> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at_checked(end)?;
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels_of(rest)?,
        None => (Vec::new(), rest),
    };
    let mut words = rest.split_ascii_whitespace();
    let value = words.next()?.parse().ok().filter(|v: &f64| v.is_finite() && *v >= 0.0)?;
    Some((name, labels, value, words.next().and_then(|at| at.parse().ok())))
}

fn labels_of(mut text: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        text = text.trim_start_matches([',', ' ']);
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (key, rest) = text.split_once("=\"")?;
        let (mut value, mut escaped, mut end) = (String::new(), false, None);
        for (at, char) in rest.char_indices() {
            match char {
                _ if escaped => {
                    value.push(if char == 'n' { '\n' } else { char });
                    escaped = false;
                }
                '\\' => escaped = true,
                '"' => {
                    end = Some(at + 1);
                    break;
                }
                _ => value.push(char),
            }
        }
        labels.push((key.trim().to_owned(), value));
        text = rest.get(end?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page() {
        let page = "# HELP x y\n\
            container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\",pod=\"p\"} 1.5 1700000000000\n\
            container_memory_working_set_bytes{container=\"c\",namespace=\"n\",pod=\"p\"} 1.048576e+06 1700000000000\n\
            node_cpu_usage_seconds_total 100.25 1700000000000\nnode_memory_working_set_bytes 2048\n\
            pod_cpu_usage_seconds_total{namespace=\"n\",pod=\"p\"} 9\nbroken{ 1\ncontainer_cpu_usage_seconds_total{a=\"\\\"}\"} NaN\n";
        let reading = Reading::parse(page);
        assert_eq!((reading.node.cpu_seconds, reading.node.memory_bytes), (100.25, 2048.0));
        let key = ("n".to_owned(), "p".to_owned(), "c".to_owned());
        let wanted = Sample { cpu_seconds: 1.5, memory_bytes: 1_048_576.0, at: Some(1_700_000_000_000) };
        assert_eq!(reading.containers, [(key, wanted)].into());
    }
}
