//! What happens to a job while it runs: phases, progress, log lines.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// Level of a log line; the wire spells it in capitals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// Detail for the curious.
    Debug,
    /// What is happening.
    Info,
    /// Odd, but the job goes on.
    Warn,
    /// Why the job ends.
    Error,
    /// Raw output of a program.
    Stdout,
    /// Raw error output of a program.
    Stderr,
}

impl Level {
    /// Every level.
    pub const ALL: [Level; 6] =
        [Self::Debug, Self::Info, Self::Warn, Self::Error, Self::Stdout, Self::Stderr];

    /// The wire's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
            Self::Stdout => "STDOUT",
            Self::Stderr => "STDERR",
        }
    }

    /// Reads the wire's word.
    pub fn from_word(word: &str) -> Option<Level> {
        Self::ALL.into_iter().find(|level| level.as_str() == word)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One line of a job's log, for the user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// The sentence.
    pub message: String,
    /// How loud.
    pub level: Level,
    /// When, by the writer's clock.
    pub at: DateTime<Utc>,
    /// Numbers behind the sentence, for programs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub data: Option<Value>,
}

/// Stage of a running job, in the order they happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Bringing the archive and the validation media here.
    Fetch,
    /// Unpacking, checking, cutting.
    Prepare,
    /// Turning clips and captions into latents and contexts.
    Encode,
    /// Optimizer steps, previews included.
    Train,
    /// Writing and checking the adapter file.
    Export,
    /// Storing the results.
    Publish,
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Phase; 6] =
        [Self::Fetch, Self::Prepare, Self::Encode, Self::Train, Self::Export, Self::Publish];

    /// The word stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Prepare => "prepare",
            Self::Encode => "encode",
            Self::Train => "train",
            Self::Export => "export",
            Self::Publish => "publish",
        }
    }

    /// Reads the stored word.
    pub fn from_word(word: &str) -> Option<Phase> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == word)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How far a job is within its phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The phase.
    pub phase: Phase,
    /// Units done (clips, steps, files).
    pub done: u64,
    /// Units in all; 0 when not known yet.
    pub total: u64,
}

impl Progress {
    /// Share of the phase that is done, 0 to 1; 0 while the total is not known.
    pub fn fraction(self) -> f64 {
        if self.total == 0 { 0.0 } else { (self.done.min(self.total) as f64) / (self.total as f64) }
    }
}
