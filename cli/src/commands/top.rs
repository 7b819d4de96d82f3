//! `coracle top`: a dashboard of the cluster in the terminal.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use crossterm::event::{Event, EventStream, KeyCode, KeyEventKind, KeyModifiers};
use futures::StreamExt;
use ratatui::widgets::TableState;
use tokio::sync::Notify;

use crate::kubeconfig::Cluster;

mod draw;
mod snapshot;

use snapshot::{Objects, Snapshot};

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    cluster: Cluster,
}

/// Between two frames, at least.
const FRAME: Duration = Duration::from_millis(200);

pub fn run(options: Options) -> Result<()> {
    super::run_client(async move {
        let (client, _) = options.cluster.client().await?;
        let server = options.cluster.server().await?;
        // Without a cluster there is nothing to show: say so before the screen is taken.
        client.apiserver_version().await.with_context(|| format!("reach {server}"))?;
        let mut terminal = ratatui::try_init().context("take the screen; coracle top needs a terminal")?;
        let shown = show(&mut terminal, client, &server, options.cluster.namespace).await;
        ratatui::restore();
        shown
    })
}

async fn show(
    terminal: &mut ratatui::DefaultTerminal,
    client: kube::Client,
    server: &str,
    namespace: Option<String>,
) -> Result<()> {
    let changed = Notify::new();
    let (objects, follow) = Objects::follow(client, namespace, &changed);
    let mut keys = EventStream::new();
    let mut table = TableState::default().with_selected(0);
    let screen = async {
        loop {
            let snapshot = Snapshot::of(&objects, server);
            terminal.draw(|frame| draw::draw(frame, &snapshot, &mut table))?;
            tokio::select! {
                key = keys.next() => match key.transpose()? {
                    Some(event) if leaves(&event) => return Ok(()),
                    Some(event) => scroll(&event, &mut table),
                    None => return Ok(()),
                },
                () = async { changed.notified().await; tokio::time::sleep(FRAME).await; } => {}
                // Ages grow even if nothing happens.
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    };
    tokio::select! {
        ended = screen => ended,
        () = follow => Ok(()),
    }
}

fn leaves(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press && (interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}

fn scroll(event: &Event, table: &mut TableState) {
    let Event::Key(key) = event else { return };
    match key.code {
        KeyCode::Down | KeyCode::Char('j') => table.select_next(),
        KeyCode::Up | KeyCode::Char('k') => table.select_previous(),
        KeyCode::PageDown => table.scroll_down_by(10),
        KeyCode::PageUp => table.scroll_up_by(10),
        KeyCode::Home => table.select_first(),
        KeyCode::End => table.select_last(),
        _ => {}
    }
}
