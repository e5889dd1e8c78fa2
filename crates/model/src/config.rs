//! Reading a component's configuration: every value is checked, every refusal names the key.

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Upper limit of every size in a configuration: far above any real model, far below overflow of a product.
const MAX_SIZE: u64 = 1 << 20;

/// One object of a configuration, with the path that leads to it.
#[derive(Debug, Clone, Copy)]
pub struct Section<'a> {
    object: &'a Map<String, Value>,
    path: &'a str,
}

impl<'a> Section<'a> {
    /// The object at `path` below `root`, keys joined by dots (`vocoder.bwe`). An empty path is the root.
    ///
    /// # Errors
    /// `Config` when it is missing or no object.
    pub fn of(root: &'a Value, path: &'a str) -> Result<Self> {
        let mut keys = path.split('.').filter(|key| !key.is_empty());
        let found = keys.try_fold(root, |at, key| at.get(key));
        match found {
            Some(Value::Object(object)) => Ok(Self { object, path }),
            Some(other) => Err(Error::config(path, format!("expected an object, found {}", shown(other)))),
            None => Err(Error::config(path, "missing")),
        }
    }

    /// The value of `key`, if there is one. `null` counts as absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn full(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// A [`Error::Config`] about `key`.
    pub fn refuse(&self, key: &str, problem: impl Into<String>) -> Error {
        Error::config(self.full(key), problem)
    }

    fn need<T>(&self, key: &str, kind: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Result<T> {
        let value = self.get(key).ok_or_else(|| self.refuse(key, format!("missing; expected {kind}")))?;
        read(value).ok_or_else(|| self.refuse(key, format!("expected {kind}, found {}", shown(value))))
    }

    /// A size: an integer from 1 to 2^20.
    ///
    /// # Errors
    /// `Config` when missing or something else.
    pub fn size(&self, key: &str) -> Result<usize> {
        self.need(key, "a positive integer", size)
    }

    /// A size, `default` when absent.
    ///
    /// # Errors
    /// `Config` when present and something else.
    pub fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.get(key).is_some() { self.size(key) } else { Ok(default) }
    }

    /// A list of sizes.
    ///
    /// # Errors
    /// `Config` when missing or something else.
    pub fn sizes(&self, key: &str) -> Result<Vec<usize>> {
        self.need(key, "a list of positive integers", |v| {
            v.as_array().filter(|list| list.len() <= 64)?.iter().map(size).collect()
        })
    }

    /// A finite number.
    ///
    /// # Errors
    /// `Config` when missing or something else.
    pub fn number(&self, key: &str) -> Result<f64> {
        self.need(key, "a number", |v| v.as_f64().filter(|n| n.is_finite()))
    }

    /// A finite number above zero.
    ///
    /// # Errors
    /// `Config` when missing or something else.
    pub fn positive(&self, key: &str) -> Result<f64> {
        self.need(key, "a positive number", |v| v.as_f64().filter(|n| n.is_finite() && *n > 0.0))
    }

    /// A list of positive numbers.
    ///
    /// # Errors
    /// `Config` when missing or something else.
    pub fn numbers(&self, key: &str) -> Result<Vec<f64>> {
        self.need(key, "a list of positive numbers", |v| {
            let list = v.as_array().filter(|list| list.len() <= 64)?;
            list.iter().map(|n| n.as_f64().filter(|n| n.is_finite() && *n > 0.0)).collect()
        })
    }

    /// A text.
    ///
    /// # Errors
    /// `Config` when missing or something else.
    pub fn text(&self, key: &str) -> Result<&'a str> {
        self.need(key, "a text", Value::as_str)
    }

    /// A truth value.
    ///
    /// # Errors
    /// `Config` when missing or something else.
    pub fn flag(&self, key: &str) -> Result<bool> {
        self.need(key, "true or false", Value::as_bool)
    }

    /// A truth value, `default` when absent.
    ///
    /// # Errors
    /// `Config` when present and something else.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        if self.get(key).is_some() { self.flag(key) } else { Ok(default) }
    }

    /// Requires the only value this program implements.
    ///
    /// # Errors
    /// `Config` when missing or another value.
    pub fn require(&self, key: &str, supported: impl Into<Value>) -> Result<()> {
        let supported = supported.into();
        match self.get(key) {
            Some(found) if same(found, &supported) => Ok(()),
            Some(found) => {
                Err(self
                    .refuse(key, format!("found {}, only {} is supported", shown(found), shown(&supported))))
            }
            None => Err(self.refuse(key, format!("missing; only {} is supported", shown(&supported)))),
        }
    }

    /// Requires the only value this program implements, where absence means that value too.
    ///
    /// # Errors
    /// `Config` when present with another value.
    pub fn require_or_absent(&self, key: &str, supported: impl Into<Value>) -> Result<()> {
        if self.get(key).is_some() { self.require(key, supported) } else { Ok(()) }
    }
}

fn size(value: &Value) -> Option<usize> {
    let n = value.as_u64().or_else(|| {
        // Some writers turn integers into floats.
        let n = value.as_f64()?;
        (n.fract() == 0.0 && n >= 0.0 && n <= MAX_SIZE as f64).then_some(n as u64)
    })?;
    (1..=MAX_SIZE).contains(&n).then_some(n as usize)
}

/// Equality in which 1 and 1.0 are the same.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// A value for a message, cut to a readable length.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}
