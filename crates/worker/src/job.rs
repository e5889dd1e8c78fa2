//! The claim loop, and one job from its claim to its last write.

use crate::{
    Context, Error, Job, Options, Stop, StopFlag, Trainer, Why, lease,
    report::Reporter,
    scratch::{self, Scratch},
    thread::{Build, TrainerThread},
    trainer::JobClock,
};
use spec::{Failure, Outcome, RequestErrorKind};
use std::time::Duration;
use store::{Claim, Requeued, Store};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use uuid::Uuid;

/// Pause before the database is asked again after it could not answer.
const BACK_OFF: Duration = Duration::from_secs(1);

/// One worker process: one trainer, one job at a time.
pub struct Worker {
    store: Store,
    options: Options,
    thread: TrainerThread,
}

impl Worker {
    /// Builds the trainer on its thread and prepares the scratch folder. Nothing is claimed yet.
    ///
    /// `build` is called again after a trainer panicked.
    ///
    /// # Errors
    /// [`Error::Trainer`] with what the trainer said, [`Error::Scratch`] when the folder cannot be used.
    pub async fn start(
        store: Store,
        options: Options,
        build: impl FnMut() -> Result<Box<dyn Trainer>, Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    ) -> Result<Worker, Error> {
        let removed = scratch::prepare(&options.scratch)?;
        if removed > 0 {
            tracing::info!(removed, "removed scratch folders of forgotten jobs");
        }
        let build: Build = Box::new(build);
        let thread = TrainerThread::start(build).await?;
        Ok(Worker { store, options, thread })
    }

    /// Claims and runs jobs until the shutdown. A running job is then stopped and handed back.
    ///
    /// # Errors
    /// [`Error::Thread`] when the trainer's thread died. A database that is away is waited for.
    pub async fn run(&self, shutdown: &CancellationToken) -> Result<(), Error> {
        tracing::info!(worker = self.options.name, paths = self.thread.paths().len(), "waiting for jobs");
        while !shutdown.is_cancelled() {
            let mut signal = self.store.work_signal();
            let asked = Instant::now();
            // The claim itself is not cut off by the shutdown: a job that it took must be given back.
            match self.store.claim(&self.options.name, self.thread.paths()).await {
                Ok(Some(claim)) => {
                    let span = tracing::info_span!(
                        "job", job_id = %claim.lease.job, attempt = claim.lease.attempt, mode = claim.path
                    );
                    self.work_on(claim, asked, shutdown).instrument(span).await?;
                }
                Ok(None) => tokio::select! {
                    () = signal.changed() => {}
                    () = shutdown.cancelled() => {}
                },
                Err(error) => {
                    tracing::warn!(%error, "no job could be claimed; trying again");
                    tokio::select! {
                        () = tokio::time::sleep(BACK_OFF) => {}
                        () = shutdown.cancelled() => {}
                    }
                }
            }
        }
        tracing::info!("stopped");
        Ok(())
    }

    /// One job from its claim to its last write. `asked` is a moment before the claim: the lease is no older.
    async fn work_on(&self, claim: Claim, asked: Instant, shutdown: &CancellationToken) -> Result<(), Error> {
        tracing::info!("claimed");
        let flag = StopFlag::default();
        let scratch = match Scratch::open(&self.options.scratch, claim.lease.job, claim.lease.attempt) {
            Ok(scratch) => scratch,
            Err(error) => {
                let failure = Failure::request(
                    RequestErrorKind::RunnerServerError,
                    "The worker has no room to work in",
                );
                let stop = Stop::Retry { failure, cause: error.into() };
                self.settle(&claim, Some(Err(stop)), &flag, shutdown).await;
                return Ok(());
            }
        };
        let (reports, received) = mpsc::unbounded_channel();
        let reporter = Reporter::new(self.store.clone(), claim.lease, flag.clone(), self.options.log_lines);
        let told = CancellationToken::new();
        let mut reporting =
            tokio::spawn(reporter.run(received, told.clone()).instrument(tracing::Span::current()));
        let context = Context {
            flag: flag.clone(),
            scratch: scratch.folder().to_owned(),
            clock: JobClock { claimed_at: claim.lease_expires_at - claim.lease_for, since: asked.into_std() },
            reports,
        };
        let job = Job {
            id: claim.lease.job,
            attempt: claim.lease.attempt,
            path: claim.path.clone(),
            spec: claim.spec.clone(),
            created_at: claim.created_at,
            state_pointer: claim.state_pointer.clone(),
            lifecycle: claim.lifecycle.clone(),
        };

        let mut ended = self.thread.run(job, context).await?;
        let keeping = lease::keep(&self.store, &claim, asked, &flag);
        tokio::pin!(keeping);
        let mut lease_is_kept = true;
        let given_up = give_up(shutdown, &flag, self.options.stop_patience);
        tokio::pin!(given_up);
        let end = loop {
            tokio::select! {
                end = &mut ended => break Some(end.map_err(|_| Error::Thread("it ended under a job".into()))?),
                () = &mut keeping, if lease_is_kept => lease_is_kept = false,
                () = &mut given_up => break None,
            }
        };

        // Everything the trainer said goes before the end of the job; the lease is kept meanwhile.
        told.cancel();
        tokio::select! {
            _ = &mut reporting => {}
            () = async { keeping.await; std::future::pending().await }, if lease_is_kept => {}
            () = given_up_for_good(shutdown, self.options.stop_patience) => reporting.abort(),
        }
        if self.settle(&claim, end, &flag, shutdown).await == Settled::Final
            && let Err(error) = scratch.remove()
        {
            tracing::warn!(%error, "the job's scratch folder could not be removed");
        }
        Ok(())
    }

