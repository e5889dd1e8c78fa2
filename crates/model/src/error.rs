//! What can go wrong while a model is opened, built or run.

use std::{fmt, path::PathBuf};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Failures by what the caller can do about them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read: look at the path and its permissions.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A file is not the safetensors or JSON file it should be: fetch it again.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, naming the tensor where one is concerned.
        reason: String,
    },
    /// A configuration value is missing or one this program does not support: another model is needed.
    #[error("config key `{key}`: {problem}")]
    Config {
        /// The key with its path, as in `transformer.rope_type`.
        key: String,
        /// What was found and what is supported.
        problem: String,
    },
    /// Tensors are missing, surplus, misshaped or of an unusable type: all of them in one error.
    #[error("{0}")]
    Tensors(Box<TensorProblems>),
    /// One tensor cannot be used.
    #[error("tensor `{name}`: {problem}")]
    Tensor {
        /// Its full name in the file.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An argument of a forward pass does not fit the model.
    #[error("input `{name}`: {problem}")]
    Input {
        /// The argument.
        name: String,
        /// Expected and found.
        problem: String,
    },
    /// The caller asked to stop: drop what was begun.
    #[error("stopped on request")]
    Stopped,
    /// The tensor library refused an operation.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// A [`Error::Config`] for `key`.
    pub fn config(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Config { key: key.into(), problem: problem.into() }
    }

    /// A [`Error::Tensor`] for the tensor `name`.
    pub fn tensor(name: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Tensor { name: name.into(), problem: problem.into() }
    }

    /// A [`Error::Input`] for the argument `name`.
    pub fn input(name: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Input { name: name.into(), problem: problem.into() }
    }

    /// A [`Error::Format`] for the file at `path`.
    pub fn format(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Format { path: path.into(), reason: reason.into() }
    }

    /// A [`Error::Io`] for the file at `path`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// Everything by which a file's tensors differ from what the builders ask for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TensorProblems {
    /// The file or folder that was checked.
    pub path: PathBuf,
    /// The component that was checked, in words.
    pub component: String,
    /// Asked for and not in the file; full names.
    pub missing: Vec<String>,
    /// In the file and asked for by nothing; full names.
    pub surplus: Vec<String>,
    /// Name, expected shape, shape in the file.
    pub misshaped: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// Name and stored type of tensors whose type cannot be computed with.
    pub unusable: Vec<(String, String)>,
}

impl TensorProblems {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty()
            && self.surplus.is_empty()
            && self.misshaped.is_empty()
            && self.unusable.is_empty()
    }
}

/// Names printed per kind of problem; the rest is counted, so that a hostile file cannot fill a log.
const NAMES_SHOWN: usize = 10_000;

impl fmt::Display for TensorProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, component, missing, surplus, misshaped, unusable } = self;
        write!(
            f,
            "{}: the tensors of the {component} do not fit ({} missing, {} surplus, {} misshaped, {} of an \
             unusable type)",
            path.display(),
            missing.len(),
            surplus.len(),
            misshaped.len(),
            unusable.len()
        )?;
        list(f, missing, |f, name| write!(f, "missing {name}"))?;
        list(f, surplus, |f, name| write!(f, "surplus {name}"))?;
        list(f, misshaped, |f, (name, want, got)| {
            write!(f, "misshaped {name}: expected {want:?}, found {got:?}")
        })?;
        list(f, unusable, |f, (name, dtype)| write!(f, "unusable {name}: stored as {dtype}"))
    }
}

fn list<T>(
    f: &mut fmt::Formatter<'_>,
    items: &[T],
    line: impl Fn(&mut fmt::Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    for item in items.iter().take(NAMES_SHOWN) {
        f.write_str("\n  ")?;
        line(f, item)?;
    }
    match items.len().checked_sub(NAMES_SHOWN) {
        Some(rest) if rest > 0 => write!(f, "\n  … and {rest} more"),
        _ => Ok(()),
    }
}
