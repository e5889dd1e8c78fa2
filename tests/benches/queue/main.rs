//! What the queue can do on this machine: durable submits, status reads and claims, beside what the same Postgres does
//! for `pgbench` in the same run. Prints the table of docs/benchmarks.md.
//!
//! One Postgres with its default `fsync` and `synchronous_commit`, one `kiln serve` process with its default settings
//! and a key, and this process with the clients: they share the machine's cores, as stated in the output.
//! kiln and pgbench take turns, so that a busy or slow machine slows both.

#![expect(clippy::print_stdout, reason = "a benchmark's output is its result")]
#![expect(clippy::print_stderr, reason = "progress, beside the result")]

mod client;
mod history;
mod pgbench;
mod report;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use client::{Load, Reply};
use report::{Machine, Measured, Table};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use store::{Claim, Store};
use testkit::pg::{DurableCluster, durable_cluster};
use testkit::process::Process;
use uuid::Uuid;

/// The product, from the package's own binary.
const KILN: &str = env!("CARGO_BIN_EXE_kiln-plain");
/// A request as the clients send it, and nothing special about it.
const BODY: &str = r#"{"training_data_url":"https://files.example/training.zip","number_of_steps":500,"trigger_phrase":"TOK"}"#;
const APP: &str = "fal-ai/ltx23-trainer-v2";
/// Jobs that are taken from the queue before statuses are read, half of them finished; as many that wait are asked
/// about besides.
const TAKEN: usize = 1000;

/// Measures the queue.
#[derive(Debug, Parser)]
struct Arguments {
    /// Concurrent clients, of kiln and of pgbench
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Measurements of each kind; kiln and pgbench take turns
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Finished rows in front of the claims
    #[arg(long, default_value_t = 1_000_000)]
    history: u32,
    /// Waiting rows
    #[arg(long, default_value_t = 10_000)]
    waiting: u32,
    /// Claims to time
    #[arg(long, default_value_t = 2000)]
    claims: usize,
    /// Keep the server running this long after its figures, for a profiler; its process id is printed
    #[arg(long, default_value_t = 0)]
    hold: u64,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let machine = Machine::look();
    let cluster = durable_cluster().await?;
    let server = Server::start(&cluster)?;
    let mut table = Table::default();
    let submitted = submits(&arguments, &cluster, &server, &mut table).await?;
    let store = Store::connect(cluster.url(), store::Options::default()).await?;
    let ids = mixed_jobs(&store, TAKEN.min(submitted / 4)).await?;
    statuses(&arguments, &cluster, &server, &ids, &mut table).await?;
    drop(server);
    claims(&arguments, &cluster, &store, &mut table).await?;
    let version = store.database_version().await?;
    store.close().await;
    println!("{}", machine.describe(&version, &arguments));
    println!("{}", table.markdown());
    Ok(())
}

/// Durable submits through HTTP, beside single-row inserts. Says how many jobs wait now.
async fn submits(
    arguments: &Arguments,
    cluster: &DurableCluster,
    server: &Server,
    table: &mut Table,
) -> Result<usize> {
    let inserts = pgbench::Script::inserts(cluster, BODY)?;
    let submit = server.request("POST", &format!("/{APP}/t2v"), BODY);
    let (mut ours, mut theirs) = (Measured::default(), Measured::default());
    for round in 0..arguments.rounds {
        eprintln!("submits, round {}", round + 1);
        theirs.add(inserts.run(arguments.clients, arguments.seconds)?);
        let load = Load { address: &server.address, clients: arguments.clients, seconds: arguments.seconds };
        ours.add(load.run(|_, _| submit.clone(), |reply| reply.expect(200)).await?);
    }
    table.row("submits (HTTP, one durable job each)", "1,500/s", &ours, Some(&theirs));
    table.row("pgbench: one-row inserts", "", &theirs, None);
    Ok(ours.count())
}

/// Takes jobs from the queue and finishes every other one; as many again still wait.
async fn mixed_jobs(store: &Store, taken: usize) -> Result<Vec<Uuid>> {
    let mut ids: Vec<Uuid> = Vec::new();
    for number in 0..taken {
        let claim =
            store.claim("bench", &all_paths()).await?.context("the submits have left waiting jobs")?;
        ids.push(claim.lease.job);
        if number % 2 == 0 {
            finish(store, &claim).await?;
        }
    }
    let filter = store::ListFilter { unfinished: true, limit: 100, ..store::ListFilter::default() };
    let mut cursor = None;
    while ids.len() < 2 * taken {
        let page = store.list(store::ListFilter { cursor, ..filter.clone() }).await?;
        ids.extend(page.items.iter().filter(|job| job.state == store::State::Queued).map(|job| job.id));
        cursor = page.next_cursor;
        ensure!(
            cursor.is_some() || ids.len() >= 2 * taken,
            "fewer than {taken} jobs wait: measure for longer"
        );
    }
    Ok(ids)
}

