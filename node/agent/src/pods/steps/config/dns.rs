//! Pure: where the programs of a pod ask for names.

use coracle_cri_api::v1 as cri;
use k8s_openapi::api::core::v1::Pod;

use crate::context::Dns;

/// Servers that a program asks at most.
const MAX_SERVERS: usize = 3;
/// Domains that are searched at most.
const MAX_SEARCHES: usize = 32;
/// Characters of all of them on one line.
const MAX_SEARCH_LINE: usize = 2048;
/// Characters of one: longer ones end some programs.
const MAX_DOMAIN: usize = 253;

/// By `dnsPolicy` and `dnsConfig`; `resolver` is what the node asks itself (`/etc/resolv.conf`). With the words of `DNSConfigForming` Events where more is asked for than programs take.
pub fn config(pod: &Pod, cluster: &Dns, resolver: &str) -> (cri::DnsConfig, Vec<String>) {
    let mut config = asked(pod, cluster, resolver);
    let told = [fit_servers(&mut config.servers), fit_searches(&mut config.searches)];
    (config, told.into_iter().flatten().collect())
}

fn asked(pod: &Pod, cluster: &Dns, resolver: &str) -> cri::DnsConfig {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let spec = pod.spec.as_ref();
    let own = spec.and_then(|s| s.dns_config.as_ref());
    let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let node_network = spec.and_then(|s| s.host_network).unwrap_or(false);
    let mut config = match policy {
        "None" => cri::DnsConfig::default(),
        "ClusterFirstWithHostNet" => of_cluster(namespace, cluster, resolver),
        "ClusterFirst" if !node_network => of_cluster(namespace, cluster, resolver),
        _ => parse(resolver),
    };
    let Some(own) = own else { return config };
    add(&mut config.servers, own.nameservers.iter().flatten().cloned());
    add(&mut config.searches, own.searches.iter().flatten().cloned());
    for option in own.options.iter().flatten() {
        let Some(name) = &option.name else { continue };
        // The pod's own word counts.
        config.options.retain(|other| other.split(':').next() != Some(name.as_str()));
        let value = option.value.as_ref();
        config.options.push(value.map_or_else(|| name.clone(), |value| format!("{name}:{value}")));
    }
    config
}

/// The cluster's domains come before those that the node searches itself.
fn of_cluster(namespace: &str, cluster: &Dns, resolver: &str) -> cri::DnsConfig {
    let domain = &cluster.domain;
    let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
    add(&mut searches, parse(resolver).searches.into_iter());
    let servers = cluster.servers.iter().map(ToString::to_string).collect();
    cri::DnsConfig { servers, searches, options: vec!["ndots:5".into()] }
}

/// Leaves out what is too much, in the kubelet's words.
fn fit_servers(servers: &mut Vec<String>) -> Option<String> {
    if servers.len() <= MAX_SERVERS {
        return None;
    }
    servers.truncate(MAX_SERVERS);
    Some(format!(
        "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
        servers.join(" ")
    ))
}

fn fit_searches(searches: &mut Vec<String>) -> Option<String> {
    let before = searches.len();
    searches.truncate(MAX_SEARCHES);
    searches.retain(|domain| domain.len() <= MAX_DOMAIN);
    while searches.join(" ").len() > MAX_SEARCH_LINE {
        searches.pop();
    }
    (searches.len() < before).then(|| {
        let line = searches.join(" ");
        format!("Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {line}")
    })
}

/// Those that are not there yet.
fn add(list: &mut Vec<String>, more: impl Iterator<Item = String>) {
    for one in more {
        if !list.contains(&one) {
            list.push(one);
        }
    }
}

