//! A trainer that does what the request says, for tests of everything around training.
//!
//! The request's `trigger_phrase` holds a JSON array of [`Act`]s, done in order; the job then completes with an empty
//! weights file and with the script as its configuration. A request without one takes three quick steps. Example:
//!
//! ```json
//! [{"phase": "train"}, {"steps": 20, "ms": 50}, {"log": "almost"}, {"fail": "archive"}]
//! ```

use anyhow::Context as _;
use files::Address;
use objects::{Key, Objects};
use serde::Deserialize;
use spec::{Failure, FalError, File, Level, Outcome, Phase, Progress, RequestErrorKind};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use worker::{Context, Job, Stop, Trainer};

/// How often a wait looks at the stop flag.
const LOOK: Duration = Duration::from_millis(10);

/// One line of a script.
#[derive(Debug, Clone, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case", untagged, deny_unknown_fields)]
pub enum Act {
    /// The next phase begins.
    Phase {
        /// Which.
        phase: Phase,
    },
    /// So many steps, each with its progress and a log line, stopping when asked to.
    Steps {
        /// How many.
        steps: u64,
        /// Milliseconds for each.
        #[serde(default)]
        ms: u64,
    },
    /// A wait that stops when asked to.
    Sleep {
        /// Milliseconds.
        sleep: u64,
    },
    /// A wait that does not look at the stop flag.
    Hang {
        /// Milliseconds.
        hang: u64,
    },
    /// One log line.
    Log {
        /// Its message.
        log: String,
        /// Its level; INFO when absent.
        #[serde(default)]
        level: Option<Level>,
    },
    /// Many log lines at once.
    Lines {
        /// How many.
        lines: u64,
    },
    /// The end of the job, without an outcome.
    Fail {
        /// How.
        fail: Fault,
    },
    /// A panic.
    Panic {
        /// Its message.
        panic: String,
    },
    /// The end of the worker process, as a crash would end it.
    Abort {
        /// Only on this attempt; later ones go on with the script.
        abort: i32,
    },
    /// Leaves a word in the scratch folder, or logs the one that an earlier attempt left there.
    Remember {
        /// The word.
        remember: String,
    },
}

/// Ways for a scripted job to fail.
#[derive(Debug, Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The archive cannot be read: the user's fault, 422.
    Archive,
    /// An address in the request cannot be reached: the user's fault, 422.
    Download,
    /// The machine failed: another attempt may succeed.
    Retry,
    /// The trainer has a bug: 500 with an id.
    Bug,
}

/// The smallest file in the format of weights: a header without tensors.
const NO_WEIGHTS: &[u8] = b"\x02\0\0\0\0\0\0\0{}";

/// The trainer.
pub struct ScriptedTrainer {
    objects: Objects,
    runtime: Runtime,
}

impl ScriptedTrainer {
    /// A trainer that puts its jobs' files into the storage.
    ///
    /// # Errors
    /// When there is no room for a runtime.
    pub fn new(objects: Objects) -> std::io::Result<ScriptedTrainer> {
        Ok(ScriptedTrainer { objects, runtime: tokio::runtime::Builder::new_current_thread().build()? })
    }
}

impl Trainer for ScriptedTrainer {
    fn paths(&self) -> Vec<&'static str> {
        spec::modes().iter().map(|mode| mode.path).collect()
    }

    fn run(&mut self, job: &Job, context: &Context) -> Result<Outcome, Stop> {
        for act in script(&job.spec.trigger_phrase)? {
            perform(&act, job, context)?;
        }
        context.phase(Phase::Publish);
        self.publish(job).map_err(|error| Stop::Bug(error.into()))
    }
}

fn script(trigger_phrase: &str) -> Result<Vec<Act>, Stop> {
    if trigger_phrase.trim().is_empty() {
        return Ok(vec![Act::Phase { phase: Phase::Train }, Act::Steps { steps: 3, ms: 10 }]);
    }
    serde_json::from_str(trigger_phrase)
        .map_err(|error| Stop::Bug(format!("the script cannot be read: {error}").into()))
}

