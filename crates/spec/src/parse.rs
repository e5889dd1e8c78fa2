//! JSON and a mode → a [`TrainSpec`], or every problem at once.
//!
//! Deliberate differences from a pydantic model: null is "not given" for every field that has a default; a text may
//! spell a `rank`; addresses must be http(s) or data URIs; rules across fields are checked for all fields that are
//! sound, not only when all are; bodies that Python reads and JSON forbids (`NaN`, not UTF-8) are `json_invalid`; long
//! inputs are echoed shortened; lists have a limit.

use crate::coerce::{At, coerce, list, within};
use crate::field::{Field, Kind};
use crate::json_error;
use crate::mode::Mode;
use crate::problem::{Loc, Problem, Problems};
use crate::rules;
use crate::train_spec::TrainSpec;
use serde_json::{Map, Value, json};

/// The most validation items a request may have: previews cost time at every round.
pub const MAX_VALIDATION_ITEMS: usize = 64;

/// The most problems one answer holds.
const MAX_PROBLEMS: usize = 500;

/// Reads a request body.
///
/// `None` and an empty body are an absent one.
///
/// # Errors
/// Every problem of the request, ready to be sent: the request is at fault.
pub fn parse_body(mode: &'static Mode, body: Option<&[u8]>) -> Result<TrainSpec, Problems> {
    match body {
        None | Some([]) => {
            Err(Problem::plain("missing", vec!["body".into()], "Field required", &Value::Null).into())
        }
        Some(bytes) => parse(mode, &read_json(bytes)?),
    }
}

/// Reads bytes as JSON, or says where they stop being JSON.
///
/// # Errors
/// One `json_invalid` problem with the offset in characters.
pub fn read_json(bytes: &[u8]) -> Result<Value, Problems> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let invalid = |offset: usize, phrase: String| {
        let loc = vec!["body".into(), Loc::Index(offset)];
        Problems::from(
            Problem::plain("json_invalid", loc, "JSON decode error", &json!({})).with_ctx("error", phrase),
        )
    };
    let text = std::str::from_utf8(bytes)
        .map_err(|error| invalid(error.valid_up_to(), "Body is not UTF-8".to_owned()))?;
    serde_json::from_str(text).map_err(|error| match json_error::find(text) {
        Some(found) => invalid(found.offset(text), found.phrase.to_owned()),
        None => invalid(offset_of(text, &error), phrase_of(&error)),
    })
}

/// Character offset of an error that only `serde_json` sees (`NaN`, numbers too large, depth, lone surrogates): it counts
/// lines and bytes within a line.
fn offset_of(text: &str, error: &serde_json::Error) -> usize {
    let lines: usize = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    let byte = lines + error.column().saturating_sub(1);
    text.char_indices().take_while(|(at, _)| *at < byte).count()
}

/// Its message without the position.
fn phrase_of(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((phrase, _)) => phrase.to_owned(),
        None => text,
    }
}

/// Checks a request and fills in its defaults.
///
/// # Errors
/// Every problem of the request, in the order of the fields, then of the rules.
///
/// # Panics
/// Never on any input: the one `expect` states that the field table and [`TrainSpec`] agree, which a test shows for
/// every mode.
pub fn parse(mode: &'static Mode, body: &Value) -> Result<TrainSpec, Problems> {
    let mut problems = Vec::new();
    let mut at = At { loc: vec!["body".into()], problems: &mut problems };
    let Some(object) = object(body, &mut at) else {
        return Err(Problems(problems));
    };
    let mut sound = fields(mode.fields(), object, body, &mut at, |value, at| items(mode, value, at));
    rules::check(mode, &sound, object, &mut problems);
    if !problems.is_empty() {
        return Err(Problems(at_most(MAX_PROBLEMS, problems)));
    }
    sound.insert("path".to_owned(), mode.path.into());
    Ok(serde_json::from_value(Value::Object(sound))
        .expect("invariant: TrainSpec has the field table's fields"))
}

/// The first problems, and how many there are besides: no request needs to hear of thousands.
fn at_most(limit: usize, mut problems: Vec<Problem>) -> Vec<Problem> {
    let more = problems.len().saturating_sub(limit);
    if more > 0 {
        problems.truncate(limit);
        let msg = format!("{more} more problems are left out of this answer");
        problems.push(Problem::value_error(vec!["body".into()], msg, &Value::Null));
    }
    problems
}

fn object<'v>(value: &'v Value, at: &mut At<'_>) -> Option<&'v Map<String, Value>> {
    match value {
        Value::Object(map) => Some(map),
        other => {
            at.note(
                "model_attributes_type",
                "Input should be a valid dictionary or object to extract fields from",
                other,
            );
            None
        }
    }
}

/// Coerces the fields of one object; those with a problem are left out of the result.
fn fields<'f>(
    table: impl Iterator<Item = &'f Field>,
    object: &Map<String, Value>,
    whole: &Value,
    at: &mut At<'_>,
    items: impl Fn(&Value, &mut At<'_>) -> Option<Value>,
) -> Map<String, Value> {
    let mut sound = Map::new();
    for field in table {
        let mut at = at.down(field.name);
        let value = match (object.get(field.name), field.default.value()) {
            (None, None) => {
                at.note("missing", "Field required", whole);
                None
            }
            (None | Some(Value::Null), Some(default)) => Some(default),
            (Some(value), _) if field.kind == Kind::Items => items(value, &mut at),
            (Some(value), _) => coerce(field, value, &mut at),
        };
        if let Some(value) = value {
            sound.insert(field.name.to_owned(), value);
        }
    }
    sound
}

/// The validation list, with what is sound of every entry: the rules look at that.
fn items(mode: &Mode, value: &Value, at: &mut At<'_>) -> Option<Value> {
    let entries = list(value, at)?;
    if !within(MAX_VALIDATION_ITEMS, entries, "validation items", at) {
        return None;
    }
    let mut sound = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let mut at = at.down(index);
        sound.push(match object(entry, &mut at) {
            Some(map) => Value::Object(fields(mode.preview.needs.iter(), map, entry, &mut at, |_, _| None)),
            None => Value::Null,
        });
    }
    Some(Value::Array(sound))
}