/// Reads a `resolv.conf`: of several search lists the last counts.
fn parse(text: &str) -> cri::DnsConfig {
    let mut config = cri::DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => add(&mut config.servers, words.next().map(str::to_owned).into_iter()),
            Some("search") => {
                let domain =
                    |word: &str| if word == "." { word } else { word.trim_end_matches('.') }.to_owned();
                config.searches = words.map(domain).collect();
            }
            Some("options") => add(&mut config.options, words.map(str::to_owned)),
            _ => {}
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NODE: &str = "# of the node\nnameserver 192.0.2.53\nsearch old.example\nsearch corp.example. example\noptions timeout:3 edns0\n";

    fn of(spec: Value) -> (Vec<String>, Vec<String>, Vec<String>) {
        let mut pod = json!({"metadata": {"name": "a", "namespace": "shop"}, "spec": {"containers": []}});
        pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let pod: Pod = serde_json::from_value(pod).expect("a Pod");
        let cluster = Dns { servers: vec!["10.96.0.10".parse().unwrap()], ..Dns::default() };
        let (made, told) = config(&pod, &cluster, NODE);
        assert!(told.is_empty(), "{told:?}");
        (made.servers, made.searches, made.options)
    }

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn a_pod_that_asks_as_its_node_keeps_the_nodes_servers() {
        let own = json!({"searches": ["my.example", "example"], "options": [{"name": "timeout", "value": "1"}, {"name": "rotate"}]});
        let expected = (
            words(&["192.0.2.53"]),
            words(&["corp.example", "example", "my.example"]),
            words(&["edns0", "timeout:1", "rotate"]),
        );
        assert_eq!(of(json!({"dnsPolicy": "Default", "dnsConfig": own})), expected);
        assert_eq!(of(json!({"hostNetwork": true, "dnsConfig": own})), expected);
        let plain =
            (words(&["192.0.2.53"]), words(&["corp.example", "example"]), words(&["timeout:3", "edns0"]));
        assert_eq!(of(json!({"dnsPolicy": "Default"})), plain);
        assert_eq!(of(json!({"hostNetwork": true})), plain);
    }

    #[test]
    fn a_pod_asks_the_cluster_or_whom_it_names() {
        let (servers, searches, options) = of(
            json!({"dnsConfig": {"nameservers": ["192.0.2.1"], "options": [{"name": "ndots", "value": "2"}]}}),
        );
        assert_eq!(servers, words(&["10.96.0.10", "192.0.2.1"]));
        assert_eq!(
            searches,
            words(&[
                "shop.svc.cluster.local",
                "svc.cluster.local",
                "cluster.local",
                "corp.example",
                "example"
            ])
        );
        assert_eq!(options, words(&["ndots:2"]));
        let (servers, searches, _) =
            of(json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.1"]}}));
        assert_eq!((servers, searches), (words(&["192.0.2.1"]), Vec::new()));
    }

    #[test]
    fn what_is_more_than_programs_take_is_left_out_and_told() {
        let own =
            json!({"nameservers": ["192.0.2.1", "192.0.2.2", "192.0.2.3"], "searches": ["x".repeat(300)]});
        let pod = json!({"metadata": {"namespace": "shop"}, "spec": {"containers": [], "dnsConfig": own}});
        let pod: Pod = serde_json::from_value(pod).expect("a Pod");
        let cluster = Dns { servers: vec!["10.96.0.10".parse().unwrap()], ..Dns::default() };
        let (made, told) = config(&pod, &cluster, NODE);
        assert_eq!(made.servers, words(&["10.96.0.10", "192.0.2.1", "192.0.2.2"]));
        let [servers, searches] = told.as_slice() else { panic!("{told:?}") };
        assert!(
            servers.starts_with("Nameserver limits") && servers.ends_with(": 10.96.0.10 192.0.2.1 192.0.2.2")
        );
        assert!(
            searches.starts_with("Search Line limits")
                && searches.ends_with("cluster.local corp.example example")
        );
        let mut many: Vec<String> = (0..40).map(|n| format!("{n}.example")).collect();
        assert!(fit_searches(&mut many).is_some() && many.len() == 32);
        let mut long = vec!["x".repeat(250); 10];
        assert!(fit_searches(&mut long).is_some() && long.len() == 8, "{} fit the line", long.len());
        assert_eq!(fit_searches(&mut long), None);
    }
}
