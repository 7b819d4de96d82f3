//! What memory each memory node of a machine has, from `/sys/devices/system/node`.

use std::collections::BTreeMap;
use std::path::Path;

use crate::cpus::set;

/// The resource that is no huge pages.
pub const MEMORY: &str = "memory";
const HUGE: &str = "hugepages-";

/// Bytes by resource: `memory`, `hugepages-2Mi` ... The first counts huge pages in.
pub type Amounts = BTreeMap<String, u64>;

/// Whether a resource is memory or huge pages.
pub fn is_memory(resource: &str) -> bool {
    resource == MEMORY || resource.starts_with(HUGE)
}

/// The memory of each node; where nothing is told, all of it is on node 0.
pub fn read(system: &Path, total: u64) -> BTreeMap<u32, Amounts> {
    let nodes = system.join("node");
    let text = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let mut all = BTreeMap::new();
    for node in set::parse(&text(&nodes.join("online"))).unwrap_or_default() {
        let dir = nodes.join(format!("node{node}"));
        let meminfo = text(&dir.join("meminfo"));
        let line = meminfo.lines().find(|l| l.contains("MemTotal:"));
        let kibibytes =
            line.and_then(|l| l.split_whitespace().nth_back(1)).and_then(|n| n.parse::<u64>().ok());
        let mut amounts = huge_pages(&dir.join("hugepages"));
        amounts.insert(MEMORY.to_owned(), kibibytes.unwrap_or(0).saturating_mul(1024));
        all.insert(node, amounts);
    }
    if all.values().all(|amounts| amounts.get(MEMORY).is_none_or(|bytes| *bytes == 0)) {
        let mut amounts = huge_pages(&system.join("../../kernel/mm/hugepages"));
        amounts.insert(MEMORY.to_owned(), total);
        all = BTreeMap::from([(0, amounts)]);
    }
    all
}

/// Bytes of huge pages by the name of their resource, of a folder with one `hugepages-2048kB` for each size.
fn huge_pages(folder: &Path) -> Amounts {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let one = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let kibibytes: u64 = name.strip_prefix(HUGE)?.strip_suffix("kB")?.parse().ok()?;
        let pages = std::fs::read_to_string(entry.path().join("nr_hugepages")).ok()?;
        let bytes = pages.trim().parse::<u64>().ok()?.saturating_mul(kibibytes.saturating_mul(1024));
        Some((format!("{HUGE}{}", size(kibibytes)), bytes))
    });
    one.collect()
}

/// `2Mi` of 2048.
fn size(kibibytes: u64) -> String {
    let (mut amount, mut unit) = (kibibytes, 0);
    while amount >= 1024 && amount.is_multiple_of(1024) && unit < 3 {
        (amount, unit) = (amount / 1024, unit + 1);
    }
    format!("{amount}{}", ["Ki", "Mi", "Gi", "Ti"].get(unit).unwrap_or(&"Ki"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_tells_its_memory() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            std::fs::write(path, text).expect("a file");
        };
        assert_eq!(read(dir.path(), 7), BTreeMap::from([(0, Amounts::from([(MEMORY.into(), 7)]))]));
        write("node/online", "0-1\n");
        write("node/node0/meminfo", "Node 0 MemTotal:       1024 kB\nNode 0 MemFree:  3 kB\n");
        write("node/node0/hugepages/hugepages-2048kB/nr_hugepages", "3\n");
        write("node/node0/hugepages/hugepages-1048576kB/nr_hugepages", "1\n");
        write("node/node1/meminfo", "Node 1 MemTotal:       2048 kB\n");
        let amounts =
            |list: &[(&str, u64)]| list.iter().map(|(n, b)| ((*n).to_owned(), *b)).collect::<Amounts>();
        let first = amounts(&[("memory", 1 << 20), ("hugepages-2Mi", 6 << 20), ("hugepages-1Gi", 1 << 30)]);
        assert_eq!(read(dir.path(), 7), BTreeMap::from([(0, first), (1, amounts(&[("memory", 2 << 20)]))]));
    }
}