fn perform(act: &Act, job: &Job, context: &Context) -> Result<(), Stop> {
    match act {
        Act::Phase { phase } => context.phase(*phase),
        Act::Steps { steps, ms } => {
            for done in 1..=*steps {
                wait(Duration::from_millis(*ms), context)?;
                context.progress(Progress { phase: Phase::Train, done, total: *steps });
                context.log(Level::Info, format!("step {done} of {steps}"));
            }
        }
        Act::Sleep { sleep } => wait(Duration::from_millis(*sleep), context)?,
        Act::Hang { hang } => std::thread::sleep(Duration::from_millis(*hang)),
        Act::Log { log, level } => context.log(level.unwrap_or(Level::Info), log.clone()),
        Act::Lines { lines } => {
            for line in 1..=*lines {
                context.log(Level::Info, format!("line {line}"));
            }
        }
        Act::Fail { fail } => return Err(failed(*fail)),
        Act::Panic { panic } => panic!("{panic}"),
        Act::Abort { abort } => {
            if job.attempt == *abort {
                // What was said before reaches the job's log, as it would in a crash some seconds later.
                std::thread::sleep(Duration::from_secs(1));
                std::process::abort();
            }
        }
        Act::Remember { remember } => {
            let path = context.scratch().join("remembered");
            match std::fs::read_to_string(&path) {
                Ok(word) => context.log(Level::Info, format!("found {word}")),
                Err(_) => std::fs::write(&path, remember).map_err(|error| Stop::Bug(error.into()))?,
            }
        }
    }
    Ok(())
}

fn wait(time: Duration, context: &Context) -> Result<(), Stop> {
    let started = Instant::now();
    loop {
        context.check()?;
        let left = time.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(LOOK));
    }
}

fn failed(fault: Fault) -> Stop {
    let loc = || spec::at("training_data_url");
    match fault {
        Fault::Archive => {
            let error = FalError::InvalidArchive { supported_extensions: vec![".zip".into()] };
            Failure::fal(&error, loc(), "The archive cannot be read").into()
        }
        Fault::Download => {
            Failure::fal(&FalError::FileDownloadError, loc(), "The address cannot be reached").into()
        }
        Fault::Retry => Stop::Retry {
            failure: Failure::request(RequestErrorKind::RunnerServerError, "The worker's disk is full"),
            cause: "scripted: no space left".into(),
        },
        Fault::Bug => Stop::Bug("scripted: a secret of the machine".into()),
    }
}

impl ScriptedTrainer {
    fn publish(&self, job: &Job) -> anyhow::Result<Outcome> {
        let script = job.spec.trigger_phrase.as_bytes();
        Ok(Outcome {
            video: None,
            audio: None,
            lora_file: self.put(job, "lora.safetensors", "application/octet-stream", NO_WEIGHTS)?,
            config_file: self.put(job, "config.json", "application/json", script)?,
            debug_dataset: None,
        })
    }

    fn put(&self, job: &Job, name: &str, kind: &str, bytes: &[u8]) -> anyhow::Result<File> {
        let key = Key::job(job.id, job.attempt, name);
        let stored = self.objects.put(&key, bytes.to_vec().into());
        self.runtime.block_on(stored).with_context(|| format!("{name} cannot be stored"))?;
        Ok(File {
            url: Address::output(job.id, job.attempt, name).reference(),
            content_type: Some(kind.to_owned()),
            file_name: Some(name.to_owned()),
            file_size: Some(bytes.len() as u64),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Act, Fault, script};
    use spec::{Level, Phase};

    #[test]
    fn a_script_is_read_as_it_is_written() {
        let acts = script(
            r#"[{"phase": "train"}, {"steps": 2, "ms": 5}, {"sleep": 1}, {"hang": 2}, {"log": "a"},
                {"log": "b", "level": "WARN"}, {"lines": 3}, {"fail": "retry"}, {"panic": "p"}, {"abort": 1}]"#,
        )
        .expect("reads");
        assert_eq!(
            acts,
            [
                Act::Phase { phase: Phase::Train },
                Act::Steps { steps: 2, ms: 5 },
                Act::Sleep { sleep: 1 },
                Act::Hang { hang: 2 },
                Act::Log { log: "a".into(), level: None },
                Act::Log { log: "b".into(), level: Some(Level::Warn) },
                Act::Lines { lines: 3 },
                Act::Fail { fail: Fault::Retry },
                Act::Panic { panic: "p".into() },
                Act::Abort { abort: 1 },
            ]
        );
        assert!(script(r#"[{"slep": 1}]"#).is_err());
    }
}
