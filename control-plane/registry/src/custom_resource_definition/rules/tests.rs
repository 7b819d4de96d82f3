use coracle_api::schema::structural::parse;
use serde_json::json;

use super::*;

fn run(schema: Value, object: Value, old: Option<Value>) -> Vec<String> {
    let schema = parse(&schema, &root()).unwrap_or_else(|e| panic!("{e:?}"));
    let Some(rules) = Rules::of(&schema) else { panic!("no rules") };
    rules.validate(&schema, &object, old.as_ref()).iter().map(ToString::to_string).collect()
}

fn one(rule: Value, object: Value, old: Option<Value>) -> Vec<String> {
    let schema = json!({
        "type": "object",
        "properties": {"spec": {
            "type": "object", "x-kubernetes-validations": [rule],
            "properties": {
                "n": {"type": "integer"}, "max": {"type": "integer"}, "s": {"type": "string"},
                "when": {"type": "string", "format": "date-time"}, "my-name": {"type": "string"}, "a_b": {"type": "string"},
                "list": {"type": "array", "items": {"type": "integer"}},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            },
        }},
    });
    run(schema, json!({"spec": object}), old.map(|o| json!({"spec": o})))
}

#[test]
fn rules_and_their_words() {
    let table = [
        (json!({"rule": "self.n <= self.max"}), json!({"n": 2, "max": 3}), vec![]),
        (
            json!({"rule": "self.n <= self.max"}),
            json!({"n": 4, "max": 3}),
            vec!["spec: Invalid value: \"object\": failed rule: self.n <= self.max"],
        ),
        (
            json!({"rule": "self.n < 1", "message": "too many"}),
            json!({"n": 4}),
            vec!["spec: Invalid value: \"object\": too many"],
        ),
        (
            json!({"rule": "self.n < 1", "messageExpression": "'has ' + string(self.n)"}),
            json!({"n": 4}),
            vec!["spec: Invalid value: \"object\": has 4"],
        ),
        (
            json!({"rule": "self.n < 1", "message": "no", "reason": "FieldValueForbidden", "fieldPath": ".n"}),
            json!({"n": 4}),
            vec!["spec.n: Forbidden: no"],
        ),
        (json!({"rule": "self.list.all(x, x > 0)"}), json!({"list": [1, 2]}), vec![]),
        (json!({"rule": "self.list.exists(x, x == self.n)"}), json!({"list": [1, 2], "n": 2}), vec![]),
        (json!({"rule": "has(self.s) && self.s.startsWith('a')"}), json!({"s": "abc"}), vec![]),
        (json!({"rule": "!has(self.s)"}), json!({}), vec![]),
        (
            json!({"rule": "self.my__dash__name == 'x' && self.a_b == 'y'"}),
            json!({"my-name": "x", "a_b": "y"}),
            vec![],
        ),
        (
            json!({"rule": "self.labels.all(k, k.matches('^[a-z-]+$'))"}),
            json!({"labels": {"a-b": "c"}}),
            vec![],
        ),
        (json!({"rule": "self.labels['a-b'] == 'c'"}), json!({"labels": {"a-b": "c"}}), vec![]),
        (
            json!({"rule": "self.when > timestamp('2020-01-01T00:00:00Z')"}),
            json!({"when": "2021-01-01T00:00:00Z"}),
            vec![],
        ),
        (
            json!({"rule": "self.s.isSorted() || self.list.sum() == 6"}),
            json!({"s": "x", "list": [1, 2, 3]}),
            vec![],
        ),
    ];
    for (rule, object, words) in table {
        assert_eq!(one(rule.clone(), object, None), words, "{rule}");
    }
}

#[test]
fn transitions_see_what_was() {
    let rule = json!({"rule": "self.n >= oldSelf.n"});
    assert!(one(rule.clone(), json!({"n": 1}), None).is_empty());
    assert!(one(rule.clone(), json!({"n": 3}), Some(json!({"n": 2}))).is_empty());
    assert_eq!(one(rule, json!({"n": 1}), Some(json!({"n": 2}))).len(), 1);
    let optional = json!({"rule": "oldSelf.hasValue() || self.n == 0", "optionalOldSelf": true});
    assert_eq!(one(optional.clone(), json!({"n": 1}), None).len(), 1);
    assert!(one(optional, json!({"n": 1}), Some(json!({"n": 0}))).is_empty());
    // What did not change is not checked again.
    let always = json!({"rule": "self.n < 1"});
    assert!(one(always, json!({"n": 5}), Some(json!({"n": 5}))).is_empty());
}

