//! The Container Device Interface (specification 0.6.0): what of the host a runtime puts into a container with a GPU.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Gpu;

/// Device nodes that every GPU needs.
const SHARED: [&str; 4] =
    ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"];
/// How the driver's libraries begin.
const LIBRARIES: [&str; 9] = [
    "libcuda.so",
    "libcudadebugger.so",
    "libnvidia-ml.so",
    "libnvidia-ptxjitcompiler.so",
    "libnvidia-nvvm.so",
    "libnvidia-opencl.so",
    "libnvidia-gpucomp.so",
    "libnvidia-allocator.so",
    "libnvcuvid.so",
];
/// Programs of the driver.
const PROGRAMS: [&str; 3] =
    ["/usr/bin/nvidia-smi", "/usr/bin/nvidia-debugdump", "/usr/bin/nvidia-persistenced"];

/// The CDI name of a GPU.
pub fn name(gpu: &Gpu) -> String {
    format!("nvidia.com/gpu={}", gpu.id)
}

/// The specification: one device a GPU, and what all of them need. Only what exists is named.
pub fn specification(gpus: &[Gpu], nodes: &[String], libraries: &[PathBuf], programs: &[PathBuf]) -> Value {
    let devices: Vec<Value> = gpus
        .iter()
        .filter(|g| !g.fake)
        .map(|gpu| {
            let node = json!({"path": format!("/dev/nvidia{}", gpu.minor)});
            json!({"name": gpu.id, "containerEdits": {"deviceNodes": [node]}})
        })
        .collect();
    let mount = |path: &PathBuf| {
        let path = path.display().to_string();
        json!({"hostPath": path, "containerPath": path, "options": ["ro", "nosuid", "nodev", "bind"]})
    };
    let nodes: Vec<Value> = nodes.iter().map(|path| json!({"path": path})).collect();
    let mounts: Vec<Value> = libraries.iter().chain(programs).map(mount).collect();
    let mut edits = json!({"env": ["NVIDIA_DRIVER_CAPABILITIES=compute,utility"]});
    if let Some(edits) = edits.as_object_mut() {
        // Empty lists are no edits.
        if !nodes.is_empty() {
            edits.insert("deviceNodes".into(), nodes.into());
        }
        if !mounts.is_empty() {
            edits.insert("mounts".into(), mounts.into());
        }
    }
    json!({"cdiVersion": "0.6.0", "kind": "nvidia.com/gpu", "devices": devices, "containerEdits": edits})
}

/// Libraries of the driver, as the dynamic linker's cache has them: name and every link to it.
fn libraries(cache: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = cache
        .lines()
        .filter(|line| LIBRARIES.iter().any(|name| line.trim_start().starts_with(name)))
        .filter(|line| !line.contains("i386") && (line.contains("x86-64") || line.contains("AArch64")))
        .filter_map(|line| line.split_once("=> ").map(|(_, path)| PathBuf::from(path.trim())))
        .collect();
    found.sort();
    found.dedup();
    found.truncate(256);
    found
}

/// Writes the specification of this machine's GPUs for runtimes to read.
///
/// # Errors
/// When the file cannot be written.
pub fn write(directory: &Path, gpus: &[Gpu]) -> io::Result<()> {
    let cache = ["/sbin/ldconfig", "/usr/sbin/ldconfig"].iter().find_map(|program| {
        let out = std::process::Command::new(program).arg("-p").output().ok()?;
        Some(String::from_utf8_lossy(&out.stdout).into_owned())
    });
    let nodes: Vec<String> =
        SHARED.iter().filter(|path| Path::new(path).exists()).map(|path| (*path).to_owned()).collect();
    let programs: Vec<PathBuf> = PROGRAMS.iter().map(PathBuf::from).filter(|p| p.exists()).collect();
    let spec = specification(gpus, &nodes, &libraries(&cache.unwrap_or_default()), &programs);
    std::fs::create_dir_all(directory)?;
    let path = directory.join("coracle-nvidia.json");
    let fresh = directory.join(".coracle-nvidia.json.new");
    std::fs::write(&fresh, serde_json::to_vec_pretty(&spec)?)?;
    std::fs::rename(fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_specification_names_what_is_there() {
        let gpu = Gpu { id: "GPU-1".into(), minor: 2, fake: false, ..super::super::fakes(1).remove(0) };
        let libraries = libraries(concat!(
            "\tlibcuda.so.1 (libc6,x86-64) => /usr/lib/x86_64-linux-gnu/libcuda.so.1\n",
            "\tlibcuda.so.1 (libc6) => /usr/lib/i386-linux-gnu/libcuda.so.1\n",
            "\tlibc.so.6 (libc6,x86-64) => /lib/x86_64-linux-gnu/libc.so.6\n"
        ));
        assert_eq!(libraries, [PathBuf::from("/usr/lib/x86_64-linux-gnu/libcuda.so.1")]);
        let spec = specification(&[gpu], &["/dev/nvidiactl".into()], &libraries, &[]);
        assert_eq!(spec["devices"][0]["name"], "GPU-1");
        assert_eq!(spec["devices"][0]["containerEdits"]["deviceNodes"][0]["path"], "/dev/nvidia2");
        assert_eq!(spec["containerEdits"]["deviceNodes"][0]["path"], "/dev/nvidiactl");
        assert_eq!(spec["containerEdits"]["mounts"][0]["options"][0], "ro");
        assert_eq!(spec["containerEdits"]["mounts"].as_array().map(Vec::len), Some(1));
    }
}
