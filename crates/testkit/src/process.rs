//! Child processes of a test: their output, their signals, and their end with the test.

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

/// A running program. It is killed when the value is dropped.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    log: PathBuf,
}

impl Process {
    /// Starts a program. Standard error goes to the file `log`, standard output is read by [`Process::line`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command, log: impl Into<PathBuf>) -> Result<Process> {
        let log = log.into();
        let errors = File::options().create(true).append(true).open(&log).context("the log file")?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("{command:?} cannot be started"))?;
        let out = child.stdout.take().context("standard output was asked for")?;
        let (sender, lines) = channel();
        // Reads on when nobody listens any more: a full pipe would stop the program.
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(std::io::Result::ok) {
                let _ = sender.send(line);
            }
        });
        Ok(Process { child, lines, log })
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The file that its standard error goes to.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The next line of standard output that starts with `prefix`, without it.
    ///
    /// # Errors
    /// When the program ends or the time is up before such a line; with the end of its log.
    pub fn line(&self, prefix: &str, within: Duration) -> Result<String> {
        let until = Instant::now() + within;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Some(rest) = line.strip_prefix(prefix) {
                        return Ok(rest.to_owned());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("no line {prefix:?} in {within:?}\n{}", self.log_tail())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("it ended before a line {prefix:?}\n{}", self.log_tail())
                }
            }
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.id()).ok().and_then(Pid::from_raw).context("a process id")?;
        kill_process(pid, signal).with_context(|| format!("{signal:?} to process {}", self.id()))
    }

    /// Kills it as `kill -9` does, and waits until it is gone.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When the time is up; with the end of its log.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        let until = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= until {
                bail!("process {} still runs after {within:?}\n{}", self.id(), self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The last lines of its standard error.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
        if std::thread::panicking() {
            #[expect(clippy::print_stderr, reason = "a failing test's output is where people look")]
            {
                eprintln!("--- the end of {}\n{}", self.log.display(), self.log_tail());
            }
        }
    }
}
