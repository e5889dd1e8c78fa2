//! `make bench-queue`: how fast the queue is, on a durable Postgres, beside what that Postgres does by itself.
//!
//! Prints a table for `docs/benchmarks.md`. The clients run on the same machine and share its cores, so they are as
//! thin as can be: one connection each, requests written beforehand. `-- --seconds N` sets the length of each timed
//! part, `-- --rows N` the number of finished jobs behind the claims.

use anyhow::{Context as _, Result, bail, ensure};
use kiln_tests::{
    house::{House, request},
    programs,
};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use std::{
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};
use store::{NewJob, Options, Store, Work};
use testkit::pg;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use uuid::Uuid;

const CLIENTS: usize = 64;
const WAITING: i64 = 10_000;
const CLAIMS: usize = 2000;

struct Arguments {
    seconds: u64,
    rows: i64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = arguments()?;
    let time = Duration::from_secs(arguments.seconds);
    let cluster = pg::durable_cluster().await?;
    let house = House::new(programs!(), cluster.url())?
        .with("KILN_LOG_FILTER", "warn")
        .with("KILN_QUEUE_LEASE_SECONDS", 45);
    let server = house.serve().await?;
    let key = server.key.clone().context("the first server prints a key")?;
    let mut rows = PgConnection::connect(cluster.url()).await?;

    say(&format!("{CLIENTS} clients submit for {time:?}"));
    let body = request(&json!([])).to_string();
    let submit = format!(
        "POST /queue/fal-ai/ltx23-trainer-v2/av2av HTTP/1.1\r\nhost: {}\r\nauthorization: Key {key}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        server.address(),
        body.len()
    );
    let submits = load(server.address(), Arc::new(vec![submit.into_bytes()]), time).await?;
    let stored: i64 = rows.fetch_one("select count(*) from jobs").await?.try_get(0)?;
    ensure!(
        usize::try_from(stored)? >= submits.times.len(),
        "{} submits were answered and {stored} are stored",
        submits.times.len()
    );

    say(&format!("{CLIENTS} clients ask for statuses for {time:?}"));
    let ids = rows.fetch_all("select id from jobs order by random() limit 1000").await?;
    let asks = ids
        .iter()
        .map(|row| {
            Ok(format!(
                "GET /queue/fal-ai/ltx23-trainer-v2/requests/{}/status HTTP/1.1\r\nhost: {}\r\n\
                 authorization: Key {key}\r\n\r\n",
                row.try_get::<Uuid, _>(0)?,
                server.address()
            )
            .into_bytes())
        })
        .collect::<Result<Vec<_>>>()?;
    let statuses = load(server.address(), Arc::new(asks), time).await?;
    drop(server);

    say(&format!("pgbench inserts single rows for {time:?}, {CLIENTS} connections, then 16"));
    let inserts = pgbench(cluster.url(), &body, CLIENTS, arguments.seconds)?;
    let inserts_16 = pgbench(cluster.url(), &body, 16, arguments.seconds)?;

    say(&format!("filling in {} finished and {WAITING} waiting jobs", arguments.rows));
    let store = Store::connect(cluster.url(), Options::default()).await?;
    fill(&mut rows, &store, arguments.rows).await?;
    say(&format!("{CLAIMS} claims, one after the other, then by four workers at once"));
    let alone = claims(&store, 1).await?;
    let four = claims(&store, 4).await?;

    let version: String = rows.fetch_one("select current_setting('server_version')").await?.try_get(0)?;
    let sync: String = rows
        .fetch_one("select 'fsync=' || current_setting('fsync') || ', synchronous_commit=' || current_setting('synchronous_commit')")
        .await?
        .try_get(0)?;
    let cores = std::thread::available_parallelism()?;
    let lines = [
        format!(
            "{cores} cores, PostgreSQL {version} ({sync}), clients on the same machine, commit {}",
            commit()
        ),
        String::new(),
        "| what | per second | p50 ms | p99 ms | worst ms |".to_owned(),
        "|---|---:|---:|---:|---:|".to_owned(),
        submits.row(&format!("durable submits, {CLIENTS} clients")),
        statuses.row(&format!("status requests, {CLIENTS} clients")),
        format!("| pgbench single-row inserts, {CLIENTS} connections | {inserts:.0} | | | |"),
        format!("| pgbench single-row inserts, 16 connections | {inserts_16:.0} | | | |"),
        alone.row(&format!("claims, {} finished and {WAITING} waiting, 1 worker", arguments.rows)),
        four.row("the same, 4 workers at once"),
    ];
    print(&lines.join("\n"));
    Ok(())
}

