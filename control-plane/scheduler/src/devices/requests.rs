//! The ways to meet what a claim requests.

use k8s_openapi::api::resource::v1::{
    DeviceAllocationConfiguration, DeviceSelector, DeviceTaint, DeviceToleration,
};

use super::*;

/// A request as it is asked, whether it is exact or one of several that would do.
struct Asked<'a> {
    name: String,
    class: &'a str,
    selectors: &'a [DeviceSelector],
    mode: Option<&'a str>,
    count: Option<i64>,
    admin: bool,
    tolerations: &'a [DeviceToleration],
    capacity: bool,
}

/// The ways to meet each request of a claim.
pub(super) fn requests(
    claim: &ResourceClaim,
    offers: &[Offer],
    world: &World,
) -> Result<Vec<Vec<Way>>, String> {
    let devices = claim.spec.devices.as_ref();
    let mut all = Vec::new();
    for request in devices.and_then(|d| d.requests.as_deref()).unwrap_or_default() {
        let mut asked = Vec::new();
        if let Some(one) = &request.exactly {
            asked.push(Asked {
                name: request.name.clone(),
                class: &one.device_class_name,
                selectors: one.selectors.as_deref().unwrap_or_default(),
                mode: one.allocation_mode.as_deref(),
                count: one.count,
                admin: one.admin_access == Some(true),
                tolerations: one.tolerations.as_deref().unwrap_or_default(),
                capacity: one.capacity.is_some(),
            });
        }
        for one in request.first_available.iter().flatten() {
            asked.push(Asked {
                name: format!("{}/{}", request.name, one.name),
                class: &one.device_class_name,
                selectors: one.selectors.as_deref().unwrap_or_default(),
                mode: one.allocation_mode.as_deref(),
                count: one.count,
                admin: false,
                tolerations: one.tolerations.as_deref().unwrap_or_default(),
                capacity: one.capacity.is_some(),
            });
        }
        let ways: Result<Vec<Way>, String> = asked.iter().map(|one| way(claim, one, offers, world)).collect();
        all.push(ways?);
    }
    Ok(all)
}

fn way(claim: &ResourceClaim, asked: &Asked<'_>, offers: &[Offer], world: &World) -> Result<Way, String> {
    let name = claim.name();
    if asked.capacity {
        return Err(format!(
            "claim {name}, request {}: shares of a device's capacity are not given out",
            asked.name
        ));
    }
    let class = world.device_classes.get(asked.class);
    let class = class.ok_or_else(|| format!("could not retrieve device class {}", asked.class))?;
    let of_class = class.spec.selectors.as_deref().unwrap_or_default();
    let selectors: Vec<&str> = of_class
        .iter()
        .chain(asked.selectors)
        .filter_map(|one| one.cel.as_ref().map(|cel| cel.expression.as_str()))
        .collect();
    let selectors = selectors::Selectors::read(&selectors)
        .map_err(|why| format!("claim {name}, request {}: {why}", asked.name))?;
    let mut found = Vec::new();
    for (at, offer) in offers.iter().enumerate() {
        let tolerated = |taint: &DeviceTaint| {
            taint.effect == "None" || asked.tolerations.iter().any(|t| tolerates(t, taint))
        };
        if !offer.device.taints.iter().flatten().all(tolerated) {
            continue;
        }
        let fits = selectors.match_device(&offer.id.0, &offer.device);
        if fits.map_err(|why| format!("claim {name}, request {}: {why}", asked.name))? {
            found.push(at);
        }
    }
    let count = match asked.mode {
        Some("All") => None,
        _ => Some(usize::try_from(asked.count.unwrap_or(1)).unwrap_or(1)),
    };
    Ok(Way {
        name: asked.name.clone(),
        count,
        admin: asked.admin,
        offers: found,
        tolerations: asked.tolerations.to_vec(),
        config: config(claim, &class.spec.config, &asked.name),
    })
}

fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let effect = toleration.effect.as_deref().is_none_or(|e| e.is_empty() || e == taint.effect);
    let exists = toleration.operator.as_deref() == Some("Exists");
    match toleration.key.as_deref().filter(|key| !key.is_empty()) {
        None => effect && exists,
        Some(key) => {
            let value = toleration.value.as_deref().unwrap_or_default();
            effect && key == taint.key && (exists || value == taint.value.as_deref().unwrap_or_default())
        }
    }
}

/// What drivers are told of a request: what the class says, then what the claim says.
fn config(
    claim: &ResourceClaim,
    class: &Option<Vec<k8s_openapi::api::resource::v1::DeviceClassConfiguration>>,
    request: &str,
) -> Vec<DeviceAllocationConfiguration> {
    let of_class = class.iter().flatten().map(|one| DeviceAllocationConfiguration {
        opaque: one.opaque.clone(),
        requests: Some(vec![request.to_owned()]),
        source: "FromClass".to_owned(),
    });
    let main = request.split('/').next().unwrap_or(request);
    let about = |requests: &Option<Vec<String>>| {
        requests.as_ref().is_none_or(|all| all.is_empty() || all.iter().any(|r| r == request || r == main))
    };
    let devices = claim.spec.devices.as_ref();
    let of_claim = devices.and_then(|d| d.config.as_deref()).unwrap_or_default().iter();
    let of_claim = of_claim.filter(|one| about(&one.requests)).map(|one| DeviceAllocationConfiguration {
        opaque: one.opaque.clone(),
        requests: one.requests.clone(),
        source: "FromClaim".to_owned(),
    });
    of_class.chain(of_claim).collect()
}
