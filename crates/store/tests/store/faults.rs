//! A crashing database, workers that vanish, all at once.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rand::{Rng, SeedableRng, rngs::StdRng};
use store::{Error, Logs, NewJob, Options, State, Store, Submitted};
use testkit::pg;
use uuid::Uuid;

use crate::common::*;

fn hasty() -> Options {
    Options {
        max_connections: 8,
        lease: Duration::from_millis(700),
        sweep_every: Duration::from_millis(150),
        poll: Duration::from_millis(400),
        max_attempts: 1000,
        patience: Duration::from_secs(60),
        ..Options::default()
    }
}

/// A worker that now and then vanishes in the middle of a job, and sometimes comes back as a zombie.
async fn worker(
    store: Store,
    seed: u64,
    stop: Arc<AtomicBool>,
    ends: Arc<Mutex<HashMap<Uuid, u32>>>,
) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let name = format!("worker-{seed}");
    let mut signal = store.work_signal();
    while !stop.load(Ordering::Relaxed) {
        let Some(claim) = store.claim(&name, &[PATH]).await? else {
            signal.changed().await;
            continue;
        };
        let lease = claim.lease;
        let fate = random.random_range(0..100);
        if fate < 6 {
            // Killed: no word to anybody.
            continue;
        }
        if fate < 10 {
            store.release(&lease).await?;
            continue;
        }
        let work = async {
            store.append(&lease, &[line(&format!("attempt {}", lease.attempt))]).await?;
            if fate < 14 {
                // Stopped for longer than the lease; somebody else has the job by now, mostly.
                tokio::time::sleep(Duration::from_millis(1200)).await;
            }
            store.renew(&lease).await?;
            store.finish(&lease, &outcome()).await
        };
        match work.await {
            Ok(()) => *ends.lock().expect("no panic holds it").entry(lease.job).or_default() += 1,
            Err(Error::LeaseLost) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Waits until every job is final, then checks that each ended exactly once and has its delivery.
async fn all_final_once(
    store: &Store,
    jobs: &[Uuid],
    ends: &Mutex<HashMap<Uuid, u32>>,
    connection: &mut sqlx::PgConnection,
) -> Result<()> {
    let begun = std::time::Instant::now();
    loop {
        let counts = store.counts().await?;
        if counts.is_empty() {
            break;
        }
        ensure!(begun.elapsed() < Duration::from_secs(120), "not final after two minutes: {counts:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for job in jobs {
        let status = store
            .status(*job, Logs::All)
            .await?
            .with_context(|| format!("{job} was accepted and is lost"))?;
        ensure!(status.state == State::Completed, "{job}: {:?}", status.state);
        let logs = status.logs.unwrap_or_default();
        ensure!(
            logs.iter().map(|l| l.seq).eq(1..=i64::try_from(logs.len())?),
            "{job}: lines are numbered without gaps"
        );
        ensure!(
            logs.iter().all(|l| l.message == format!("attempt {}", l.attempt)),
            "{job}: a line of another attempt"
        );
    }
    let ends = ends.lock().expect("no panic holds it").clone();
    ensure!(ends.values().all(|n| *n == 1), "a job ended twice: {ends:?}");
    ensure!(ends.len() == jobs.len(), "{} of {} ends were reported", ends.len(), jobs.len());
    let deliveries: i64 =
        sqlx::query_scalar("select count(*) from webhook_deliveries").fetch_one(connection).await?;
    ensure!(usize::try_from(deliveries)? == jobs.len(), "{deliveries} deliveries of {} jobs", jobs.len());
    Ok(())
}

fn with_webhook(n: u128) -> NewJob {
    NewJob { webhook_url: Some("https://hook.example/".to_owned()), ..job(n) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_jobs_with_vanishing_workers_each_end_exactly_once() -> Result<()> {
    let db = pg::database().await?;
    let servers = [Store::connect(&db.url(), hasty()).await?, Store::connect(&db.url(), hasty()).await?];
    let (stop, ends) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(HashMap::new())));
    let mut tasks = Vec::new();
    for seed in 0..4 {
        let store = Store::connect(&db.url(), Options { max_connections: 3, ..hasty() }).await?;
        let sweeper = store.clone();
        tasks.push(tokio::spawn(async move { match sweeper.maintain().await {} }));
        tasks.push(tokio::spawn(worker(store, seed, stop.clone(), ends.clone())));
    }
    let submits = (0..400).map(|n| submit(&servers[usize::from(n % 2 == 1)], with_webhook(n)));
    futures_util::future::try_join_all(submits).await?;
    let jobs: Vec<Uuid> = (0..400).map(id).collect();
    all_final_once(&servers[0], &jobs, &ends, &mut db.connect().await?).await?;
    finish_up(tasks, &stop).await
}

/// Ends the tasks, and reports what a worker did not expect.
async fn finish_up(tasks: Vec<tokio::task::JoinHandle<Result<()>>>, stop: &AtomicBool) -> Result<()> {
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        if task.is_finished() {
            task.await??;
        } else {
            task.abort();
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_crashes_under_load_loses_nothing_that_was_acknowledged() -> Result<()> {
    let cluster = pg::durable_cluster().await?;
    let store = Store::connect(cluster.url(), hasty()).await?;
    let (stop, ends) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(HashMap::new())));
    let mut tasks = Vec::new();
    for seed in 0..3 {
        let store = Store::connect(cluster.url(), Options { max_connections: 3, ..hasty() }).await?;
        let sweeper = store.clone();
        tasks.push(tokio::spawn(async move { match sweeper.maintain().await {} }));
        tasks.push(tokio::spawn(worker(store, 100 + seed, stop.clone(), ends.clone())));
    }
    let (next, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let submitting = Arc::new(AtomicBool::new(true));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (store, next, done, submitting) =
                (store.clone(), next.clone(), done.clone(), submitting.clone());
            tokio::spawn(async move {
                let mut accepted = Vec::new();
                while submitting.load(Ordering::Relaxed) {
                    let n = u128::from(next.fetch_add(1, Ordering::Relaxed));
                    if let Submitted::Accepted { .. } = store.submit(with_webhook(n)).await? {
                        accepted.push(id(n));
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                anyhow::Ok(accepted)
            })
        })
        .collect();
    // Load is counted, not timed: a busy machine takes longer over the same number of submits.
    let some_more = async || {
        let until = done.load(Ordering::Relaxed) + 10;
        while done.load(Ordering::Relaxed) < until && !clients.iter().any(|client| client.is_finished()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    for round in 0..3 {
        some_more().await;
        if round == 1 {
            cluster.kill_postmaster()?;
        } else {
            cluster.stop_immediate().await?;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        cluster.start().await?;
    }
    some_more().await;
    submitting.store(false, Ordering::Relaxed);
    let mut accepted = Vec::new();
    for client in clients {
        accepted.extend(client.await??);
    }
    ensure!(accepted.len() >= 40, "only {} were submitted", accepted.len());
    ensure!(accepted.iter().collect::<HashSet<_>>().len() == accepted.len(), "ids are distinct");
    let mut direct = <sqlx::PgConnection as sqlx::Connection>::connect(cluster.url()).await?;
    all_final_once(&store, &accepted, &ends, &mut direct).await?;
    finish_up(tasks, &stop).await
}

#[tokio::test]
async fn a_submit_without_a_database_is_not_reported_as_accepted() -> Result<()> {
    let cluster = pg::durable_cluster().await?;
    let options = Options { patience: Duration::from_millis(300), ..hasty() };
    let store = Store::connect(cluster.url(), options).await?;
    submit(&store, job(1)).await?;
    cluster.stop_immediate().await?;
    assert!(matches!(store.submit(job(2)).await, Err(Error::Unavailable(_))));
    assert!(matches!(store.status(id(1), Logs::No).await, Err(Error::Unavailable(_))));
    assert!(matches!(store.ping().await, Err(Error::Unavailable(_))));
    cluster.start().await?;
    assert!(store.status(id(1), Logs::No).await?.is_some());
    assert_eq!(store.status(id(2), Logs::No).await?, None);
    submit(&store, job(2)).await?;
    Ok(())
}