fn arguments() -> Result<Arguments> {
    let mut arguments = Arguments { seconds: 10, rows: 1_000_000 };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || {
            words
                .next()
                .with_context(|| format!("{word} needs a number"))?
                .parse::<u32>()
                .context(word.clone())
        };
        match word.as_str() {
            "--seconds" => arguments.seconds = u64::from(number()?).max(1),
            "--rows" => arguments.rows = i64::from(number()?),
            // cargo passes it to every benchmark.
            "--bench" => {}
            other => bail!("unknown argument {other:?}: there are --seconds N and --rows N"),
        }
    }
    Ok(arguments)
}

#[expect(clippy::print_stdout, reason = "the program's answer")]
fn print(text: &str) {
    println!("{text}");
}

#[expect(clippy::print_stderr, reason = "the program's progress")]
fn say(text: &str) {
    eprintln!("bench: {text}");
}

fn commit() -> String {
    let output = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    output
        .map_or_else(|_| "unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// How long each of many calls took.
struct Timed {
    times: Vec<Duration>,
    wall: Duration,
}

impl Timed {
    fn row(&self, what: &str) -> String {
        let mut sorted = self.times.clone();
        sorted.sort_unstable();
        let at = |share: f64| {
            let index = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
            sorted.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
        };
        let rate = self.times.len() as f64 / self.wall.as_secs_f64();
        format!("| {what} | {rate:.0} | {:.2} | {:.2} | {:.2} |", at(0.5), at(0.99), at(1.0))
    }
}

/// Every client sends the next of `requests` as soon as the last one is answered, for `time`.
async fn load(address: &str, requests: Arc<Vec<Vec<u8>>>, time: Duration) -> Result<Timed> {
    let started = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..CLIENTS {
        let (requests, mut stream) = (requests.clone(), TcpStream::connect(address).await?);
        stream.set_nodelay(true)?;
        clients.spawn(async move {
            let (mut times, mut buffer) = (Vec::new(), Vec::with_capacity(4096));
            for turn in number.. {
                if started.elapsed() >= time {
                    break;
                }
                let sent = Instant::now();
                stream.write_all(&requests[turn % requests.len()]).await?;
                read_answer(&mut stream, &mut buffer).await?;
                times.push(sent.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(client) = clients.join_next().await {
        times.extend(client??);
    }
    Ok(Timed { times, wall: started.elapsed() })
}

/// Reads one answer to its end; anything but a 2xx is an error.
async fn read_answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<()> {
    buffer.clear();
    let head = loop {
        ensure!(stream.read_buf(buffer).await? > 0, "the server closed the connection");
        if let Some(end) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let text = String::from_utf8_lossy(&buffer[..head]).to_lowercase();
    ensure!(text.starts_with("http/1.1 20"), "{}", String::from_utf8_lossy(buffer));
    let length: usize = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .with_context(|| format!("no length: {text}"))?
        .trim()
        .parse()?;
    while buffer.len() < head + length {
        ensure!(stream.read_buf(buffer).await? > 0, "the answer was cut short");
    }
    Ok(())
}

/// Rows per second that pgbench inserts, one statement and one commit each.
fn pgbench(url: &str, body: &str, connections: usize, seconds: u64) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("insert.sql");
    std::fs::write(
        &script,
        format!("insert into bench_rows (body) values ('{}');\n", body.replace('\'', "''")),
    )?;
    // The programs found may be links to where the whole installation is.
    let postgres = store::cluster::find_programs(None)?.bin.join("postgres").canonicalize()?;
    let bin = postgres.parent().context("a folder")?;
    let table = "create table if not exists bench_rows \
        (id uuid primary key default gen_random_uuid(), body json not null, at timestamptz not null default now())";
    let made = Command::new(bin.join("psql")).arg(url).args(["-qc", table]).output().context("psql")?;
    ensure!(made.status.success(), "psql: {}", String::from_utf8_lossy(&made.stderr));
    let output = Command::new(bin.join("pgbench"))
        .args([
            "-n",
            "-M",
            "prepared",
            "-j",
            "2",
            "-c",
            &connections.to_string(),
            "-T",
            &seconds.to_string(),
            "-f",
        ])
        .args([script.as_os_str(), url.as_ref()])
        .output()
        .context("pgbench")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "pgbench: {text}{}", String::from_utf8_lossy(&output.stderr));
    let line = text.lines().find_map(|line| line.strip_prefix("tps = ")).with_context(|| text.to_string())?;
    Ok(line.split_whitespace().next().context("a number")?.parse()?)
}

/// Empties the queue, then copies one finished and one waiting job of every path that needs nothing but an archive.
async fn fill(rows: &mut PgConnection, store: &Store, finished: i64) -> Result<()> {
    rows.execute("truncate jobs, job_events, webhook_deliveries cascade").await?;
    let paths: Vec<&str> = spec::modes().iter().map(|mode| mode.path).collect();
    let mut done = Vec::new();
    let mut waiting = Vec::new();
    for round in [true, false] {
        for mode in spec::modes() {
            let input = json!({"training_data_url": "https://data.invalid/clips.zip"});
            let Ok(spec) = spec::parse(mode, &input) else { continue };
            let work = Work::Run(Box::new(spec));
            let id = Uuid::now_v7();
            store.submit(NewJob { input: Some(input), ..NewJob::new(id, mode.path, work) }).await?;
            if round {
                let claim = store.claim("bench", &paths).await?.context("a job waits")?;
                store.fail(&claim.lease, &spec::Failure::internal("bench")).await?;
                done.push(claim.lease.job);
            } else {
                waiting.push(id);
            }
        }
    }
    ensure!(waiting.len() >= 10, "only {} paths can be asked for so shortly", waiting.len());
    // The rows are copied as they are; nobody is notified of them.
    let columns: String = rows
        .fetch_one(
            "select string_agg(quote_ident(column_name), ', ') from information_schema.columns
             where table_name = 'jobs' and table_schema = current_schema()
                 and column_name <> 'id' and is_identity = 'NO' and is_generated = 'NEVER'",
        )
        .await?
        .try_get(0)?;
    rows.execute("set session_replication_role = replica").await?;
    for (ids, count) in [(&done, finished), (&waiting, WAITING)] {
        let copies = count / i64::try_from(ids.len())?;
        let copy = format!(
            "insert into jobs (id, {columns}) select gen_random_uuid(), {columns}
             from jobs, generate_series(1, {copies}) where id = any($1)"
        );
        sqlx::query(AssertSqlSafe(copy)).bind(ids).execute(&mut *rows).await?;
    }
    rows.execute("set session_replication_role = origin").await?;
    rows.execute("vacuum analyze jobs").await?;
    let found = rows.fetch_one("select count(*) filter (where state = 'queued'), count(*) from jobs").await?;
    let (queued, all): (i64, i64) = (found.try_get(0)?, found.try_get(1)?);
    ensure!(queued >= WAITING - 100 && all - queued >= finished - 100, "{queued} waiting of {all}");
    Ok(())
}

/// Claims jobs by so many workers at once; each is ended before the next, outside the time.
async fn claims(store: &Store, workers: usize) -> Result<Timed> {
    let started = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for number in 0..workers {
        let store = store.clone();
        running.spawn(async move {
            let paths: Vec<&str> = spec::modes().iter().map(|mode| mode.path).collect();
            let name = format!("bench-{number}");
            let mut times = Vec::new();
            for _ in 0..CLAIMS / workers {
                let asked = Instant::now();
                let claim = store.claim(&name, &paths).await?.context("a job waits")?;
                times.push(asked.elapsed());
                store.fail(&claim.lease, &spec::Failure::internal("bench")).await?;
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(worker) = running.join_next().await {
        times.extend(worker??);
    }
    Ok(Timed { times, wall: started.elapsed() })
}
