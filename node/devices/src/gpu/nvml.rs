//! NVIDIA GPUs through NVML, the library of the driver. It is loaded when it is there.

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::Gpu;

/// Most GPUs of a machine.
const MAX: u32 = 256;

/// All GPUs of this machine.
///
/// # Errors
/// Why there are none: no driver, or one that does not answer.
pub fn look() -> Result<Vec<Gpu>, String> {
    // The driver's package has the name with a version; the one without is of the development package.
    let nvml = Nvml::builder().lib_path("libnvidia-ml.so.1".as_ref()).init();
    let nvml = nvml.map_err(|error| match error {
        NvmlError::LibloadingError(_) => {
            "the NVIDIA driver's library libnvidia-ml.so.1 is not there".to_owned()
        }
        error => format!("NVML: {error}"),
    })?;
    let count = nvml.device_count().map_err(|e| format!("count GPUs: {e}"))?;
    let mut gpus = Vec::new();
    for index in 0..count.min(MAX) {
        match nvml.device_by_index(index).and_then(|device| gpu(&device)) {
            Ok(gpu) => gpus.push(gpu),
            Err(error) => tracing::warn!(index, %error, "a GPU does not answer and is left out"),
        }
    }
    Ok(gpus)
}

fn gpu(device: &Device<'_>) -> Result<Gpu, NvmlError> {
    let id = device.uuid()?;
    let minor = device.minor_number()?;
    // A GPU that fell off the bus still has its name; what it can no longer tell is its memory.
    let healthy = device.memory_info().is_ok();
    let bus = device.pci_info().map(|p| p.bus_id.to_lowercase()).unwrap_or_default();
    Ok(Gpu { id, minor, name: device.name().unwrap_or_default(), healthy, numa: numa(&bus), fake: false })
}

/// The NUMA node of a PCI device; NVML writes its domain with eight digits, sysfs with four.
fn numa(bus: &str) -> Option<i64> {
    let short = bus.strip_prefix("0000").unwrap_or(bus);
    let text = std::fs::read_to_string(format!("/sys/bus/pci/devices/{short}/numa_node")).ok()?;
    text.trim().parse().ok().filter(|node| *node >= 0)
}