/// Status reads of those jobs through HTTP, beside reads of one row by its key.
async fn statuses(
    arguments: &Arguments,
    cluster: &DurableCluster,
    server: &Server,
    ids: &[Uuid],
    table: &mut Table,
) -> Result<()> {
    let selects = pgbench::Script::selects(cluster)?;
    let requests: Vec<Vec<u8>> =
        ids.iter().map(|id| server.request("GET", &format!("/{APP}/requests/{id}/status"), "")).collect();
    let (mut ours, mut theirs) = (Measured::default(), Measured::default());
    for round in 0..arguments.rounds {
        eprintln!("statuses, round {}", round + 1);
        theirs.add(selects.run(arguments.clients, arguments.seconds)?);
        let load = Load { address: &server.address, clients: arguments.clients, seconds: arguments.seconds };
        // Each client walks all jobs, from another place.
        let next = |client: usize, turn: usize| requests[(client * 31 + turn * 7) % requests.len()].clone();
        ours.add(load.run(next, |reply| reply.expect_any(&[200, 202])).await?);
    }
    table.row("status (HTTP; half of the jobs wait, a quarter run)", "5,000/s", &ours, Some(&theirs));
    table.row("pgbench: one-row selects by key", "", &theirs, None);
    if arguments.hold > 0 {
        eprintln!("the server is process {}, held for {} s", server.process.id(), arguments.hold);
        tokio::time::sleep(Duration::from_secs(arguments.hold)).await;
    }
    Ok(())
}

/// Claims by one worker and by four, in front of a long history.
async fn claims(
    arguments: &Arguments,
    cluster: &DurableCluster,
    store: &Store,
    table: &mut Table,
) -> Result<()> {
    let paths = all_paths();
    let inserts = pgbench::Script::inserts(cluster, BODY)?;
    for workers in [1, 4] {
        eprintln!("filling in {} finished and {} waiting rows", arguments.history, arguments.waiting);
        history::fill(cluster, arguments.history, arguments.waiting, BODY).await?;
        let mut ours = Measured::default();
        let theirs = {
            let mut measured = Measured::default();
            measured.add(inserts.run(workers, arguments.seconds)?);
            measured
        };
        eprintln!("{} claims by {workers}", arguments.claims);
        let began = Instant::now();
        let workers_claims = (0..workers).map(|_| async {
            let mut times = Vec::with_capacity(arguments.claims / workers);
            for _ in 0..arguments.claims / workers {
                let began = Instant::now();
                store.claim("bench", &paths).await?.context("a waiting row")?;
                times.push(began.elapsed());
            }
            anyhow::Ok(times)
        });
        let times: Vec<Vec<Duration>> = futures_util::future::try_join_all(workers_claims).await?;
        ours.add(client::Run { times: times.concat(), took: began.elapsed() });
        table.row(
            &format!("claims by {workers} at a time, over all 23 queues"),
            "p99 < 5 ms",
            &ours,
            Some(&theirs),
        );
        table.row(&format!("pgbench: one-row inserts, {workers} at a time"), "", &theirs, None);
    }
    Ok(())
}

fn all_paths() -> Vec<&'static str> {
    spec::modes().iter().map(|mode| mode.path).collect()
}

async fn finish(store: &Store, claim: &Claim) -> Result<()> {
    let file = |name: &str| spec::File {
        url: format!("https://files.example/{name}"),
        content_type: Some("application/octet-stream".into()),
        file_name: Some(name.into()),
        file_size: Some(1),
    };
    let outcome = spec::Outcome {
        video: None,
        audio: None,
        lora_file: file("lora.safetensors"),
        config_file: file("config.json"),
        debug_dataset: None,
    };
    Ok(store.finish(&claim.lease, &outcome).await?)
}

/// `kiln serve` as it ships, on a port of its own.
struct Server {
    process: Process,
    address: String,
    key: String,
}

impl Server {
    fn start(cluster: &DurableCluster) -> Result<Server> {
        let log = cluster.folder().join("serve.log");
        let mut command = Command::new(KILN);
        command.env_clear().env("PATH", "/usr/bin:/bin");
        command.args(["serve", "--listen", "127.0.0.1:0", "--database-url", cluster.url(), "--data-dir"]);
        command.arg(data_folder(cluster.folder())?);
        let process = Process::start(&mut command, log)?;
        let key = process.line("FAL_KEY=", Duration::from_secs(30))?;
        let address = process.line("kiln listens on http://", Duration::from_secs(30))?;
        Ok(Server { process, address, key })
    }

    /// A whole request, ready to be sent.
    fn request(&self, method: &str, path: &str, body: &str) -> Vec<u8> {
        let Server { address, key, .. } = self;
        let length = body.len();
        format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Key {key}\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

fn data_folder(beside: &Path) -> Result<std::path::PathBuf> {
    let folder = beside.join("kiln");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

impl Reply<'_> {
    fn expect(&self, status: u16) -> Result<()> {
        self.expect_any(&[status])
    }

    fn expect_any(&self, statuses: &[u16]) -> Result<()> {
        let text = || String::from_utf8_lossy(self.body);
        ensure!(statuses.contains(&self.status), "the server answered {}: {}", self.status, text());
        Ok(())
    }
}
