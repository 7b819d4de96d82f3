//! What containers and pods use.

pub mod layers;

use std::collections::HashMap;

use coracle_cri_api::v1;
use coracle_wasm::protocol::{ContainerStats, Measured, State};
use parking_lot::Mutex;
use tonic::Status;

use crate::record::{ContainerRecord, SandboxRecord};
use crate::service::{Service, refused};
use crate::state::Filter;

/// The measurement before, of each container: a rate needs two.
#[derive(Default)]
pub struct Samples(Mutex<HashMap<String, Sample>>);

#[derive(Clone, Copy)]
struct Sample {
    at_ns: i64,
    cpu_nanos: u64,
    /// The last rate, for measurements that follow each other too closely.
    nano_cores: Option<u64>,
}

/// Measurements closer than this give no new rate, in nanoseconds.
const WINDOW: i64 = 1_000_000_000;

impl Samples {
    /// Forgets a container.
    pub fn forget(&self, id: &str) {
        self.0.lock().remove(id);
    }

    /// CPU use in billionths of a core since the measurement before.
    fn rate(&self, stats: &ContainerStats) -> Option<u64> {
        let mut samples = self.0.lock();
        let now = Sample { at_ns: stats.timestamp_ns, cpu_nanos: stats.cpu_nanos, nano_cores: None };
        let Some(before) = samples.get(&stats.id).copied() else {
            samples.insert(stats.id.clone(), now);
            return None;
        };
        let elapsed = now.at_ns - before.at_ns;
        if elapsed < WINDOW {
            return before.nano_cores;
        }
        let used = u128::from(now.cpu_nanos.saturating_sub(before.cpu_nanos));
        let nano_cores = u64::try_from(used * 1_000_000_000 / elapsed.unsigned_abs() as u128).ok();
        samples.insert(stats.id.clone(), Sample { nano_cores, ..now });
        nano_cores
    }
}

fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

impl Service {
    /// Use of the running containers of these ids, or of all.
    pub(crate) async fn measure(&self, ids: &[String]) -> Result<HashMap<String, ContainerStats>, Status> {
        let shared = async {
            let host = self.host.client().await?;
            host.stats(ids).await.map_err(refused)
        };
        let (stats, isolated) = tokio::join!(shared, self.measure_isolated(ids));
        Ok(stats?
            .into_iter()
            .chain(isolated)
            .chain(self.measure_linux(ids))
            .map(|s| (s.id.clone(), s))
            .collect())
    }

    /// What the guests of running containers measure of themselves.
    pub(crate) async fn series(&self) -> Result<Measured, Status> {
        let shared = async {
            let host = self.host.client().await?;
            host.series().await.map_err(refused)
        };
        let (shared, isolated) = tokio::join!(shared, self.series_isolated());
        let mut measured = shared?;
        for other in isolated {
            measured.series.extend(other.series);
            measured.left_out.extend(other.left_out);
        }
        // Each host's fit into one message; so must all of them.
        measured.fit(Measured::MAX_BYTES);
        Ok(measured)
    }

    fn measure_linux(&self, ids: &[String]) -> Vec<ContainerStats> {
        let Ok(engine) = self.linux.engine() else { return Vec::new() };
        let (_, containers) = self.state.snapshot();
        let running = containers.into_iter().filter(|c| {
            c.linux && matches!(c.state, State::Running { .. }) && (ids.is_empty() || ids.contains(&c.id))
        });
        let measured = running.filter_map(|c| {
            let usage = engine.usage(&c.id)?;
            Some(ContainerStats {
                id: c.id,
                sandbox_id: c.sandbox_id,
                timestamp_ns: crate::record::now_ns(),
                cpu_nanos: usage.cpu_nanos,
                memory_bytes: usage.working_set_bytes,
                instances: u32::try_from(usage.processes).unwrap_or(u32::MAX),
                requests: 0,
                cold_starts: 0,
                latency: Default::default(),
            })
        });
        measured.collect()
    }

    /// Has what running Linux containers have written counted.
    async fn count_layers(&self) {
        let Ok(engine) = self.linux.engine() else { return };
        let (_, containers) = self.state.snapshot();
        let running = containers.into_iter().filter(|c| c.linux && matches!(c.state, State::Running { .. }));
        self.layers.refresh(running.map(|c| (c.id.clone(), engine.written_to(&c.id))).collect()).await;
    }

