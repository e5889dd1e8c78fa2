//! One JSON value to what a field holds, as pydantic v2 does it in lax mode, or the problem pydantic would name.
//!
//! Source: pydantic-core 2.50 behaviour (`tests/golden/pydantic.json` was recorded from it).

use crate::echo::echo;
use crate::fal_error::FalError;
use crate::field::{Field, Kind};
use crate::problem::{Loc, Problem};
use serde_json::{Number, Value};

/// Where a value stands and where its problems go.
pub(crate) struct At<'a> {
    pub(crate) loc: Vec<Loc>,
    pub(crate) problems: &'a mut Vec<Problem>,
}

impl At<'_> {
    /// One step further down.
    pub(crate) fn down(&mut self, step: impl Into<Loc>) -> At<'_> {
        let mut loc = self.loc.clone();
        loc.push(step.into());
        At { loc, problems: self.problems }
    }

    /// Notes a problem about the value here.
    pub(crate) fn note(&mut self, kind: &'static str, msg: impl Into<String>, input: &Value) -> &mut Problem {
        self.problems.push(Problem::plain(kind, self.loc.clone(), msg, input));
        self.problems.last_mut().expect("invariant: just pushed")
    }
}

/// The most time ranges one validation item may have; far more than a clip of a minute can use.
const MAX_TIME_RANGES: usize = 1000;

/// Coerces the value of one field (not of [`Kind::Items`], which `parse` walks); none when a problem was noted.
pub(crate) fn coerce(field: &Field, value: &Value, at: &mut At<'_>) -> Option<Value> {
    match field.kind {
        Kind::Text => text(value, at).map(Value::from),
        Kind::Url => url(value, at).map(Value::from),
        Kind::Bool => boolean(value, at).map(Value::from),
        Kind::Int { min, max } => bounded_int(field, min, max, value, at).map(Value::from),
        Kind::Number { min, max } => bounded_number(min, max, value, at).map(Value::from),
        Kind::IntChoice(choices) => int_choice(choices, value, at).map(Value::from),
        Kind::TextChoice(choices) => text_choice(choices, value, at).map(Value::from),
        Kind::Point => pair(value, at, |value, at| int(value, at).map(Value::from)),
        Kind::TimeRanges => time_ranges(value, at),
        Kind::Items => None,
    }
}

fn text<'v>(value: &'v Value, at: &mut At<'_>) -> Option<&'v str> {
    match value {
        Value::String(text) => Some(text),
        other => {
            at.note("string_type", "Input should be a valid string", other);
            None
        }
    }
}

fn url<'v>(value: &'v Value, at: &mut At<'_>) -> Option<&'v str> {
    let text = text(value, at)?;
    let scheme =
        |scheme: &str| text.get(..scheme.len()).is_some_and(|head| head.eq_ignore_ascii_case(scheme));
    if scheme("https://") || scheme("http://") || scheme("data:") {
        return Some(text);
    }
    let msg = "Failed to download the file: give an http:// or https:// address or a data: URI";
    at.problems.push(Problem::fal(&FalError::FileDownloadError, at.loc.clone(), msg).with_input(value));
    None
}

fn boolean(value: &Value, at: &mut At<'_>) -> Option<bool> {
    const FALSE: [&str; 6] = ["0", "off", "f", "false", "n", "no"];
    const TRUE: [&str; 6] = ["1", "on", "t", "true", "y", "yes"];
    let known = match value {
        Value::Bool(value) => return Some(*value),
        Value::String(text) => {
            let is = |word: &&str| word.eq_ignore_ascii_case(text);
            if TRUE.iter().any(is) {
                Some(true)
            } else if FALSE.iter().any(is) {
                Some(false)
            } else {
                None
            }
        }
        Value::Number(number) => match whole(number) {
            Ok(0) => Some(false),
            Ok(1) => Some(true),
            Ok(_) => None,
            Err(_) => {
                at.note("bool_type", "Input should be a valid boolean", value);
                return None;
            }
        },
        _ => {
            at.note("bool_type", "Input should be a valid boolean", value);
            return None;
        }
    };
    if known.is_none() {
        at.note("bool_parsing", "Input should be a valid boolean, unable to interpret input", value);
    }
    known
}

/// Why a number is no whole one.
enum NotWhole {
    Fraction,
    TooLarge,
}

/// A JSON number as a whole one. Integers beyond 64 bits arrive as floats and count as too large.
fn whole(number: &Number) -> Result<i64, NotWhole> {
    if let Some(int) = number.as_i64() {
        return Ok(int);
    }
    if number.is_u64() {
        return Ok(i64::MAX);
    }
    let float = number.as_f64().unwrap_or(f64::NAN);
    if float % 1.0 != 0.0 {
        Err(NotWhole::Fraction)
    } else if float > i64::MIN as f64 && float < i64::MAX as f64 {
        Ok(float as i64)
    } else {
        Err(NotWhole::TooLarge)
    }
}

