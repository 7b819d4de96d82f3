//! Definitions against each other, and those that serve nothing.

use super::*;

/// A definition whose plural is not like the other's, with the same kind.
fn rival() -> Value {
    let mut rival = definition(vec![version("v1", true)]);
    rival["metadata"]["name"] = "gadgets.example.com".into();
    rival["spec"]["names"] =
        json!({"plural": "gadgets", "kind": "Widget", "singular": "gadget", "shortNames": ["gd"]});
    rival
}

fn condition<'a>(definition: &'a Value, kind: &str) -> &'a Value {
    let all = definition["status"]["conditions"].as_array().expect("conditions");
    all.iter().find(|c| c["type"] == kind).expect("condition")
}

#[tokio::test]
async fn names_that_another_has_are_accepted_when_it_goes() {
    let server = server().await;
    define(&server).await;
    let (code, refused) = call(&server, "POST", CRDS, rival()).await;
    assert_eq!(code, 201, "{refused}");
    let accepted = condition(&refused, "NamesAccepted");
    assert_eq!(
        (accepted["status"].as_str(), accepted["reason"].as_str(), accepted["message"].as_str()),
        (Some("False"), Some("KindConflict"), Some("\"Widget\" is already in use"))
    );
    assert_eq!(condition(&refused, "Established")["reason"], "NotAccepted");
    let gadgets = "/apis/example.com/v1/namespaces/default/gadgets";
    assert_eq!(get(&server, gadgets).await.0, 404);
    let (code, _) = call(&server, "DELETE", &format!("{CRDS}/widgets.example.com"), Value::Null).await;
    assert_eq!(code, 200);
    until(&server, gadgets, 200).await;
    let (_, served) = get(&server, &format!("{CRDS}/gadgets.example.com")).await;
    assert_eq!(condition(&served, "NamesAccepted")["status"], "True");
    assert_eq!(served["status"]["acceptedNames"]["shortNames"], json!(["gd"]));
}

#[tokio::test]
async fn a_definition_that_serves_nothing_takes_its_objects_along() {
    let store = Store::in_memory(&Options::new("unused"));
    let server = over(&store).await;
    define(&server).await;
    let mut held = widget("held", json!({"size": 3}));
    held["metadata"]["finalizers"] = json!(["example.com/held"]);
    assert_eq!(call(&server, "POST", WIDGETS, held).await.0, 201);
    let crd = format!("{CRDS}/widgets.example.com");
    let (_, mut found) = get(&server, &crd).await;
    found["spec"]["versions"][0]["served"] = false.into();
    assert_eq!(call(&server, "PUT", &crd, found).await.0, 200);
    until(&server, WIDGETS, 404).await;
    let prefix = || coracle_store::Range::prefix("/registry/example.com/widgets/");
    assert_eq!(store.range(&prefix()).expect("range").kvs.len(), 1);
    assert_eq!(call(&server, "DELETE", &crd, Value::Null).await.0, 200);
    until(&server, &crd, 404).await;
    assert!(store.range(&prefix()).expect("range").kvs.is_empty());
}

#[tokio::test]
async fn a_kind_may_be_called_as_that_of_a_subresource() {
    let server = server().await;
    let mut scales = definition(vec![version("v1", true)]);
    scales["metadata"]["name"] = "scales.example.com".into();
    scales["spec"]["names"] = json!({"plural": "scales", "kind": "Scale"});
    assert_eq!(call(&server, "POST", CRDS, scales).await.0, 201);
    let path = "/apis/example.com/v1/namespaces/default/scales";
    let mut scale = widget("s", json!({"size": 3}));
    scale["kind"] = "Scale".into();
    assert_eq!(call(&server, "POST", path, scale).await.0, 201);
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let heads = async |path: String| {
        let (_, table) = send(&server, "GET", &path, "", table, String::new()).await;
        let columns = table["columnDefinitions"].as_array().expect("columns").clone();
        columns.iter().map(|column| column["name"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(heads(format!("{path}/s")).await, ["Name", "Size", "Phase", "Age"]);
    assert_eq!(heads(format!("{path}/s/scale")).await, ["Name", "Desired", "Available", "Age"]);
}
