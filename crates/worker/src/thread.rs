//! The thread that owns the trainer, and with it the device.

use crate::{Context, Error, Job, Stop, Trainer};
use spec::Outcome;
use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};
use tokio::sync::{mpsc, oneshot};

/// Dropping a long chain of tensors and their gradients recurses: 10 000 operations overflow the usual 2 MiB.
const STACK_BYTES: usize = 64 * 1024 * 1024;

/// Builds the trainer on its thread; built again after a panic, since nobody knows what state that one left.
pub(crate) type Build =
    Box<dyn FnMut() -> Result<Box<dyn Trainer>, Box<dyn std::error::Error + Send + Sync>> + Send>;

type Ended = Result<Outcome, Stop>;

/// The async side's end of the thread.
pub(crate) struct TrainerThread {
    jobs: mpsc::Sender<(Job, Context, oneshot::Sender<Ended>)>,
    paths: Vec<&'static str>,
}

impl TrainerThread {
    /// Starts the thread and waits until the trainer is built.
    pub(crate) async fn start(mut build: Build) -> Result<TrainerThread, Error> {
        let (jobs, mut queue) = mpsc::channel::<(Job, Context, oneshot::Sender<Ended>)>(1);
        let (ready, built) = oneshot::channel();
        std::thread::Builder::new()
            .name("trainer".into())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let mut trainer = match build() {
                    Ok(trainer) => {
                        let _ = ready.send(Ok(trainer.paths()));
                        Some(trainer)
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                        return;
                    }
                };
                while let Some((job, context, answer)) = queue.blocking_recv() {
                    let ended = run(&mut trainer, &mut build, &job, &context);
                    let _ = answer.send(ended);
                }
            })
            .map_err(|error| Error::Thread(error.to_string()))?;
        let paths = built.await.map_err(|_| Error::Thread("it ended while it started".into()))?;
        Ok(TrainerThread { jobs, paths: paths.map_err(Error::Trainer)? })
    }

    /// The paths the trainer takes.
    pub(crate) fn paths(&self) -> &[&'static str] {
        &self.paths
    }

    /// Hands a job over; the receiver gets what became of it. One job at a time.
    pub(crate) async fn run(&self, job: Job, context: Context) -> Result<oneshot::Receiver<Ended>, Error> {
        let (answer, ended) = oneshot::channel();
        self.jobs
            .send((job, context, answer))
            .await
            .map_err(|_| Error::Thread("it ended before the worker did".into()))?;
        Ok(ended)
    }
}

fn run(trainer: &mut Option<Box<dyn Trainer>>, build: &mut Build, job: &Job, context: &Context) -> Ended {
    let mut alive = match trainer.take() {
        Some(alive) => alive,
        None => build().map_err(Stop::Bug)?,
    };
    match catch_unwind(AssertUnwindSafe(|| alive.run(job, context))) {
        Ok(ended) => {
            *trainer = Some(alive);
            ended
        }
        Err(panic) => {
            // Its own drop may panic as well; that one changes nothing any more.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(alive)));
            Err(Stop::Bug(format!("the trainer panicked: {}", words(panic.as_ref())).into()))
        }
    }
}

fn words(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
