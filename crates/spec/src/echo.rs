//! What of an input is sent back with a problem.

use serde_json::{Map, Value};

/// Echoed inputs above this many bytes are shortened: a body may carry an archive as a data URI, and an answer, a job
/// row and a webhook must not carry it back once per problem.
const ECHO_BYTES: usize = 8 * 1024;
/// How much of one long string a shortened echo keeps, in characters.
const ECHO_CHARS: usize = 200;

/// Copies a value for `input`, whole up to 8 KiB, else with long strings cut and the rest left out, marked by `…`.
pub(crate) fn echo(value: &Value) -> Value {
    let mut budget = ECHO_BYTES;
    if fits(value, &mut budget) {
        return value.clone();
    }
    budget = ECHO_BYTES;
    shorten(value, &mut budget)
}

/// Takes the value's approximate size off the budget; false when it does not fit.
fn fits(value: &Value, budget: &mut usize) -> bool {
    let own = match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => return take(budget, 2) && items.iter().all(|item| fits(item, budget)),
        Value::Object(map) => {
            return take(budget, 2)
                && map.iter().all(|(key, item)| take(budget, key.len() + 4) && fits(item, budget));
        }
        _ => 8,
    };
    take(budget, own)
}

fn take(budget: &mut usize, bytes: usize) -> bool {
    match budget.checked_sub(bytes) {
        Some(left) => {
            *budget = left;
            true
        }
        None => false,
    }
}

fn shorten_text(text: &str) -> String {
    match text.char_indices().nth(ECHO_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}… ({} bytes in all)", &text[..end], text.len()),
    }
}

fn shorten(value: &Value, budget: &mut usize) -> Value {
    match value {
        Value::String(text) => {
            let short = shorten_text(text);
            *budget = budget.saturating_sub(short.len() + 2);
            Value::String(short)
        }
        Value::Array(items) => {
            let mut kept = Vec::new();
            for item in items {
                if !take(budget, 2) || *budget == 0 {
                    kept.push(Value::from("…"));
                    break;
                }
                kept.push(shorten(item, budget));
            }
            Value::Array(kept)
        }
        Value::Object(map) => {
            let mut kept = Map::new();
            for (key, item) in map {
                let key = shorten_text(key);
                if !take(budget, key.len() + 4) {
                    kept.insert("…".to_owned(), Value::from("…"));
                    break;
                }
                let item = shorten(item, budget);
                kept.insert(key, item);
            }
            Value::Object(kept)
        }
        other => {
            *budget = budget.saturating_sub(8);
            other.clone()
        }
    }
}