/// Python refuses to read longer decimal texts.
const MAX_INT_DIGITS: usize = 4300;

/// A whole number; beyond 64 bits it saturates, which every bound and rule then refuses.
fn int(value: &Value, at: &mut At<'_>) -> Option<i64> {
    let (kind, msg) = match value {
        Value::Bool(value) => return Some(i64::from(*value)),
        Value::Number(number) => match whole(number) {
            Ok(int) => return Some(int),
            Err(NotWhole::Fraction) => {
                ("int_from_float", "Input should be a valid integer, got a number with a fractional part")
            }
            Err(NotWhole::TooLarge) => {
                ("int_parsing_size", "Unable to parse input string as an integer, exceeded maximum size")
            }
        },
        Value::String(text) if text.len() > MAX_INT_DIGITS => {
            ("int_parsing_size", "Unable to parse input string as an integer, exceeded maximum size")
        }
        Value::String(text) => match int_text(text) {
            Some(int) => return Some(int),
            None => ("int_parsing", "Input should be a valid integer, unable to parse string as an integer"),
        },
        _ => ("int_type", "Input should be a valid integer"),
    };
    at.note(kind, msg, value);
    None
}

/// Removes the single underscores that may stand inside a number; none when they stand elsewhere.
fn without_underscores(text: &str) -> Option<String> {
    if text.starts_with('_') || text.ends_with('_') || text.contains("__") {
        return None;
    }
    Some(text.chars().filter(|c| *c != '_').collect())
}

/// Reads `1000`, `+1_000`, `0100`, `1000.00`.
fn int_text(text: &str) -> Option<i64> {
    let text = text.trim();
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let digits = match rest.split_once('.') {
        Some((digits, zeros)) if !zeros.is_empty() && zeros.bytes().all(|b| b == b'0') => digits,
        Some(_) => return None,
        None => rest,
    };
    let digits = without_underscores(digits)?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let size = digits
        .bytes()
        .fold(0_i64, |sum, digit| sum.saturating_mul(10).saturating_add(i64::from(digit - b'0')));
    Some(if negative { -size } else { size })
}

fn bounded_int(field: &Field, min: i64, max: i64, value: &Value, at: &mut At<'_>) -> Option<i64> {
    let int = int(value, at)?;
    if let Some(modulus) = field.modulus.filter(|modulus| modulus.remainder == 0 && !modulus.holds(int)) {
        let divisor = modulus.divisor;
        note_bound(
            "multiple_of",
            format!("be a multiple of {divisor}"),
            "multiple_of",
            divisor.into(),
            value,
            at,
        );
    } else if int > max {
        note_bound("less_than_equal", format!("be less than or equal to {max}"), "le", max.into(), value, at);
    } else if int < min {
        note_bound(
            "greater_than_equal",
            format!("be greater than or equal to {min}"),
            "ge",
            min.into(),
            value,
            at,
        );
    } else if field.modulus.is_some_and(|modulus| !modulus.holds(int)) {
        let rule = remainder_text(field);
        at.problems.push(Problem::value_error(at.loc.clone(), rule, value));
    } else {
        return Some(int);
    }
    None
}

/// The message of a broken remainder rule, legal values included.
fn remainder_text(field: &Field) -> String {
    let legal: Vec<String> = field.legal_ints().iter().map(ToString::to_string).collect();
    format!("{} must be one more than a multiple of 8: {}", field.name, or_list(&legal))
}

