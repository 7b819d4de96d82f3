//! The class of service that a pod's requests and limits make.

use serde_json::Value;

use crate::quantity::Quantity;

/// `Guaranteed`, `Burstable` or `BestEffort`, by the `spec` of a pod: what the pod itself asks for counts instead of what its
/// containers do.
pub fn class(spec: &Value) -> &'static str {
    let items = |field: &str| spec.get(field).and_then(Value::as_array).into_iter().flatten();
    let own = spec.get("resources").filter(|r| ["requests", "limits"].iter().any(|kind| !r[*kind].is_null()));
    let resources: Vec<&Value> = match own {
        Some(own) => vec![own],
        None => items("containers").chain(items("initContainers")).map(|c| &c["resources"]).collect(),
    };
    let amount = |r: &Value, kind: &str, name: &str| {
        let text = r[kind][name].as_str().unwrap_or_default();
        Quantity::parse(text).ok().filter(|q| q.sign() != 0)
    };
    let mut any = false;
    let mut guaranteed = true;
    for r in resources {
        for name in ["cpu", "memory"] {
            let (request, limit) = (amount(r, "requests", name), amount(r, "limits", name));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn classes() {
        let table = [
            (json!({"containers": [{}]}), "BestEffort"),
            (json!({"containers": [{"resources": {"requests": {"cpu": "1"}}}]}), "Burstable"),
            (json!({"containers": [{"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]}), "Guaranteed"),
            (
                json!({"containers": [{"resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}}}]}),
                "Burstable",
            ),
            (
                json!({"containers": [{"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}, {}]}),
                "Burstable",
            ),
        ];
        for (spec, expected) in table {
            assert_eq!(class(&spec), expected, "{spec}");
        }
    }
}
