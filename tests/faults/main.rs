//! Real processes that are killed, stopped and started again, on a Postgres with its default durability: nothing that
//! was accepted is lost, and no job ends twice.

mod storage;

use anyhow::{Context as _, Result, ensure};
use kiln_tests::{
    house::{Client, House, Server, messages, request},
    programs,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rustix::process::Signal;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use testkit::{pg, process::Process};

/// What the houses here set for a lease.
const LEASE: Duration = Duration::from_secs(2);
/// Longer than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(90);

/// A kiln on a durable Postgres of its own.
async fn house() -> Result<(pg::DurableCluster, House)> {
    let cluster = pg::durable_cluster().await?;
    let house = House::new(programs!(), cluster.url())?
        .with("KILN_LOG_FILTER", "info,sqlx=error")
        .with("KILN_QUEUE_MAX_ATTEMPTS", 50)
        .with("KILN_WORK_POLL_SECONDS", 1);
    Ok((cluster, house))
}

/// The attempt a job is in, from its row.
async fn attempt(connection: &mut PgConnection, id: &str) -> Result<i32> {
    let row =
        sqlx::query("select attempt from jobs where id = $1::uuid").bind(id).fetch_one(connection).await?;
    Ok(row.try_get(0)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_workers_job_is_claimed_again_within_a_lease() -> Result<()> {
    let (cluster, house) = house().await?;
    let server = house.serve().await?;
    let client = server.client()?;
    let mut rows = PgConnection::connect(cluster.url()).await?;

    let mut first = house.work()?;
    let script = json!([{"remember": "step 1"}, {"log": "begun"}, {"sleep": 4000}]);
    let id = client.submit("av2av", &request(&script)).await?;
    let until = Instant::now() + LONG;
    while messages(&client.status(&id).await?).is_empty() {
        ensure!(Instant::now() < until, "the job does not begin");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(attempt(&mut rows, &id).await?, 1);
    let _second = house.work()?;
    first.kill()?;
    let killed = Instant::now();
    while attempt(&mut rows, &id).await? == 1 {
        ensure!(killed.elapsed() < LONG, "not claimed again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The lease, and then the look that notices it.
    let took = killed.elapsed();
    assert!(took < LEASE + Duration::from_secs(2), "claimed again after {took:?}");
    let status = client.wait_for(&id, "COMPLETED", LONG).await?;
    assert!(status.get("error").is_none(), "{status}");
    assert_eq!(attempt(&mut rows, &id).await?, 2);
    assert_eq!(
        messages(&status),
        ["begun", "found step 1", "begun"],
        "the second attempt found the first one's files"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleeping_workers_late_writes_are_refused() -> Result<()> {
    let (cluster, house) = house().await?;
    let server = house.serve().await?;
    let client = server.client()?;
    let mut rows = PgConnection::connect(cluster.url()).await?;

    let zombie = house.work()?;
    // It logs, then completes, as soon as it is awake again.
    let script = json!([{"log": "begun"}, {"hang": 1500}, {"log": "done"}]);
    let id = client.submit("av2av", &request(&script)).await?;
    let until = Instant::now() + LONG;
    while messages(&client.status(&id).await?).is_empty() {
        ensure!(Instant::now() < until, "the job does not begin");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    zombie.signal(Signal::STOP)?;
    let mut other = house.work()?;
    let status = client.wait_for(&id, "COMPLETED", LONG).await?;
    assert_eq!(messages(&status), ["begun", "begun", "done"]);
    assert_eq!(attempt(&mut rows, &id).await?, 2);
    let (_, result) = client.result(&id).await?;
    assert!(result["lora_file"]["url"].as_str().context("a url")?.contains("/2/"), "{result}");

    // Awake, it writes nothing of the old job, and takes the next one.
    other.kill()?;
    zombie.signal(Signal::CONT)?;
    let next = client.submit("av2av", &request(&json!([{"log": "next"}]))).await?;
    client.wait_for(&next, "COMPLETED", LONG).await?;
    assert_eq!(client.status(&id).await?, status, "nothing of the finished job has changed");
    assert_eq!(client.result(&id).await?.1, result);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleeping_worker_cannot_write_into_a_running_attempt() -> Result<()> {
    let (cluster, house) = house().await?;
    let server = house.serve().await?;
    let client = server.client()?;
    let mut rows = PgConnection::connect(cluster.url()).await?;

    let zombie = house.work()?;
    let script = json!([{"log": "begun"}, {"hang": 1000}, {"lines": 5}, {"hang": 4000}]);
    let id = client.submit("av2av", &request(&script)).await?;
    let until = Instant::now() + LONG;
    while messages(&client.status(&id).await?).is_empty() {
        ensure!(Instant::now() < until, "the job does not begin");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    zombie.signal(Signal::STOP)?;
    let _other = house.work()?;
    while attempt(&mut rows, &id).await? == 1 {
        ensure!(Instant::now() < until, "not claimed again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    zombie.signal(Signal::CONT)?;
    let status = client.wait_for(&id, "COMPLETED", LONG).await?;
    let five = ["line 1", "line 2", "line 3", "line 4", "line 5"];
    assert_eq!(messages(&status), [&["begun", "begun"][..], &five[..]].concat(), "one attempt's lines only");
    assert_eq!(attempt(&mut rows, &id).await?, 2);
    Ok(())
}

/// Sends requests from several clients at once until `enough` were accepted; the ids of those that answered 200.
async fn submit_until(
    servers: Arc<Mutex<Vec<Client>>>,
    script: serde_json::Value,
    enough: usize,
) -> Result<HashSet<String>> {
    let accepted = Arc::new(Mutex::new(HashSet::new()));
    let claimed = Arc::new(AtomicUsize::new(0));
    let input = Arc::new(request(&script));
    let until = Instant::now() + LONG;
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..16 {
        let (accepted, claimed, servers, input) =
            (accepted.clone(), claimed.clone(), servers.clone(), input.clone());
        clients.spawn(async move {
            while claimed.fetch_add(1, Ordering::SeqCst) < enough {
                loop {
                    let client = {
                        let servers = servers.lock().expect("a lock");
                        servers[number % servers.len()].clone()
                    };
                    match client.submit("av2av", &input).await {
                        Ok(id) => {
                            accepted.lock().expect("a lock").insert(id);
                            break;
                        }
                        // A request that was refused, or whose answer was lost, was not promised anything.
                        Err(error) => {
                            ensure!(Instant::now() < until, "nothing is accepted any more: {error}");
                            tokio::time::sleep(Duration::from_millis(50)).await;
                        }
                    }
                }
            }
            Ok(())
        });
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    let accepted = std::mem::take(&mut *accepted.lock().expect("a lock"));
    ensure!(accepted.len() >= enough, "{} of {enough}", accepted.len());
    Ok(accepted)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_loses_nothing_that_it_accepted() -> Result<()> {
    let (_cluster, house) = house().await?;
    let mut server = house.serve().await?;
    let first = server.client()?;
    let servers = Arc::new(Mutex::new(vec![first.clone()]));
    let submitting = tokio::spawn(submit_until(servers.clone(), json!([]), 600));
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.process.kill()?;
        server = house.serve().await?;
        *servers.lock().expect("a lock") = vec![first.at(&server)];
    }
    let accepted = submitting.await??;
    let client = first.at(&server);
    for id in &accepted {
        let status = client.status(id).await?;
        assert_eq!(status["status"], "IN_QUEUE", "{id}: {status}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_postgres_loses_nothing_under_load() -> Result<()> {
    let (cluster, house) = house().await?;
    let server = house.serve().await?;
    let client = server.client()?;
    let _workers = [house.work()?, house.work()?];
    let servers = Arc::new(Mutex::new(vec![client.clone()]));
    let submitting = tokio::spawn(submit_until(servers, json!([{"sleep": 5}]), 400));
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        cluster.stop_immediate().await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        cluster.start().await?;
    }
    let accepted = submitting.await??;
    for id in &accepted {
        let status = client.wait_for(id, "COMPLETED", LONG).await?;
        assert!(status.get("error").is_none(), "{id}: {status}");
        assert_eq!(client.result(id).await?.0, 200);
    }
    Ok(())
}

/// Something that is killed and started again.
enum Victim {
    Server(Box<Server>),
    Worker(Process),
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_and_four_workers_with_random_kills_end_every_job_exactly_once() -> Result<()> {
    const JOBS: usize = 2000;
    let (cluster, house) = house().await?;
    let server = house.serve().await?;
    let client = server.client()?;
    let mut rows = PgConnection::connect(cluster.url()).await?;
    // Postgres itself counts how often a job becomes final.
    for statement in [
        "create table ends (id uuid, state text)",
        "create function note_end() returns trigger language plpgsql as
             $$ begin insert into ends values (new.id, new.state); return null; end $$",
        "create trigger note_end after update on jobs for each row
             when (new.state in ('completed', 'failed', 'cancelled') and
                   (old.state is distinct from new.state or old.finished_at is distinct from new.finished_at))
             execute function note_end()",
    ] {
        sqlx::query(AssertSqlSafe(statement)).execute(&mut rows).await?;
    }

    let servers = Arc::new(Mutex::new(vec![client.clone()]));
    let mut victims = vec![Victim::Server(Box::new(server)), Victim::Server(Box::new(house.serve().await?))];
    for _ in 0..4 {
        victims.push(Victim::Worker(house.work()?));
    }
    let publish = |victims: &[Victim]| {
        let running = victims.iter().filter_map(|victim| match victim {
            Victim::Server(server) => Some(client.at(server)),
            Victim::Worker(_) => None,
        });
        *servers.lock().expect("a lock") = running.collect();
    };
    publish(&victims);

    let submitting = tokio::spawn(submit_until(servers.clone(), json!([{"sleep": 10}]), JOBS));
    let mut random = StdRng::seed_from_u64(0x6b69_6c6e);
    let mut kills = 0;
    let started = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(random.random_range(200..500))).await;
        let unfinished: i64 = sqlx::query("select count(*) from jobs where finished_at is null")
            .fetch_one(&mut rows)
            .await?
            .try_get(0)?;
        if submitting.is_finished() && unfinished == 0 {
            break;
        }
        ensure!(started.elapsed() < 2 * LONG, "{unfinished} jobs are still open after {kills} kills");
        // Kills end after a while, or on a slow machine nothing would ever be done between two of them.
        if kills < 40 {
            let which = random.random_range(0..victims.len());
            kills += 1;
            victims[which] = match &mut victims[which] {
                Victim::Server(server) => {
                    server.process.kill()?;
                    Victim::Server(Box::new(house.serve().await?))
                }
                Victim::Worker(worker) => {
                    worker.kill()?;
                    Victim::Worker(house.work()?)
                }
            };
            publish(&victims);
        }
    }
    let accepted = submitting.await??;

    // Every job there is: those that answered 200, and those whose answer a kill swallowed.
    let found = sqlx::query(
        "select j.id::text, j.state, j.attempt, (select count(*) from ends e where e.id = j.id) from jobs j",
    )
    .fetch_all(&mut rows)
    .await?;
    let mut known = HashSet::new();
    let mut again = 0;
    for row in &found {
        let (id, state, attempt, ends): (String, String, i32, i64) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        assert_eq!((state.as_str(), ends), ("completed", 1), "{id} in attempt {attempt}");
        again += i32::from(attempt > 1);
        known.insert(id);
    }
    let lost: Vec<&String> = accepted.difference(&known).collect();
    assert!(lost.is_empty(), "accepted and lost: {lost:?}");
    println!(
        "{} jobs, {} of them accepted with an answer, {again} in a second attempt, {kills} kills, {:.1} s",
        known.len(),
        accepted.len(),
        started.elapsed().as_secs_f64()
    );
    assert!(kills >= 10, "only {kills} kills: the test proved little");
    Ok(())
}