/// `a, b or c`.
pub(crate) fn or_list(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

fn note_bound(
    kind: &'static str,
    be: String,
    key: &'static str,
    bound: Value,
    value: &Value,
    at: &mut At<'_>,
) {
    let problem = at.note(kind, format!("Input should {be}"), value);
    problem.ctx.get_or_insert_default().insert(key.to_owned(), bound);
}

/// A number; a text may spell infinity and NaN, as in Python.
fn number(value: &Value, at: &mut At<'_>) -> Option<f64> {
    let (kind, msg) = match value {
        Value::Bool(value) => return Some(f64::from(u8::from(*value))),
        Value::Number(number) => return number.as_f64(),
        Value::String(text) => match without_underscores(text.trim()).and_then(|text| text.parse().ok()) {
            Some(number) => return Some(number),
            None => ("float_parsing", "Input should be a valid number, unable to parse string as a number"),
        },
        _ => ("float_type", "Input should be a valid number"),
    };
    at.note(kind, msg, value);
    None
}

fn bounded_number(min: f64, max: f64, value: &Value, at: &mut At<'_>) -> Option<f64> {
    let number = number(value, at)?;
    // NaN is within no bound, and pydantic looks at the upper one first
    if !number.le(&max) {
        note_bound("less_than_equal", format!("be less than or equal to {max}"), "le", max.into(), value, at);
    } else if number < min {
        note_bound(
            "greater_than_equal",
            format!("be greater than or equal to {min}"),
            "ge",
            min.into(),
            value,
            at,
        );
    } else {
        return Some(number);
    }
    None
}

fn note_choice(words: &[String], value: &Value, at: &mut At<'_>) {
    let expected = or_list(words);
    let problem = at.note("literal_error", format!("Input should be {expected}"), value);
    problem.ctx.get_or_insert_default().insert("expected".to_owned(), expected.into());
}

/// One of some whole numbers. Texts that spell one count too: fal's page prints the default of `rank` in quotes.
fn int_choice(choices: &[i64], value: &Value, at: &mut At<'_>) -> Option<i64> {
    let found = match value {
        Value::Number(number) => whole(number).ok(),
        Value::String(text) if text.len() <= MAX_INT_DIGITS => int_text(text),
        _ => None,
    };
    let chosen = found.filter(|int| choices.contains(int));
    if chosen.is_none() {
        note_choice(&choices.iter().map(ToString::to_string).collect::<Vec<_>>(), value, at);
    }
    chosen
}

fn text_choice(choices: &[&'static str], value: &Value, at: &mut At<'_>) -> Option<&'static str> {
    let chosen = value.as_str().and_then(|text| choices.iter().find(|choice| **choice == text));
    if chosen.is_none() {
        note_choice(&choices.iter().map(|choice| format!("'{choice}'")).collect::<Vec<_>>(), value, at);
    }
    chosen.copied()
}

/// The entries of a list, or the problem.
pub(crate) fn list<'v>(value: &'v Value, at: &mut At<'_>) -> Option<&'v [Value]> {
    match value {
        Value::Array(items) => Some(items),
        other => {
            at.note("list_type", "Input should be a valid list", other);
            None
        }
    }
}

/// More entries than kiln takes: fal's own type, since no schema of the family names a limit.
pub(crate) fn within(max_length: usize, items: &[Value], what: &str, at: &mut At<'_>) -> bool {
    if items.len() <= max_length {
        return true;
    }
    let msg = format!("Give at most {max_length} {what}, not {}", items.len());
    let mut problem = Problem::fal(&FalError::SequenceTooLong { max_length }, at.loc.clone(), msg);
    problem.input = Some(echo(&Value::from(items.len())));
    at.problems.push(problem);
    false
}

/// A list of exactly two. Like pydantic: too many is said at once, too few only when every entry is sound.
fn pair(
    value: &Value,
    at: &mut At<'_>,
    entry: impl Fn(&Value, &mut At<'_>) -> Option<Value>,
) -> Option<Value> {
    let items = list(value, at)?;
    let note = |kind, limit: &str, key: &str, at: &mut At<'_>| {
        let plain = format!("List should have {limit} 2 items after validation, not {}", items.len());
        let ctx = at.note(kind, plain, value).ctx.get_or_insert_default();
        ctx.insert("field_type".to_owned(), "List".into());
        ctx.insert(key.to_owned(), 2.into());
        ctx.insert("actual_length".to_owned(), items.len().into());
    };
    if items.len() > 2 {
        note("too_long", "at most", "max_length", at);
        return None;
    }
    let entries: Vec<_> =
        items.iter().enumerate().map(|(index, item)| entry(item, &mut at.down(index))).collect();
    let entries: Vec<Value> = entries.into_iter().collect::<Option<_>>()?;
    if entries.len() < 2 {
        note("too_short", "at least", "min_length", at);
        return None;
    }
    Some(Value::Array(entries))
}

fn time_ranges(value: &Value, at: &mut At<'_>) -> Option<Value> {
    let items = list(value, at)?;
    if !within(MAX_TIME_RANGES, items, "time ranges", at) {
        return None;
    }
    let ranges: Vec<_> = items
        .iter()
        .enumerate()
        .map(|(index, range)| {
            pair(range, &mut at.down(index), |value, at| {
                let number = number(value, at)?;
                if !number.is_finite() {
                    at.note("finite_number", "Input should be a finite number", value);
                    return None;
                }
                Some(number.into())
            })
        })
        .collect();
    ranges.into_iter().collect::<Option<Vec<_>>>().map(Value::Array)
}
