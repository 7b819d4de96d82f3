//! A frame: nodes above, pods below.

use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Row, Table, TableState};

use super::snapshot::{NodeRow, PodRow, Snapshot, Usage};

/// Rows of nodes that are shown at most.
const NODES: usize = 8;
/// Characters of a bar.
const BAR: usize = 12;

pub fn draw(frame: &mut Frame, snapshot: &Snapshot, table: &mut TableState) {
    let nodes = u16::try_from(snapshot.nodes.len().clamp(1, NODES)).unwrap_or(1) + 3;
    let [title, above, below, help] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(nodes),
        Constraint::Min(4),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let ready = snapshot.pods.iter().filter(|pod| pod.ready == pod.containers).count();
    let words = format!(
        "  {}   {} nodes   {ready}/{} pods ready",
        snapshot.server,
        snapshot.nodes.len(),
        snapshot.pods.len()
    );
    let name = Span::styled("Coracle", Style::new().fg(Color::Cyan).add_modifier(Modifier::BOLD));
    frame.render_widget(Line::from(vec![name, Span::raw(words)]), title);
    frame.render_widget(of_nodes(&snapshot.nodes), above);
    frame.render_stateful_widget(of_pods(&snapshot.pods), below, table);
    frame.render_widget(Line::styled("up, down: scroll   q: quit", Style::new().fg(Color::DarkGray)), help);
}

fn head<const N: usize>(names: [&'static str; N]) -> Row<'static> {
    Row::new(names).style(Style::new().fg(Color::DarkGray))
}

fn of_nodes(nodes: &[NodeRow]) -> Table<'static> {
    let rows = nodes.iter().take(NODES).map(|node| {
        let usage = |share: fn(&Usage) -> f64, words: fn(f64) -> String| match node.usage {
            Some(usage) => format!("{} {}", bar(share(&usage) / share(&node.capacity)), words(share(&usage))),
            None => String::from("-"),
        };
        let (status, color) = if node.ready { ("Ready", Color::Green) } else { ("NotReady", Color::Red) };
        Row::new([
            Cell::from(node.name.clone()),
            Cell::from(status).style(Style::new().fg(color)),
            Cell::from(usage(|usage| usage.cores, cores)),
            Cell::from(usage(|usage| usage.bytes, bytes)),
            Cell::from(node.pods.to_string()),
        ])
    });
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(9),
        Constraint::Length(24),
        Constraint::Length(24),
        Constraint::Length(6),
    ];
    Table::new(rows, widths)
        .header(head(["NODE", "STATUS", "CPU", "MEMORY", "PODS"]))
        .block(Block::bordered().title(" Nodes "))
}

fn of_pods(pods: &[PodRow]) -> Table<'static> {
    let rows = pods.iter().map(|pod| {
        let color = match pod.status.as_str() {
            "Running" if pod.ready == pod.containers => Color::Green,
            "Succeeded" => Color::DarkGray,
            status if status.contains("Err") || status.contains("Back") || status == "Failed" => Color::Red,
            _ => Color::Yellow,
        };
        let usage = |words: fn(&Usage) -> String| pod.usage.as_ref().map_or_else(|| "-".to_owned(), words);
        Row::new([
            Cell::from(pod.namespace.clone()),
            Cell::from(pod.name.clone()),
            Cell::from(format!("{}/{}", pod.ready, pod.containers)),
            Cell::from(pod.status.clone()).style(Style::new().fg(color)),
            Cell::from(pod.restarts.to_string()),
            Cell::from(usage(|usage| cores(usage.cores))),
            Cell::from(usage(|usage| bytes(usage.bytes))),
            Cell::from(pod.node.clone()),
            Cell::from(pod.age.map(age).unwrap_or_default()),
        ])
    });
    let widths = [
        Constraint::Length(18),
        Constraint::Fill(1),
        Constraint::Length(6),
        Constraint::Length(18),
        Constraint::Length(9),
        Constraint::Length(8),
        Constraint::Length(10),
        Constraint::Length(14),
        Constraint::Length(6),
    ];
    let names = ["NAMESPACE", "POD", "READY", "STATUS", "RESTARTS", "CPU", "MEMORY", "NODE", "AGE"];
    Table::new(rows, widths)
        .header(head(names))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .block(Block::bordered().title(" Pods "))
}

/// A share from 0 to 1 as a bar; more than all is all.
fn bar(share: f64) -> String {
    let full = if share.is_finite() { (share.clamp(0.0, 1.0) * BAR as f64).round() as usize } else { 0 };
    format!("{}{}", "█".repeat(full), "░".repeat(BAR - full))
}

fn cores(cores: f64) -> String {
    format!("{:.0}m", cores * 1000.0)
}

fn bytes(bytes: f64) -> String {
    const MIB: f64 = 1_048_576.0;
    if bytes >= 1024.0 * MIB {
        format!("{:.1} GiB", bytes / 1024.0 / MIB)
    } else {
        format!("{:.1} MiB", bytes / MIB)
    }
}

fn age(age: Duration) -> String {
    match age.as_secs() {
        seconds @ ..120 => format!("{seconds}s"),
        seconds @ 120..7200 => format!("{}m", seconds / 60),
        seconds @ 7200..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    #[test]
    fn a_frame_shows_nodes_and_pods() {
        let snapshot = Snapshot {
            server: "https://127.0.0.1:6443".into(),
            nodes: vec![NodeRow {
                name: "node-1".into(),
                ready: true,
                pods: 1,
                usage: Some(Usage { cores: 1.0, bytes: 1_048_576.0 }),
                capacity: Usage { cores: 2.0, bytes: 4_194_304.0 },
            }],
            pods: vec![PodRow {
                namespace: "default".into(),
                name: "hello-1".into(),
                ready: 0,
                containers: 1,
                status: "CrashLoopBackOff".into(),
                restarts: 3,
                usage: None,
                node: "node-1".into(),
                age: Some(Duration::from_secs(130)),
            }],
        };
        let mut terminal = Terminal::new(TestBackend::new(130, 16)).expect("a terminal");
        terminal.draw(|frame| draw(frame, &snapshot, &mut TableState::default())).expect("a frame");
        let shown = format!("{}", terminal.backend());
        for word in [
            "1 nodes",
            "0/1 pods ready",
            "██████░░░░░░ 1000m",
            "███░░░░░░░░░ 1.0 MiB",
            "CrashLoopBackOff",
            "2m",
        ] {
            assert!(shown.contains(word), "no {word} in\n{shown}");
        }
    }

    #[test]
    fn bars_are_bounded() {
        assert_eq!(bar(7.0), "█".repeat(BAR));
        assert_eq!(bar(f64::NAN), "░".repeat(BAR));
    }
}
