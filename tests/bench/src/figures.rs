//! The rows that a run yields, as a table and as JSON.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// One figure, with the peer's where a peer ran beside us.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub struct Row {
    pub suite: &'static str,
    pub name: String,
    pub unit: &'static str,
    /// None: nothing could be measured.
    pub ours: Option<f64>,
    /// The peer's figure in the same run.
    pub peer: Option<f64>,
    pub peer_version: Option<String>,
    /// `ours / peer`.
    pub ratio: Option<f64>,
    /// The ratio to reach; none where no peer ran.
    pub goal: Option<f64>,
}

/// The peer's side of a row.
#[derive(Debug)]
pub struct Beside {
    /// The peer's figure in the same run.
    pub peer: f64,
    /// Its name and version.
    pub version: String,
    /// The ratio of ours to it that is to be reached.
    pub goal: Option<f64>,
}

/// All rows of a run, in the order measured.
#[derive(Debug, Default)]
pub struct Figures(Vec<Row>);

impl Figures {
    /// Adds a figure without a peer.
    pub fn add(
        &mut self,
        suite: &'static str,
        name: impl Into<String>,
        unit: &'static str,
        ours: Option<f64>,
    ) {
        let ours = ours.filter(|value| value.is_finite());
        let name = name.into();
        let (peer, peer_version, ratio, goal) = (None, None, None, None);
        self.0.push(Row { suite, name, unit, ours, peer, peer_version, ratio, goal });
    }

    /// Adds a figure with the peer's; there is a ratio where the peer's is not 0.
    pub fn compare(
        &mut self,
        suite: &'static str,
        name: impl Into<String>,
        unit: &'static str,
        ours: f64,
        beside: Beside,
    ) {
        let ratio = Some(ours / beside.peer).filter(|ratio| ratio.is_finite());
        self.0.push(Row {
            suite,
            name: name.into(),
            unit,
            ours: Some(ours),
            peer: Some(beside.peer),
            peer_version: Some(beside.version),
            ratio,
            goal: beside.goal,
        });
    }

    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["SUITE", "NAME", "UNIT", "OURS", "PEER", "PEER VERSION", "RATIO", "GOAL"]);
        for row in &self.0 {
            let version = row.peer_version.as_deref().unwrap_or("-");
            let (ours, peer) = (shown(row.ours), shown(row.peer));
            let (ratio, goal) = (shown(row.ratio), shown(row.goal));
            table.add_row([row.suite, &row.name, row.unit, &ours, &peer, version, &ratio, &goal]);
        }
        for number in [3, 4, 6, 7] {
            if let Some(column) = table.column_mut(number) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }

    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(&self.0).map(|text| text + "\n")
    }
}

/// A number with as many digits as tell something.
fn shown(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value.fract() == 0.0 || value.abs() >= 1000.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_without_a_peer_have_nulls() {
        let mut figures = Figures::default();
        figures.add("api", "get/1/rate", "1/s", Some(12.5));
        figures.add("api", "get/1/p50", "ms", None);
        figures.add("api", "get/1/server-cpu", "ms/request", Some(f64::NAN));
        let rows: serde_json::Value = serde_json::from_str(&figures.json().unwrap()).unwrap();
        assert_eq!(
            rows[0],
            serde_json::json!({"suite": "api", "name": "get/1/rate", "unit": "1/s", "ours": 12.5, "peer": null,
                "peer_version": null, "ratio": null, "goal": null})
        );
        assert!(rows[1]["ours"].is_null() && rows[2]["ours"].is_null());
        assert_eq!(figures.table().lines().count(), 4);
    }

    #[test]
    fn a_ratio_needs_a_peer_that_did_something() {
        let mut figures = Figures::default();
        for peer in [4.0, 0.0] {
            figures.compare(
                "http",
                "rate",
                "1/s",
                6.0,
                Beside { peer, version: "x 1".into(), goal: Some(2.0) },
            );
        }
        assert_eq!((figures.0[0].ratio, figures.0[1].ratio), (Some(1.5), None));
    }

    #[test]
    fn numbers_are_short() {
        for (value, expected) in
            [(0.0, "0"), (0.06123, "0.061"), (12.345, "12.3"), (123_456.7, "123457"), (3.0, "3")]
        {
            assert_eq!(shown(Some(value)), expected);
        }
    }
}
