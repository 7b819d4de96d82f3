use super::*;
use proptest::prelude::*;
use serde_json::json;

fn matches(selector: &str, labels: &Value) -> bool {
    Selector::parse(selector).unwrap().matches_map(labels.as_object().unwrap())
}

#[test]
fn operators() {
    let l = json!({"a": "b", "n": "5", "in": "x"});
    for yes in [
        "",
        "a",
        "a=b",
        "a==b",
        "a!=c",
        "z!=c",
        "a in (b, c)",
        "a notin (c)",
        "z notin (c)",
        "!z",
        "n>4",
        "n<6",
        "a=b,n=5",
        "in=x",
        "z in (),",
        "  a = b ",
    ] {
        if yes == "z in ()," {
            assert!(Selector::parse(yes).is_err());
            continue;
        }
        assert!(matches(yes, &l), "{yes}");
    }
    for no in ["z", "a=c", "a!=b", "a in (c)", "a notin (b)", "!a", "n>5", "n<5", "z>1", "a=b,n=6", "a="] {
        assert!(!matches(no, &l), "{no}");
    }
}

#[test]
fn errors_in_kubernetes_words() {
    let table = [
        (
            "n>x",
            "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
        ),
        ("app in web", "unable to parse requirement: found 'web' expected: '('"),
        ("a b=c", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
        ("app in (web", "unable to parse requirement: found '', expected: ',' or ')'"),
        ("app=web,", "found '', expected: identifier after ','"),
        (",", "found ',', expected: !, identifier, or 'end of string'"),
        ("!a=b", "found '=', expected: ',' or 'end of string'"),
    ];
    for (text, words) in table {
        let error = Selector::parse(text).unwrap_err();
        assert_eq!(error.message, words, "{text}");
        assert_eq!(error.code, 400);
    }
    assert!(
        Selector::parse("app=-x")
            .unwrap_err()
            .message
            .starts_with("unable to parse requirement: values[0][app]: Invalid value: \"-x\": a valid label")
    );
}

#[test]
fn object_form() {
    let s = Selector::from_label_selector(&json!({
        "matchLabels": {"a": "b"},
        "matchExpressions": [{"key": "c", "operator": "In", "values": ["e", "d"]}, {"key": "f", "operator": "DoesNotExist"}],
    }))
    .unwrap();
    assert_eq!(s.to_string(), "a in (b),c in (d,e),!f");
    assert!(s.matches_object(&json!({"metadata": {"labels": {"a": "b", "c": "d"}}})));
    assert!(!Selector::from_label_selector(&Value::Null).unwrap().matches_object(&json!({})));
    assert!(Selector::from_label_selector(&json!({})).unwrap().is_everything());
    let bad = json!({"matchExpressions": [{"key": "a", "operator": "Is"}]});
    assert_eq!(
        Selector::from_label_selector(&bad).unwrap_err().message,
        "\"Is\" is not a valid label selector operator"
    );
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in ".{0,60}") {
        if let Ok(s) = Selector::parse(&text) {
            prop_assert_eq!(Selector::parse(&s.to_string()).unwrap().to_string(), s.to_string());
        }
    }

    #[test]
    fn likely_text_round_trips(text in "[ab!=(),<> 1inot]{0,24}") {
        if let Ok(s) = Selector::parse(&text) {
            prop_assert_eq!(Selector::parse(&s.to_string()).unwrap(), s);
        }
    }
}
