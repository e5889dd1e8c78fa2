//! What a training request is: modes, fields, rules, failures. Pure data.
//!
//! The 23 trainer paths are rows of one table ([`modes`]); every row names its streams' roles and conditions, its
//! dataset layout, its adapter targets, its request fields and what a preview of it needs. Parsing
//! ([`parse`], [`parse_body`]), the published schemas ([`schema`]) and `docs/MODES.md` are made from that table, so a
//! fact about a mode is written down once.
//!
//! Main types: [`Mode`], [`Field`], [`TrainSpec`] (a checked request), [`Problem`] (one thing wrong with it, in fal's
//! words), [`Failure`] (how a request ended badly), [`Outcome`] (how it ended well), [`event`] (what happens between).
//!
//! Invariants: no I/O, no clock, no tensors, no SQL, no HTTP. No other crate compares mode names: it reads roles,
//! conditions, layouts and fields. Failures become status codes and bodies here and nowhere else.

mod coerce;
pub mod condition;
mod echo;
pub mod event;
mod failure;
mod fal_error;
pub mod field;
pub mod geometry;
mod json_error;
pub mod layout;
mod mode;
mod modes;
mod outcome;
mod parse;
mod problem;
mod rules;
pub mod schema;
mod train_spec;

pub use condition::Condition;
pub use event::{Level, LogLine, Phase, Progress};
pub use failure::{Failure, RequestErrorKind};
pub use fal_error::FalError;
pub use field::Field;
pub use layout::Layout;
pub use mode::{Mode, Preview, PreviewOutput, Role, Rule, Targets};
pub use modes::{find, modes};
pub use outcome::{File, Outcome};
pub use parse::{MAX_VALIDATION_ITEMS, parse, parse_body, read_json};
pub use problem::{Loc, Problem, Problems, at};
pub use train_spec::{AspectRatio, Resolution, TrainSpec, ValidationItem};

/// Owner segment of every endpoint id.
pub const OWNER: &str = "fal-ai";
/// Application segment of every endpoint id; the queue's request routes are `/{OWNER}/{ALIAS}/requests/…`.
pub const ALIAS: &str = "ltx23-trainer-v2";
