use super::*;

const PODS: Cidr = Cidr { base: Ipv4Addr::new(10, 244, 0, 0), prefix: 16 };
const SERVICES: Cidr = Cidr { base: Ipv4Addr::new(10, 96, 0, 0), prefix: 12 };

fn name(name: &str, addresses: &[[u8; 4]]) -> Name {
    Name {
        name: name.into(),
        addresses: addresses.iter().map(|a| (*a).into()).collect(),
        reverse: true,
        ..Name::default()
    }
}

fn alias(from: &str, to: &str) -> Name {
    Name { name: from.into(), cname: Some(to.into()), ..Name::default() }
}

fn names() -> Names {
    let mut srv = name("_http._tcp.web.default.svc.cluster.local", &[]);
    srv.srv.push(Srv { port: 80, target: "web.default.svc.cluster.local".into() });
    Names::new(&ServiceTable {
        names: vec![
            name("web.default.svc.cluster.local", &[[10, 96, 0, 9]]),
            srv,
            alias("out.default.svc.cluster.local", "example.com"),
            alias("in.default.svc.cluster.local", "web.default.svc.cluster.local"),
            alias("loop.default.svc.cluster.local", "loop.default.svc.cluster.local"),
        ],
        ..ServiceTable::default()
    })
}

fn ask(name: &str, question: Question) -> Answer {
    names().answer(name, question, &[PODS, SERVICES], &PODS)
}

fn shown(answer: Answer) -> String {
    let records = |records: Vec<Record>| {
        let value = |record: Record| match record.value {
            Value::Address(ip) => ip.to_string(),
            Value::Alias(name) => format!("-> {name}"),
            Value::Service(srv) => format!("{}:{}", srv.target, srv.port),
            Value::Pointer(name) => format!("is {name}"),
        };
        records.into_iter().map(value).collect::<Vec<_>>().join(" ")
    };
    match answer {
        Answer::Records(all) if all.is_empty() => "nothing".into(),
        Answer::Records(all) => records(all),
        Answer::Onward(all, to) => format!("{} and ask for {to}", records(all)),
        Answer::Unknown => "unknown".into(),
        Answer::Elsewhere => "elsewhere".into(),
    }
}

#[test]
fn questions_and_answers() {
    use Question::{Address, Alias, Other, Pointer, Service};
    let full = "web.default.svc.cluster.local";
    for (name, question, expected) in [
        (full, Address, "10.96.0.9"),
        (full, Other, "nothing"),
        (full, Service, "nothing"),
        ("_http._tcp.web.default.svc.cluster.local", Service, "web.default.svc.cluster.local:80"),
        ("default.svc.cluster.local", Address, "nothing"),
        ("cluster.local", Address, "nothing"),
        ("other.svc.cluster.local", Address, "unknown"),
        ("nope.default.svc.cluster.local", Address, "unknown"),
        ("nope.default.svc.cluster.local", Other, "unknown"),
        ("example.com", Address, "elsewhere"),
        ("notcluster.local", Address, "elsewhere"),
        ("out.default.svc.cluster.local", Address, "-> example.com and ask for example.com"),
        ("out.default.svc.cluster.local", Alias, "-> example.com"),
        ("in.default.svc.cluster.local", Address, "-> web.default.svc.cluster.local 10.96.0.9"),
        ("9.0.96.10.in-addr.arpa", Pointer, "is web.default.svc.cluster.local"),
        ("8.0.96.10.in-addr.arpa", Pointer, "unknown"),
        ("8.8.8.8.in-addr.arpa", Pointer, "elsewhere"),
        ("10-244-1-5.default.pod.cluster.local", Address, "10.244.1.5"),
        ("10-96-1-5.default.pod.cluster.local", Address, "unknown"),
        ("8-8-8-8.default.pod.cluster.local", Address, "unknown"),
    ] {
        assert_eq!(shown(ask(name, question)), expected, "{name} {question:?}");
    }
    let around = ask("loop.default.svc.cluster.local", Address);
    assert!(matches!(around, Answer::Records(all) if all.len() == MAX_ALIASES));
}

#[test]
fn names_are_searched() {
    let search = |options: &[&str]| {
        let words = |all: &[&str]| all.iter().map(|&word| word.to_owned()).collect();
        let suffixes = ["default.svc.cluster.local", "svc.cluster.local.", "Cluster.Local", "corp.example"];
        Search::of(&DnsConfig { servers: Vec::new(), searches: words(&suffixes), options: words(options) })
    };
    let found = Found::Addresses(vec![[10, 96, 0, 9].into()]);
    for name in ["web", "WEB.default", "web.default.svc", "web.default.svc.cluster.local.", "in"] {
        for options in [&["ndots:5"][..], &[]] {
            assert_eq!(names().lookup(name, &search(options), &PODS), found, "{name} {options:?}");
        }
    }
    for (name, options, others) in [
        ("web.", &["ndots:5"][..], &["web"][..]),
        ("nope", &["ndots:5"], &["nope.corp.example", "nope"]),
        ("web.other", &["ndots:5"], &["web.other.corp.example", "web.other"]),
        ("web.other", &["ndots:5", "rotate", "ndots:1"], &["web.other", "web.other.corp.example"]),
        ("web.other", &["ndots:many"], &["web.other", "web.other.corp.example"]),
        ("nope", &[], &["nope.corp.example", "nope"]),
        ("nope.default.svc.cluster.local", &["ndots:5"], &["nope.default.svc.cluster.local.corp.example"]),
        ("nope.default.svc.cluster.local.", &["ndots:5"], &[]),
        ("out", &["ndots:5"], &["example.com"]),
    ] {
        let others: Vec<_> = others.iter().map(|&other| other.to_owned()).collect();
        let expected = if others.is_empty() { Found::Nothing } else { Found::Elsewhere(others) };
        assert_eq!(names().lookup(name, &search(options), &PODS), expected, "{name} {options:?}");
    }
}
