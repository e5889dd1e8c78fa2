//! Refusals are, problem by problem, what FastAPI with pydantic v2 answers to the same bodies.
//!
//! `tests/golden/pydantic/cases.json` was recorded from the real thing, see `record.py` beside it.

use kiln_spec as spec;
use serde_json::Value;

/// Numbers by value, objects in any order.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| same(v, w)))
        }
        (a, b) => a == b,
    }
}

#[test]
fn recorded_bodies_get_pydantics_answers() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/pydantic/cases.json");
    let cases: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert!(cases.len() > 1000);
    let mut wrong = Vec::new();
    for case in &cases {
        let mode = spec::find(case["path"].as_str().unwrap()).unwrap();
        let body = case["body"].as_str().unwrap();
        let got = spec::parse_body(mode, Some(body.as_bytes()));
        let fine = match (&got, case.get("detail"), case.get("fields")) {
            (Err(problems), Some(detail), _) => same(&problems.to_body()["detail"], detail),
            (Ok(parsed), None, Some(fields)) => {
                let parsed = serde_json::to_value(parsed).unwrap();
                fields.as_object().unwrap().iter().all(|(k, v)| same(&drop_nulls(v), &parsed[k]))
            }
            _ => false,
        };
        if !fine {
            let got = got.map(|spec| serde_json::to_string(&spec).unwrap());
            let got = got.map_err(|problems| problems.to_body().to_string());
            wrong.push(format!(
                "{} {body}\n  pydantic: {}\n  kiln:     {got:?}",
                case["path"],
                case.get("detail").or(case.get("fields")).unwrap()
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// Without null entries of objects: pydantic keeps optional fields that were not given.
fn drop_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            map.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), drop_nulls(v))).collect()
        }
        Value::Array(items) => items.iter().map(drop_nulls).collect(),
        other => other.clone(),
    }
}