    fn show(&self, record: &ContainerRecord, stats: &ContainerStats) -> v1::ContainerStats {
        let limit = record.config.linux.as_ref().and_then(|l| l.resources.as_ref());
        let limit = limit.and_then(|r| u64::try_from(r.memory_limit_in_bytes).ok()).filter(|l| *l > 0);
        v1::ContainerStats {
            attributes: Some(record.attributes()),
            cpu: Some(v1::CpuUsage {
                timestamp: stats.timestamp_ns,
                usage_core_nano_seconds: value(stats.cpu_nanos),
                usage_nano_cores: self.samples.rate(stats).and_then(value),
            }),
            memory: Some(v1::MemoryUsage {
                timestamp: stats.timestamp_ns,
                working_set_bytes: value(stats.memory_bytes),
                usage_bytes: value(stats.memory_bytes),
                rss_bytes: value(stats.memory_bytes),
                available_bytes: limit.and_then(|l| value(l.saturating_sub(stats.memory_bytes))),
                ..Default::default()
            }),
            writable_layer: self.layers.of(&record.id),
            ..Default::default()
        }
    }

    /// Use of one running container.
    pub async fn container_stats(&self, id: &str) -> Result<v1::ContainerStats, Status> {
        let record = self.container(id)?;
        self.count_layers().await;
        let stats = self.measure(std::slice::from_ref(&record.id)).await?;
        match stats.get(&record.id) {
            Some(stats) => Ok(self.show(&record, stats)),
            None => Err(Status::failed_precondition(format!("container {} does not run", record.id))),
        }
    }

    /// Use of the running containers that a filter leaves.
    pub async fn list_container_stats(
        &self,
        filter: Option<v1::ContainerStatsFilter>,
    ) -> Result<Vec<v1::ContainerStats>, Status> {
        let filter = filter.unwrap_or_default();
        self.count_layers().await;
        let stats = self.measure(&[]).await?;
        let by = Filter {
            id: &filter.id,
            sandbox_id: &filter.pod_sandbox_id,
            labels: Some(&filter.label_selector),
        };
        let records = self.state.containers(&by);
        Ok(records.iter().filter_map(|r| stats.get(&r.id).map(|s| self.show(r, s))).collect())
    }

    /// Use of one pod.
    pub async fn pod_sandbox_stats(&self, id: &str) -> Result<v1::PodSandboxStats, Status> {
        let record = self.sandbox(id)?;
        self.count_layers().await;
        Ok(self.pod_stats(&record, &self.measure(&[]).await?))
    }

    /// Use of the ready pods that a filter leaves.
    pub async fn list_pod_sandbox_stats(
        &self,
        filter: Option<v1::PodSandboxStatsFilter>,
    ) -> Result<Vec<v1::PodSandboxStats>, Status> {
        let filter = filter.unwrap_or_default();
        self.count_layers().await;
        let stats = self.measure(&[]).await?;
        let by = Filter { id: &filter.id, labels: Some(&filter.label_selector), ..Filter::default() };
        let records = self.state.sandboxes(&by);
        Ok(records.iter().filter(|r| r.ready).map(|r| self.pod_stats(r, &stats)).collect())
    }

    fn pod_stats(
        &self,
        record: &SandboxRecord,
        stats: &HashMap<String, ContainerStats>,
    ) -> v1::PodSandboxStats {
        let by = Filter { sandbox_id: &record.id, ..Filter::default() };
        let containers = self.state.containers(&by);
        let measured = containers.iter().filter_map(|c| Some((c, stats.get(&c.id)?)));
        let processes = measured.clone().filter(|(c, _)| c.linux).map(|(_, s)| u64::from(s.instances)).sum();
        let mine: Vec<_> = measured.map(|(c, s)| (self.show(c, s), s)).collect();
        let timestamp = mine.iter().map(|(_, s)| s.timestamp_ns).max().unwrap_or_else(crate::record::now_ns);
        let memory: u64 = mine.iter().map(|(_, s)| s.memory_bytes).sum();
        let rates = mine.iter().filter_map(|(c, _)| c.cpu.as_ref()?.usage_nano_cores.map(|v| v.value));
        v1::PodSandboxStats {
            attributes: Some(record.attributes()),
            linux: Some(v1::LinuxPodSandboxStats {
                cpu: Some(v1::CpuUsage {
                    timestamp,
                    usage_core_nano_seconds: value(mine.iter().map(|(_, s)| s.cpu_nanos).sum()),
                    usage_nano_cores: value(rates.sum()),
                }),
                memory: Some(v1::MemoryUsage {
                    timestamp,
                    working_set_bytes: value(memory),
                    usage_bytes: value(memory),
                    rss_bytes: value(memory),
                    ..Default::default()
                }),
                network: None,
                // Guests of wasm are no processes: theirs is the host, which is nobody's.
                process: record
                    .linux
                    .then(|| v1::ProcessUsage { timestamp, process_count: value(processes) }),
                containers: mine.into_iter().map(|(c, _)| c).collect(),
            }),
        }
    }
}
