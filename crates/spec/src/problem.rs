//! One thing wrong with a request, in the shape fal's models answer with (`{"detail": [...]}`).
//!
//! Two families share the shape: what pydantic v2 says about fields, and fal's own types for media and archives.

use crate::echo::echo;
use crate::fal_error::FalError;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::fmt;

/// One step of the way to a value: an object key or an array index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Loc {
    /// Index in an array (or the offset of a JSON error).
    Index(usize),
    /// Key of an object.
    Key(Cow<'static, str>),
}

impl From<&'static str> for Loc {
    fn from(key: &'static str) -> Self {
        Loc::Key(Cow::Borrowed(key))
    }
}
impl From<String> for Loc {
    fn from(key: String) -> Self {
        Loc::Key(Cow::Owned(key))
    }
}
impl From<usize> for Loc {
    fn from(index: usize) -> Self {
        Loc::Index(index)
    }
}
impl fmt::Display for Loc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Loc::Index(index) => write!(f, "{index}"),
            Loc::Key(key) => f.write_str(key),
        }
    }
}

/// One problem: where, what, and of which type.
///
/// Source: fal's documentation of model errors; pydantic v2 and FastAPI for the plain ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    /// Way to the value, from `body` downwards: `["body", "validation", 0, "prompt"]`.
    pub loc: Vec<Loc>,
    /// Sentence for a person.
    pub msg: String,
    /// Machine-readable type: `missing`, `int_parsing`, `file_download_error`, …
    #[serde(rename = "type")]
    pub kind: Cow<'static, str>,
    /// Documentation of fal's own types; pydantic's have none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub url: Option<String>,
    /// Limits and alternatives, by type.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ctx: Option<Map<String, Value>>,
    /// The value that was found; `Some(Value::Null)` is a null that was sent.
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "present")]
    pub input: Option<Value>,
}

/// Reads a field that is there, null included, as `Some`.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl Problem {
    /// A problem of pydantic's family: no documentation address. Long inputs are echoed shortened.
    pub fn plain(kind: &'static str, loc: Vec<Loc>, msg: impl Into<String>, input: &Value) -> Self {
        Problem {
            loc,
            msg: msg.into(),
            kind: Cow::Borrowed(kind),
            url: None,
            ctx: None,
            input: Some(echo(input)),
        }
    }

    /// Adds one entry to `ctx`.
    #[must_use]
    pub fn with_ctx(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.ctx.get_or_insert_default().insert(key.to_owned(), value.into());
        self
    }

    /// A rule across or about values that were well formed: type `value_error`, `msg` prefixed as pydantic does.
    pub fn value_error(loc: Vec<Loc>, msg: impl fmt::Display, input: &Value) -> Self {
        Problem::plain("value_error", loc, format!("Value error, {msg}"), input).with_ctx("error", json!({}))
    }

    /// A problem of fal's own family, with its documentation address and its `ctx`.
    pub fn fal(error: &FalError, loc: Vec<Loc>, msg: impl Into<String>) -> Self {
        let kind = error.kind();
        Problem {
            loc,
            msg: msg.into(),
            kind: Cow::Borrowed(kind),
            url: Some(format!("https://docs.fal.ai/errors/#{kind}")),
            ctx: error.ctx(),
            input: None,
        }
    }

    /// Sets the echoed input, shortened when long.
    #[must_use]
    pub fn with_input(mut self, input: &Value) -> Self {
        self.input = Some(echo(input));
        self
    }

    /// Field path as people write it, without the leading `body`: `validation.0.prompt`.
    pub fn path(&self) -> String {
        let skip = usize::from(self.loc.first() == Some(&Loc::from("body")));
        self.loc[skip..].iter().map(ToString::to_string).collect::<Vec<_>>().join(".")
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path().as_str() {
            "" => f.write_str(&self.msg),
            path => write!(f, "{path}: {}", self.msg),
        }
    }
}

/// Location of a top-level request field: `["body", name]`.
pub fn at(name: &'static str) -> Vec<Loc> {
    vec![Loc::from("body"), Loc::from(name)]
}

/// Everything wrong with one request. Never empty where it stands for a refusal.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// The answer's body: `{"detail": [...]}`.
    pub fn to_body(&self) -> Value {
        json!({ "detail": self.0 })
    }

    /// True when nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One line: the first problem and how many more there are.
    pub fn line(&self) -> String {
        match self.0.as_slice() {
            [] => "Invalid request".to_owned(),
            [one] => one.to_string(),
            [first, rest @ ..] => format!("{first} (and {} more)", rest.len()),
        }
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Problems(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line())
    }
}
impl std::error::Error for Problems {}
