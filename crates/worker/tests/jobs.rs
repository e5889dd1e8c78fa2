//! The worker against a real database, with trainers written as closures.

use anyhow::{Context as _, Result, ensure};
use kiln_worker::{Context, Error, Job, Options, Stop, Trainer, Why, Worker};
use serde_json::json;
use spec::{Failure, File, Level, Outcome, Phase, Progress, RequestErrorKind};
use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};
use store::{Answer, Logs, NewJob, State, Status, Store, Work};
use testkit::pg;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const PATH: &str = "av2av";
/// Longer than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(30);

/// A trainer that is one function.
struct Play<F>(F);

impl<F: Fn(&Job, &Context) -> Result<Outcome, Stop>> Trainer for Play<F> {
    fn paths(&self) -> Vec<&'static str> {
        vec![PATH]
    }

    fn run(&mut self, job: &Job, context: &Context) -> Result<Outcome, Stop> {
        (self.0)(job, context)
    }
}

/// A database, a store with short times, a scratch folder.
struct Bench {
    store: Store,
    _database: Option<pg::Database>,
    scratch: tempfile::TempDir,
}

fn short_times() -> store::Options {
    store::Options {
        lease: Duration::from_secs(2),
        patience: Duration::from_millis(500),
        poll: Duration::from_millis(500),
        sweep_every: Duration::from_millis(500),
        max_attempts: 3,
        ..store::Options::default()
    }
}

impl Bench {
    async fn new() -> Result<Bench> {
        let database = pg::database().await?;
        let store = Store::connect(&database.url(), short_times()).await?;
        Ok(Bench { store, _database: Some(database), scratch: tempfile::tempdir()? })
    }

    fn options(&self) -> Options {
        Options { stop_patience: Duration::from_millis(500), ..Options::new("bench", self.scratch.path()) }
    }

    async fn submit(&self) -> Result<Uuid> {
        let input = json!({"training_data_url": "https://data.invalid/a.zip"});
        let mode = spec::find(PATH).context("a mode")?;
        let work = Work::Run(Box::new(spec::parse(mode, &input)?));
        let id = Uuid::now_v7();
        self.store.submit(NewJob { input: Some(input), ..NewJob::new(id, PATH, work) }).await?;
        Ok(id)
    }

    async fn status(&self, id: Uuid) -> Result<Status> {
        self.store.status(id, Logs::All).await?.context("the job is there")
    }

    async fn wait_until(&self, id: Uuid, what: impl Fn(&Status) -> bool) -> Result<Status> {
        let until = Instant::now() + LONG;
        loop {
            let status = self.status(id).await?;
            if what(&status) {
                return Ok(status);
            }
            ensure!(Instant::now() < until, "still {status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn wait_final(&self, id: Uuid) -> Result<Status> {
        self.wait_until(id, |status| status.state.is_final()).await
    }
}

/// A worker that runs until it is stopped or dropped.
struct Running {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), Error>>,
}

impl Running {
    async fn start(
        bench: &Bench,
        options: Options,
        play: impl Fn(&Job, &Context) -> Result<Outcome, Stop> + Clone + Send + 'static,
    ) -> Result<Running> {
        let build = move || Ok(Box::new(Play(play.clone())) as Box<dyn Trainer>);
        let worker = Worker::start(bench.store.clone(), options, build).await?;
        let stop = CancellationToken::new();
        let token = stop.clone();
        let task = tokio::spawn(async move { worker.run(&token).await });
        Ok(Running { stop, task })
    }

