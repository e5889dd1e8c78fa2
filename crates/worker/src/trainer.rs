//! The seam between the queue and the training: what a trainer is given and what it hands back.

use crate::flag::StopFlag;
use chrono::{DateTime, Utc};
use serde_json::Value;
use spec::{Failure, Level, LogLine, Outcome, Phase, Progress, TrainSpec};
use std::{
    path::{Path, PathBuf},
    time::Instant,
};
use tokio::sync::mpsc::UnboundedSender;
use uuid::Uuid;

/// Trains one job after the other, on one thread that belongs to it.
///
/// It is built on that thread and never leaves it, so it may hold what is bound to a thread (a CUDA context) and what
/// is worth keeping between jobs (the loaded base model).
pub trait Trainer {
    /// The endpoint paths whose jobs it takes.
    fn paths(&self) -> Vec<&'static str>;

    /// Runs one job to its end, looking at the context's flag between micro-steps.
    ///
    /// # Errors
    /// Why there is no outcome, sorted by what happens next; see [`Stop`].
    fn run(&mut self, job: &Job, context: &Context) -> Result<Outcome, Stop>;
}

/// One claimed job.
#[derive(Debug, Clone)]
pub struct Job {
    /// The request's id.
    pub id: Uuid,
    /// 1 for the first start; only grows.
    pub attempt: i32,
    /// The endpoint's path.
    pub path: String,
    /// The validated request.
    pub spec: TrainSpec,
    /// When the request was submitted.
    pub created_at: DateTime<Utc>,
    /// Where an earlier attempt left its state, if it did.
    pub state_pointer: Option<Value>,
    /// The client's wishes for the output files' lifetime.
    pub lifecycle: Option<Value>,
}

/// Why a trainer ends without an outcome.
#[derive(Debug)]
pub enum Stop {
    /// It saw the context's flag and stopped.
    Asked,
    /// The job has failed for good, and this is what its client is told (bad data, a training that diverged).
    Failed(Failure),
    /// The machine or the network failed: the job goes back to the queue and counts as one worker death. The failure
    /// is what the client is told when the attempts are used up.
    Retry {
        /// For the client.
        failure: Failure,
        /// For the operator's log.
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Something that should not happen: logged with an id, the client is told the id only.
    Bug(Box<dyn std::error::Error + Send + Sync>),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        Stop::Failed(failure)
    }
}

/// What a running trainer may touch outside itself. Everything it reports is written by the async side, in batches;
/// none of the calls waits for the database.
#[derive(Debug, Clone)]
pub struct Context {
    pub(crate) flag: StopFlag,
    pub(crate) scratch: PathBuf,
    pub(crate) clock: JobClock,
    pub(crate) reports: UnboundedSender<Report>,
}

/// What a trainer tells, on its way to the database.
#[derive(Debug)]
pub(crate) enum Report {
    Line(LogLine),
    Progress(Progress),
    State(Value),
}

impl Context {
    /// The flag to look at between micro-steps.
    #[must_use]
    pub fn flag(&self) -> &StopFlag {
        &self.flag
    }

    /// # Errors
    /// [`Stop::Asked`] once the trainer should stop, so that `context.check()?` is all a loop needs.
    pub fn check(&self) -> Result<(), Stop> {
        if self.flag.is_set() { Err(Stop::Asked) } else { Ok(()) }
    }

    /// The job's own folder. A later attempt on this machine finds what this one left there.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Says which phase begins.
    pub fn phase(&self, phase: Phase) {
        self.progress(Progress { phase, done: 0, total: 0 });
    }

    /// Says how far the phase is. May be called as often as it is true: the newest one is written about once a second.
    pub fn progress(&self, progress: Progress) {
        self.send(Report::Progress(progress));
    }

    /// Writes a line into the job's log, for the user. Lines beyond the attempt's limit are left out.
    pub fn log(&self, level: Level, message: impl Into<String>) {
        self.line(level, message.into(), None);
    }

    /// Writes a line with the numbers behind it.
    pub fn log_with(&self, level: Level, message: impl Into<String>, data: Value) {
        self.line(level, message.into(), Some(data));
    }

    /// Says where the state to continue from was stored, for the next attempt.
    pub fn state_pointer(&self, pointer: Value) {
        self.send(Report::State(pointer));
    }

    fn line(&self, level: Level, message: String, data: Option<Value>) {
        self.send(Report::Line(LogLine { message, level, at: self.clock.now(), data }));
    }

    fn send(&self, report: Report) {
        // Nobody listens once the lease is lost; the trainer hears of that through its flag.
        let _ = self.reports.send(report);
    }
}

/// The database's clock, carried on by this machine's steady one since the claim: log lines of several machines agree.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JobClock {
    pub(crate) claimed_at: DateTime<Utc>,
    pub(crate) since: Instant,
}

impl JobClock {
    fn now(&self) -> DateTime<Utc> {
        self.claimed_at + self.since.elapsed()
    }
}
