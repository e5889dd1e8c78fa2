//! Writes what a trainer tells into the job's row and its log, in batches, under the attempt's lease.

use crate::{
    flag::{StopFlag, Why},
    trainer::Report,
};
use serde_json::Value;
use spec::{Level, LogLine, Progress};
use std::time::Duration;
use store::{Error, Lease, Store};
use tokio::{
    sync::mpsc::UnboundedReceiver,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// Pause between two writes: a person following the log sees it as at once, and the table hardly notices.
const PACE: Duration = Duration::from_millis(500);

/// Longest message kept, in characters.
const MESSAGE_CHARS: usize = 2000;

/// Collects reports and writes them.
pub(crate) struct Reporter {
    store: Store,
    lease: Lease,
    flag: StopFlag,
    budget: Budget,
    lines: Vec<LogLine>,
    /// The newest place, and whether it is not written yet.
    place: Option<Progress>,
    moved: bool,
    state: Option<Value>,
}

impl Reporter {
    pub(crate) fn new(store: Store, lease: Lease, flag: StopFlag, log_lines: usize) -> Reporter {
        Reporter {
            store,
            lease,
            flag,
            budget: Budget::new(log_lines),
            lines: Vec::new(),
            place: None,
            moved: false,
            state: None,
        }
    }

    /// Takes reports until `ended`, then writes what is left. Returns early, with what is left thrown away, when the
    /// lease is lost.
    pub(crate) async fn run(mut self, mut reports: UnboundedReceiver<Report>, ended: CancellationToken) {
        let mut next = Instant::now();
        while self.flag.why() != Some(Why::Lost) {
            tokio::select! {
                biased;
                () = sleep_until(next), if self.pending() => {
                    self.write().await;
                    next = Instant::now() + PACE;
                }
                report = reports.recv() => match report {
                    Some(report) => self.take(report),
                    None => break,
                },
                () = ended.cancelled() => break,
            }
        }
        reports.close();
        while let Ok(report) = reports.try_recv() {
            self.take(report);
        }
        while self.pending() && self.flag.why() != Some(Why::Lost) && !self.write().await {
            tokio::time::sleep(PACE).await;
        }
    }

    fn take(&mut self, report: Report) {
        match report {
            Report::Line(line) => self.lines.extend(self.budget.admit(line)),
            Report::Progress(progress) => {
                self.moved |= self.place != Some(progress);
                self.place = Some(progress);
            }
            Report::State(pointer) => self.state = Some(pointer),
        }
    }

    fn pending(&self) -> bool {
        !self.lines.is_empty() || self.moved || self.state.is_some()
    }

    /// Writes what is pending; false when the database could not be reached and it must be tried again.
    async fn write(&mut self) -> bool {
        let written = self.try_write().await;
        match written {
            Ok(()) => true,
            Err(Error::LeaseLost) => {
                self.flag.set(Why::Lost);
                true
            }
            Err(Error::Unavailable(error)) => {
                tracing::warn!(%error, "log lines and progress wait for the database");
                false
            }
            Err(error) => {
                // A line that the database refuses must not end a training.
                tracing::error!(%error, lines = self.lines.len(), "log lines or progress could not be written");
                self.lines.clear();
                self.moved = false;
                self.state = None;
                true
            }
        }
    }

    async fn try_write(&mut self) -> Result<(), Error> {
        if !self.lines.is_empty() {
            self.store.append(&self.lease, &self.lines).await?;
            self.lines.clear();
        }
        if let (true, Some(place)) = (self.moved, self.place) {
            self.store.progress(&self.lease, place).await?;
            self.moved = false;
        }
        if let Some(pointer) = &self.state {
            self.store.set_state_pointer(&self.lease, pointer).await?;
            self.state = None;
        }
        Ok(())
    }
}

/// How many lines an attempt may still write. Clients poll all of them, several times a second.
#[derive(Debug)]
struct Budget {
    left: usize,
    /// For warnings and errors after the rest is used up.
    reserve: usize,
    limit: usize,
    told: bool,
}

impl Budget {
    fn new(limit: usize) -> Budget {
        Budget { left: limit, reserve: (limit / 8).max(1), limit, told: false }
    }

    /// The line, made fit for storing; or the sentence that lines are left out from here on; or nothing.
    fn admit(&mut self, line: LogLine) -> Option<LogLine> {
        if self.left > 0 {
            self.left -= 1;
            return Some(fit(line));
        }
        if matches!(line.level, Level::Warn | Level::Error) && self.reserve > 0 {
            self.reserve -= 1;
            return Some(fit(line));
        }
        if self.told {
            return None;
        }
        self.told = true;
        let message = format!("Further log lines are left out: this attempt wrote {} of them.", self.limit);
        Some(LogLine { message, level: Level::Warn, at: line.at, data: None })
    }
}

/// Cuts an overlong message and takes out the one character that Postgres cannot keep.
fn fit(mut line: LogLine) -> LogLine {
    if line.message.contains('\0') {
        line.message = line.message.replace('\0', "\u{fffd}");
    }
    if let Some((at, _)) = line.message.char_indices().nth(MESSAGE_CHARS) {
        line.message.truncate(at);
        line.message.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::{Budget, MESSAGE_CHARS};
    use chrono::DateTime;
    use spec::{Level, LogLine};

    fn line(level: Level, message: &str) -> LogLine {
        LogLine { message: message.into(), level, at: DateTime::UNIX_EPOCH, data: None }
    }

    #[test]
    fn lines_beyond_the_budget_are_left_out_with_one_sentence_and_warnings_still_pass() {
        let mut budget = Budget::new(16);
        let mut kept = Vec::new();
        for i in 0..40 {
            kept.extend(budget.admit(line(Level::Info, &format!("step {i}"))));
        }
        for i in 0..5 {
            kept.extend(budget.admit(line(Level::Error, &format!("error {i}"))));
        }
        let messages: Vec<&str> = kept.iter().map(|line| line.message.as_str()).collect();
        assert_eq!(messages.len(), 16 + 1 + 2, "{messages:?}");
        assert_eq!(messages[15], "step 15");
        assert_eq!(messages[16], "Further log lines are left out: this attempt wrote 16 of them.");
        assert_eq!(messages[17..], ["error 0", "error 1"]);
    }

    #[test]
    fn a_message_is_made_fit_for_storing() {
        let mut budget = Budget::new(16);
        let kept = budget.admit(line(Level::Info, &format!("a\0{}", "ä".repeat(5000)))).expect("admitted");
        assert_eq!(kept.message.chars().count(), MESSAGE_CHARS + 1);
        assert!(kept.message.starts_with("a\u{fffd}ä") && kept.message.ends_with("ä…"));
    }
}