    /// Writes how the job ended. Only a lost lease, or a shutdown while the database is away, leaves it unwritten.
    async fn settle(
        &self,
        claim: &Claim,
        end: Option<Result<Outcome, Stop>>,
        flag: &StopFlag,
        shutdown: &CancellationToken,
    ) -> Settled {
        if flag.why() == Some(Why::Lost) {
            return Settled::Open;
        }
        let (store, lease) = (&self.store, &claim.lease);
        let last = Last::of(end, flag.why());
        loop {
            let written = match &last {
                Last::Finish(outcome) => store.finish(lease, outcome).await.map(|()| Settled::Final),
                Last::Fail(failure) => store.fail(lease, failure).await.map(|()| Settled::Final),
                Last::Cancelled => store.cancelled(lease).await.map(|()| Settled::Final),
                Last::Release => store.release(lease).await.map(|()| Settled::Open),
                Last::Retry(failure) => store.retry(lease, failure).await.map(|requeued| match requeued {
                    Requeued::Queued => Settled::Open,
                    Requeued::Final => Settled::Final,
                }),
            };
            match written {
                Ok(settled) => {
                    tracing::info!(end = last.word(), "ended");
                    return settled;
                }
                Err(store::Error::LeaseLost) => {
                    tracing::warn!(end = last.word(), "the lease was lost before the end could be written");
                    return Settled::Open;
                }
                // A result may have cost hours: its write is fenced, so it may be tried for as long as it takes.
                Err(error @ store::Error::Unavailable(_)) => {
                    tracing::warn!(%error, end = last.word(), "the job's end waits for the database");
                    if shutdown.is_cancelled() {
                        return Settled::Open;
                    }
                    tokio::time::sleep(BACK_OFF).await;
                }
                Err(error) => {
                    tracing::error!(%error, end = last.word(), "the job's end could not be written");
                    return Settled::Open;
                }
            }
        }
    }
}

/// Whether a job's files here are of further use.
#[derive(Debug, PartialEq, Eq)]
enum Settled {
    /// The job is final.
    Final,
    /// Another attempt may come.
    Open,
}

/// The last write of an attempt.
enum Last {
    Finish(Box<Outcome>),
    Fail(Failure),
    Cancelled,
    Release,
    Retry(Failure),
}

impl Last {
    /// `end` is absent when the trainer did not stop in time for a shutdown.
    fn of(end: Option<Result<Outcome, Stop>>, why: Option<Why>) -> Last {
        match (end, why) {
            (None, _) => Last::Release,
            (Some(Ok(outcome)), _) => Last::Finish(Box::new(outcome)),
            (Some(Err(Stop::Failed(failure))), _) => Last::Fail(failure),
            (Some(Err(Stop::Asked)), Some(Why::Cancelled)) => Last::Cancelled,
            (Some(Err(Stop::Asked)), Some(_)) => Last::Release,
            (Some(Err(Stop::Retry { failure, cause })), _) => {
                tracing::warn!(%cause, "the job goes back to the queue");
                Last::Retry(failure)
            }
            (Some(Err(Stop::Bug(cause))), _) => Last::bug(cause),
            (Some(Err(Stop::Asked)), None) => Last::bug("the trainer stopped without being asked to".into()),
        }
    }

    /// What went wrong is for the operator; the client gets the id to ask about.
    fn bug(cause: Box<dyn std::error::Error + Send + Sync>) -> Last {
        let bug_id = Uuid::new_v4();
        tracing::error!(%bug_id, %cause, "the trainer has a bug");
        Last::Fail(Failure::internal(format!("Internal error {bug_id}")))
    }

    fn word(&self) -> &'static str {
        match self {
            Last::Finish(_) => "completed",
            Last::Fail(_) => "failed",
            Last::Cancelled => "cancelled",
            Last::Release => "released",
            Last::Retry(_) => "retried",
        }
    }
}

/// Tells the trainer of the shutdown, then returns when it had time enough.
async fn give_up(shutdown: &CancellationToken, flag: &StopFlag, patience: Duration) {
    shutdown.cancelled().await;
    tracing::info!("shutting down: the job stops and goes back to the queue");
    flag.set(Why::Shutdown);
    tokio::time::sleep(patience).await;
    tracing::warn!("the trainer did not stop in time");
}

/// Returns when a shutdown has waited long enough for the database too.
async fn given_up_for_good(shutdown: &CancellationToken, patience: Duration) {
    shutdown.cancelled().await;
    tokio::time::sleep(patience).await;
}