    async fn stop(self) -> Result<()> {
        self.stop.cancel();
        Ok(tokio::time::timeout(LONG, self.task).await???)
    }
}

fn outcome() -> Outcome {
    let file = |name: &str| File {
        url: format!("https://files.invalid/{name}"),
        content_type: None,
        file_name: Some(name.into()),
        file_size: Some(1),
    };
    Outcome {
        video: None,
        audio: None,
        lora_file: file("lora.safetensors"),
        config_file: file("config.json"),
        debug_dataset: None,
    }
}

/// Waits until the trainer is told to stop; says why.
fn until_told(context: &Context) -> Why {
    loop {
        if let Some(why) = context.flag().why() {
            return why;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn messages(status: &Status) -> Vec<&str> {
    status.logs.iter().flatten().map(|line| line.message.as_str()).collect()
}

#[tokio::test]
async fn a_completed_job_has_its_outcome_its_log_and_its_place() -> Result<()> {
    let bench = Bench::new().await?;
    let id = bench.submit().await?;
    let worker = Running::start(&bench, bench.options(), |job, context| {
        assert_eq!((job.attempt, job.path.as_str()), (1, PATH));
        context.phase(Phase::Train);
        for done in 1..=3 {
            context.progress(Progress { phase: Phase::Train, done, total: 3 });
            context.log_with(Level::Info, format!("step {done}"), json!({"loss": 0.5}));
        }
        Ok(outcome())
    })
    .await?;
    let status = bench.wait_final(id).await?;
    assert_eq!(status.state, State::Completed);
    assert_eq!(messages(&status), ["step 1", "step 2", "step 3"]);
    let lines = status.logs.as_ref().context("lines")?;
    assert_eq!(lines[0].data, Some(json!({"loss": 0.5})));
    for line in lines {
        let off = (line.at - status.created_at).abs();
        assert!(off < chrono::TimeDelta::seconds(30), "the line's time is {off} from the job's");
    }
    assert_eq!(status.progress, Some(Progress { phase: Phase::Train, done: 3, total: 3 }));
    match bench.store.result(id).await? {
        Some(Answer::Completed(found)) => assert_eq!(found, outcome()),
        other => panic!("{other:?}"),
    }
    worker.stop().await?;
    assert_eq!(std::fs::read_dir(bench.scratch.path())?.count(), 0, "the job's folder is gone");
    Ok(())
}

#[tokio::test]
async fn jobs_run_one_after_the_other_in_their_order() -> Result<()> {
    let bench = Bench::new().await?;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = seen.clone();
    let ids = [bench.submit().await?, bench.submit().await?, bench.submit().await?];
    let worker = Running::start(&bench, bench.options(), move |job, _| {
        noted.lock().expect("a lock").push(job.id);
        Ok(outcome())
    })
    .await?;
    for id in ids {
        bench.wait_final(id).await?;
    }
    assert_eq!(*seen.lock().expect("a lock"), ids);
    worker.stop().await
}

#[tokio::test]
async fn a_lease_is_renewed_for_as_long_as_the_trainer_works() -> Result<()> {
    let bench = Bench::new().await?;
    let id = bench.submit().await?;
    let worker = Running::start(&bench, bench.options(), |_, context| {
        for _ in 0..50 {
            context.check()?;
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(outcome())
    })
    .await?;
    // Somebody sweeps all the while, as servers do: the job is not taken away.
    let until = Instant::now() + LONG;
    let status = loop {
        bench.store.sweep().await?;
        let status = bench.status(id).await?;
        if status.state.is_final() {
            break status;
        }
        ensure!(Instant::now() < until, "{status:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert_eq!((status.state, status.attempt), (State::Completed, 1));
    worker.stop().await
}

#[tokio::test]
async fn a_lost_lease_cannot_finish_the_job() -> Result<()> {
    let bench = Bench::new().await?;
    let id = bench.submit().await?;
    let (told, why) = mpsc::channel();
    let (ended, end) = mpsc::channel();
    let worker = Running::start(&bench, bench.options(), move |job, context| {
        if job.attempt > 1 {
            return Err(Stop::Bug("this worker must not get the job again here".into()));
        }
        told.send(until_told(context)).expect("the test listens");
        context.log(Level::Info, "from the grave");
        ended.send(()).expect("the test listens");
        Ok(outcome())
    })
    .await?;
    bench.wait_until(id, |status| status.state == State::Running).await?;
    // The lease runs out behind the worker's back, and another one takes the job.
    let mut connection = bench._database.as_ref().context("a database")?.connect().await?;
    sqlx::query("update jobs set lease_expires_at = kiln_now() - interval '1 second' where id = $1")
        .bind(id)
        .execute(&mut connection)
        .await?;
    bench.store.sweep().await?;
    let other = bench.store.claim("another", &[PATH]).await?.context("it is claimable again")?;
    assert_eq!((other.lease.job, other.lease.attempt), (id, 2));

    assert_eq!(tokio::task::spawn_blocking(move || why.recv_timeout(LONG)).await??, Why::Lost);
    tokio::task::spawn_blocking(move || end.recv_timeout(LONG)).await??;
    worker.stop().await?;
    let status = bench.status(id).await?;
    assert_eq!((status.state, status.attempt), (State::Running, 2), "the late outcome was not written");
    assert_eq!(messages(&status), [""; 0]);
    bench.store.finish(&other.lease, &outcome()).await?;
    assert_eq!(bench.status(id).await?.state, State::Completed);
    Ok(())
}

#[tokio::test]
async fn a_cancel_reaches_the_trainer_and_ends_the_job() -> Result<()> {
    let bench = Bench::new().await?;
    let id = bench.submit().await?;
    let worker = Running::start(&bench, bench.options(), |_, context| {
        assert_eq!(until_told(context), Why::Cancelled);
        context.log(Level::Info, "the partial adapter is kept");
        Err(Stop::Asked)
    })
    .await?;
    bench.wait_until(id, |status| status.state == State::Running).await?;
    bench.store.request_cancel(id, Failure::cancelled()).await?;
    let status = bench.wait_final(id).await?;
    assert_eq!(status.state, State::Cancelled);
    assert_eq!(status.error_type.as_deref(), Some("client_cancelled"));
    assert_eq!(messages(&status), ["the partial adapter is kept"]);
    worker.stop().await
}

#[tokio::test]
async fn a_shutdown_hands_the_job_back_at_once() -> Result<()> {
    let bench = Bench::new().await?;
    let id = bench.submit().await?;
    let worker = Running::start(&bench, bench.options(), |_, context| {
        std::fs::write(context.scratch().join("state"), "step 7").expect("writes");
        context.state_pointer(json!({"step": 7}));
        assert_eq!(until_told(context), Why::Shutdown);
        Err(Stop::Asked)
    })
    .await?;
    bench.wait_until(id, |status| status.state == State::Running).await?;
    worker.stop().await?;
    assert_eq!(bench.status(id).await?.state, State::Queued, "no lease has to run out");

    // The next attempt on this machine finds both kinds of state.
    let worker = Running::start(&bench, bench.options(), |job, context| {
        let state = std::fs::read_to_string(context.scratch().join("state")).expect("reads");
        assert_eq!((job.attempt, state.as_str()), (2, "step 7"));
        assert_eq!(job.state_pointer, Some(json!({"step": 7})));
        Ok(outcome())
    })
    .await?;
    assert_eq!(bench.wait_final(id).await?.state, State::Completed);
    worker.stop().await
}

#[tokio::test]
async fn a_trainer_that_does_not_stop_does_not_keep_the_job_at_shutdown() -> Result<()> {
    let bench = Bench::new().await?;
    let id = bench.submit().await?;
    let (release, held) = mpsc::channel::<()>();
    let held = Arc::new(Mutex::new(held));
    let worker = Running::start(&bench, bench.options(), move |_, _| {
        let _ = held.lock().expect("a lock").recv();
        Ok(outcome())
    })
    .await?;
    bench.wait_until(id, |status| status.state == State::Running).await?;
    let started = Instant::now();
    worker.stop().await?;
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert_eq!(bench.status(id).await?.state, State::Queued);
    drop(release);
    Ok(())
}

#[tokio::test]
async fn a_panic_is_a_bug_with_an_id_and_the_next_job_gets_a_new_trainer() -> Result<()> {
    let bench = Bench::new().await?;
    let (bad, good) = (bench.submit().await?, bench.submit().await?);
    let built = Arc::new(AtomicUsize::new(0));
    let count = built.clone();
    let build = move || {
        count.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Play(move |job: &Job, _: &Context| {
            assert!(job.id != bad, "the password is hunter2");
            Ok(outcome())
        })) as Box<dyn Trainer>)
    };
    let worker = Worker::start(bench.store.clone(), bench.options(), build).await?;
    let stop = CancellationToken::new();
    let token = stop.clone();
    let task = tokio::spawn(async move { worker.run(&token).await });
    let status = bench.wait_final(bad).await?;
    assert_eq!((status.state, status.http_status), (State::Failed, Some(500)));
    let error = status.error.context("an error")?;
    assert!(error.contains("Internal error ") && !error.contains("hunter2"), "{error}");
    assert_eq!(bench.wait_final(good).await?.state, State::Completed);
    assert_eq!(built.load(Ordering::SeqCst), 2);
    stop.cancel();
    Ok(task.await??)
}

#[tokio::test]
async fn each_way_to_stop_has_its_end() -> Result<()> {
    let bench = Bench::new().await?;
    let ids = [bench.submit().await?, bench.submit().await?, bench.submit().await?];
    let [user, bug, unasked] = ids;
    let worker = Running::start(&bench, bench.options(), move |job, _| {
        Err(if job.id == user {
            let error = spec::FalError::FileDownloadError;
            Failure::fal(&error, spec::at("training_data_url"), "unreachable").into()
        } else if job.id == bug {
            Stop::Bug("a detail of the machine".into())
        } else {
            Stop::Asked
        })
    })
    .await?;
    for (id, http_status) in [(user, 422), (bug, 500), (unasked, 500)] {
        let status = bench.wait_final(id).await?;
        assert_eq!((status.state, status.http_status), (State::Failed, Some(http_status)));
        assert!(!status.error.unwrap_or_default().contains("machine"));
    }
    worker.stop().await
}

#[tokio::test]
async fn a_machines_fault_is_retried_until_the_attempts_are_used_up() -> Result<()> {
    let bench = Bench::new().await?;
    let id = bench.submit().await?;
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let seen = attempts.clone();
    let worker = Running::start(&bench, bench.options(), move |job, _| {
        seen.lock().expect("a lock").push(job.attempt);
        let failure = Failure::request(RequestErrorKind::RunnerServerError, "The disk is full");
        Err(Stop::Retry { failure, cause: "no space left".into() })
    })
    .await?;
    let status = bench.wait_final(id).await?;
    assert_eq!(status.state, State::Failed);
    assert_eq!(status.error_type.as_deref(), Some("runner_server_error"));
    assert_eq!(*attempts.lock().expect("a lock"), [1, 2, 3]);
    worker.stop().await
}

#[tokio::test]
async fn a_noisy_trainer_is_cut_short_and_completes() -> Result<()> {
    let bench = Bench::new().await?;
    let id = bench.submit().await?;
    let options = Options { log_lines: 50, ..bench.options() };
    let worker = Running::start(&bench, options, |_, context| {
        for line in 0..5000 {
            context.log(Level::Info, format!("line {line} \0"));
        }
        Ok(outcome())
    })
    .await?;
    let status = bench.wait_final(id).await?;
    assert_eq!(status.state, State::Completed);
    let found = messages(&status);
    assert_eq!(found.len(), 51);
    assert_eq!(found[49], "line 49 \u{fffd}");
    assert!(found[50].starts_with("Further log lines are left out"), "{}", found[50]);
    worker.stop().await
}

#[tokio::test]
async fn the_trainer_has_a_deep_stack() -> Result<()> {
    fn depth(left: usize) -> usize {
        let page = std::hint::black_box([left as u8; 2048]);
        if left == 0 { 0 } else { depth(left - 1) + usize::from(page[0] == left as u8) }
    }
    let bench = Bench::new().await?;
    let id = bench.submit().await?;
    // Some 30 MiB of frames: a dropped graph of tensors recurses like this.
    let worker = Running::start(&bench, bench.options(), |_, _| {
        assert_eq!(depth(8000), 8000);
        Ok(outcome())
    })
    .await?;
    assert_eq!(bench.wait_final(id).await?.state, State::Completed);
    worker.stop().await
}

#[tokio::test]
async fn a_trainer_that_cannot_be_built_claims_nothing() -> Result<()> {
    let bench = Bench::new().await?;
    let id = bench.submit().await?;
    let started = Worker::start(bench.store.clone(), bench.options(), || Err("no GPU".into())).await;
    let error = started.err().context("an error")?;
    assert_eq!(error.to_string(), "the trainer cannot start: no GPU");
    assert_eq!(bench.status(id).await?.state, State::Queued);
    Ok(())
}

#[tokio::test]
async fn a_scratch_folder_that_cannot_be_used_is_said_at_start() -> Result<()> {
    let bench = Bench::new().await?;
    let options = Options { scratch: Path::new("/proc/nowhere").to_owned(), ..bench.options() };
    let never = || Err("the folder is looked at first".into());
    let started = Worker::start(bench.store.clone(), options, never).await;
    let error = started.err().context("an error")?.to_string();
    assert!(error.starts_with("the scratch folder /proc/nowhere cannot be used"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_short_outage_of_the_database_does_not_stop_the_trainer_and_a_long_one_does() -> Result<()> {
    let cluster = pg::durable_cluster().await?;
    let options = store::Options { lease: Duration::from_secs(9), ..short_times() };
    let bench = Bench {
        store: Store::connect(cluster.url(), options).await?,
        _database: None,
        scratch: tempfile::tempdir()?,
    };

    // As servers and workers do: without it nobody notices a lease that ran out.
    let sweeper = bench.store.clone();
    let sweeping = tokio::spawn(async move { sweeper.maintain().await });
    let id = bench.submit().await?;
    let (told, tells) = mpsc::channel();
    let worker = Running::start(&bench, bench.options(), move |job, context| {
        if job.attempt > 1 {
            return Ok(outcome());
        }
        let why = until_told(context);
        told.send((why, Instant::now())).expect("the test listens");
        Err(Stop::Asked)
    })
    .await?;
    bench.wait_until(id, |status| status.state == State::Running).await?;

    cluster.stop_immediate().await?;
    cluster.start().await?;
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert!(tells.try_recv().is_err(), "the database was back before the lease could have ended");
    assert_eq!(bench.status(id).await?.attempt, 1);

    let down = Instant::now();
    cluster.stop_immediate().await?;
    let (why, at) = tokio::task::spawn_blocking(move || tells.recv_timeout(LONG)).await??;
    assert_eq!(why, Why::Lost);
    let after = at - down;
    assert!(after <= Duration::from_secs(10), "stopped {after:?} after the last possible renewal");
    cluster.start().await?;
    let status = bench.wait_final(id).await?;
    assert_eq!((status.state, status.attempt), (State::Completed, 2));
    sweeping.abort();
    worker.stop().await
}
