//! Pure: emptyDir volumes of huge pages, of which size they are. The kubelet's rules: what is stored there counts as the
//! containers' own huge pages, so that they have to ask for some.

use coracle_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, Volume};

use crate::pods::state::{init_containers, main_containers};

const MEDIUM: &str = "HugePages";
const RESOURCE: &str = "hugepages-";

/// The medium of a volume that is of huge pages: `HugePages` or `HugePages-2Mi`.
pub fn medium(volume: &Volume) -> Option<&str> {
    let medium = volume.empty_dir.as_ref()?.medium.as_deref()?;
    let rest = medium.strip_prefix(MEDIUM)?;
    (rest.is_empty() || rest.starts_with('-')).then_some(medium)
}

fn bytes(size: &str) -> Option<u64> {
    u64::try_from(Quantity::parse(size).ok()?.value()).ok().filter(|bytes| *bytes > 0)
}

/// Bytes of a page of a volume of that medium, by what the pod's containers ask for.
///
/// # Errors
/// In the kubelet's words: none of them asks for such pages, or they ask for pages of several sizes and the medium does not
/// say which.
pub fn page_size(medium: &str, pod: &Pod) -> Result<u64, String> {
    let named = match medium.strip_prefix(MEDIUM).and_then(|rest| rest.strip_prefix('-')) {
        Some(size) => Some(bytes(size).ok_or_else(|| format!("medium {medium}: {size:?} is no size"))?),
        None => None,
    };
    let mut found = None;
    for spec in main_containers(pod).iter().chain(init_containers(pod)) {
        let asked = spec.resources.iter().flat_map(|r| r.requests.iter().flatten());
        for size in asked.filter_map(|(name, _)| bytes(name.strip_prefix(RESOURCE)?)) {
            match named {
                Some(named) if named != size => {}
                None if found.is_some_and(|before| before != size) => {
                    return Err(format!(
                        "medium: {medium} can't be used if container requests multiple huge page sizes"
                    ));
                }
                _ => found = Some(size),
            }
        }
    }
    found.ok_or_else(|| {
        "hugePages storage requested, but there is no resource request for huge pages.".to_owned()
    })
}

/// The first volume of huge pages that a container mounts: no program but one of Linux can map it.
pub fn mounted<'a>(pod: &'a Pod, spec: &Container) -> Option<&'a str> {
    let mut mounts = spec.volume_mounts.iter().flatten();
    let found = mounts
        .find_map(|mount| super::volumes(pod).iter().find(|v| v.name == mount.name && medium(v).is_some()));
    found.map(|volume| volume.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_say_of_which_size_pages_are() {
        let pod = |requests: &[serde_json::Value]| -> Pod {
            let containers: Vec<_> =
                requests.iter().map(|r| json!({"name": "a", "resources": {"requests": r}})).collect();
            serde_json::from_value(json!({"metadata": {}, "spec": {"containers": containers}}))
                .expect("a Pod")
        };
        let small = json!({"hugepages-2Mi": "4Mi", "memory": "1Gi"});
        let large = json!({"hugepages-1Gi": "1Gi"});
        let one = pod(&[small.clone(), json!({"cpu": "1"})]);
        let both = pod(&[small, large]);
        assert_eq!(page_size("HugePages", &one), Ok(2 << 20));
        assert_eq!(page_size("HugePages-2Mi", &one), Ok(2 << 20));
        assert_eq!(page_size("HugePages-1Gi", &both), Ok(1 << 30));
        let none = "hugePages storage requested, but there is no resource request for huge pages.";
        assert_eq!(page_size("HugePages-1Gi", &one), Err(none.into()));
        assert_eq!(page_size("HugePages", &pod(&[json!({"memory": "1Gi"})])), Err(none.into()));
        assert!(page_size("HugePages", &both).is_err_and(|w| w.contains("multiple huge page sizes")));
        assert!(page_size("HugePages-x", &one).is_err_and(|w| w.contains("\"x\" is no size")));
    }

    #[test]
    fn who_mounts_huge_pages() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "containers": [{"name": "a", "volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "huge", "mountPath": "/h"}]},
                {"name": "b", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "huge", "emptyDir": {"medium": "HugePages-2Mi"}}]}}))
        .expect("a Pod");
        let of = |at: usize| mounted(&pod, &main_containers(&pod)[at]);
        assert_eq!((of(0), of(1)), (Some("huge"), None));
    }
}