#[test]
fn expensive_rules_are_refused() {
    let many: Vec<i64> = (0..5000).collect();
    let nested = json!({"rule": "self.list.all(a, self.list.all(b, a + b >= 0))"});
    assert_eq!(
        one(nested.clone(), json!({"list": many}), None),
        [format!("spec: Invalid value: \"object\": {OVER_BUDGET}")]
    );
    assert!(one(nested, json!({"list": [1, 2, 3]}), None).is_empty());
    let grows = json!({"rule": "self.s.replace('a', self.s).size() > 0"});
    assert_eq!(one(grows, json!({"s": "a".repeat(1 << 20)}), None).len(), 1);
}

#[test]
fn expressions_that_do_not_compile() {
    let wrong = |rule: &str| {
        let schema = json!({"type": "object", "x-kubernetes-validations": [{"rule": rule}],
            "properties": {"n": {"type": "integer"}}});
        let schema = parse(&schema, &root()).unwrap_or_else(|e| panic!("{e:?}"));
        check(&schema, &Path::new("s"))
    };
    assert!(wrong("self.n > 0").is_empty());
    let deep = format!("{}{}.size() > 0", "[".repeat(500), "]".repeat(500));
    let parens = format!("{}1{} == 1", "(".repeat(3000), ")".repeat(3000));
    for rule in ["self.n <", "other.n > 0", "self.n == 'a", deep.as_str(), parens.as_str(), &"a".repeat(9000)]
    {
        let errors = wrong(rule);
        if rule == parens {
            continue; // Brackets leave no trace in what was read.
        }
        assert_eq!(errors.len(), 1, "{rule}");
        assert!(
            errors[0].to_string().starts_with("s.x-kubernetes-validations[0].rule: Invalid value: "),
            "{rule}"
        );
    }
}

#[test]
fn rules_fit_their_schema() {
    let wrong = |rule: &str, message: &str| {
        let mut one = json!({"rule": rule});
        if !message.is_empty() {
            one["messageExpression"] = message.into();
        }
        let schema = json!({"type": "object", "x-kubernetes-validations": [one], "properties": {"spec": {"type": "object", "properties": {
            "n": {"type": "integer"}, "s": {"type": "string"}, "when": {"type": "string", "format": "date-time"}, "on": {"type": "boolean"},
            "any": {"x-kubernetes-int-or-string": true}, "list": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}},
            "map": {"type": "object", "additionalProperties": {"type": "integer"}}}}}});
        let schema = parse(&schema, &root()).unwrap_or_else(|e| panic!("{e:?}"));
        check(&schema, &root()).iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    for fine in [
        "self.spec.n > 1 && has(self.spec.s) && self.metadata.name != '' && self.kind == 'K'",
        "self.spec.list.all(i, i.a == 'x') && self.spec.map.all(k, self.spec.map[k] > 0)",
        "self.spec.any == 1 || self.spec.any == 'a'",
        "self.spec.when > timestamp('2020-01-01T00:00:00Z') && self.spec.on",
        "self.spec.n >= oldSelf.spec.n && self.spec.n > 1.5",
        "self.spec.map.x == 1 && self.spec.list.map(i, i.a).size() == 2",
    ] {
        assert_eq!(wrong(fine, ""), "", "{fine}");
    }
    for (rule, words) in [
        ("self.spec.m > 1", "undefined field 'm'"),
        ("has(self.spec.m)", "undefined field 'm'"),
        ("self.metadata.labels.size() > 0", "undefined field 'labels'"),
        ("self.spec.list.all(i, i.b == 'x')", "undefined field 'b'"),
        ("self.spec.n == 'a'", "found no matching overload for '_==_' applied to '(int, string)'"),
        ("self.spec.s && true", "expected type 'bool' but found 'string'"),
        ("self.spec.s.length", "type 'string' does not support field selection"),
        ("self.spec.n + 1", "must evaluate to a bool"),
    ] {
        let said = wrong(rule, "");
        assert!(said.contains("x-kubernetes-validations[0].rule: Invalid value: "), "{rule}: {said}");
        assert!(said.contains(&format!("compilation failed: {words}")), "{rule}: {said}");
    }
    assert!(wrong("true", "self.spec.n").contains(
        "messageExpression: Invalid value: \"self.spec.n\": compilation failed: must evaluate to a string"
    ));
}

#[test]
fn numbers_at_their_ends_break_nothing() {
    // The first two hold of a number that wraps.
    for (rule, words) in [
        ("-self.n < 1", "evaluation failed"),
        ("self.n * 2 == 0", "overflow from binary operator 'mul': Int(-9223372036854775808), Int(2)"),
        ("self.n - 1 > self.n", "overflow from binary operator 'sub': Int(-9223372036854775808), Int(1)"),
        ("self.n / -1 > 0", "overflow from binary operator 'div': Int(-9223372036854775808), Int(-1)"),
        ("self.n % 0 == 0", "remainder by zero of Int(-9223372036854775808)"),
    ] {
        let said = one(json!({"rule": rule}), json!({"n": i64::MIN}), None);
        assert_eq!(said, [format!("spec: Invalid value: \"object\": {words} evaluating rule: {rule}")]);
    }
}
