//! `pgbench` on a table like the job table's core: what the database gives to whoever asks it one row at a time.

use crate::client::Run;
use anyhow::{Context as _, Result, ensure};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use testkit::pg::DurableCluster;

/// The key, an index for the waiting rows and the two texts, as `jobs` has them; none of its other columns and indexes.
const TABLE: &str = "
    create table if not exists bench_rows (
        id uuid primary key, seq bigint generated always as identity, path text not null, state text not null,
        input json, spec json, created_at timestamptz not null);
    create index if not exists bench_rows_waiting on bench_rows (path, seq) where state = 'queued';";

/// A script to run against a cluster.
pub(crate) struct Script {
    folder: PathBuf,
    url: String,
    programs: PathBuf,
}

impl Script {
    /// One row per transaction.
    pub(crate) fn inserts(cluster: &DurableCluster, body: &str) -> Result<Script> {
        let sql = format!(
            "insert into bench_rows (id, path, state, input, spec, created_at)
             values (gen_random_uuid(), 't2v', 'queued', '{body}', '{body}', now());"
        );
        Script::make(cluster, "inserts", &sql)
    }

    /// One of ten thousand rows by its key.
    pub(crate) fn selects(cluster: &DurableCluster) -> Result<Script> {
        let script = Script::make(
            cluster,
            "selects",
            "\\set n random(1, 10000)
             select id, path, state, seq, created_at from bench_rows where id = md5(:n::text)::uuid;",
        )?;
        script.psql(
            "insert into bench_rows (id, path, state, created_at)
             select md5(n::text)::uuid, 't2v', 'done', now() from generate_series(1, 10000) as n
             on conflict do nothing;
             vacuum analyze bench_rows;",
        )?;
        Ok(script)
    }

    fn make(cluster: &DurableCluster, name: &str, sql: &str) -> Result<Script> {
        let folder = cluster.folder().join(format!("pgbench-{name}"));
        std::fs::create_dir_all(&folder)?;
        // pgbench ends a command at the semicolon; ours have one each, in one line.
        let lines: Vec<String> = sql.split('\n').map(|line| line.trim().to_owned()).collect();
        let text = match lines.first().filter(|line| line.starts_with('\\')) {
            Some(set) => format!("{set}\n{}\n", lines[1..].join(" ")),
            None => format!("{}\n", lines.join(" ")),
        };
        std::fs::write(folder.join("script.sql"), text)?;
        // The programs found may be links to where the whole installation is.
        let postgres = store::cluster::find_programs(None)?.bin.join("postgres").canonicalize()?;
        let programs = postgres.parent().context("a folder")?.to_owned();
        let script = Script { folder, url: cluster.url().to_owned(), programs };
        script.psql(TABLE)?;
        Ok(script)
    }

    fn psql(&self, sql: &str) -> Result<()> {
        let mut psql = Command::new(self.programs.join("psql"));
        psql.args(["-qX", "-v", "ON_ERROR_STOP=1", "-d", &self.url]);
        for statement in sql.split(';').map(str::trim).filter(|statement| !statement.is_empty()) {
            psql.args(["-c", statement]);
        }
        let output = psql.output().context("psql cannot be started")?;
        ensure!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Runs it with so many clients for so long. Prepared statements, as kiln's driver makes them.
    pub(crate) fn run(&self, clients: usize, seconds: u64) -> Result<Run> {
        for old in std::fs::read_dir(&self.folder)?.flatten() {
            if old.file_name().to_string_lossy().starts_with("log.") {
                std::fs::remove_file(old.path())?;
            }
        }
        let mut pgbench = Command::new(self.programs.join("pgbench"));
        pgbench.args([
            "--no-vacuum",
            "--protocol",
            "prepared",
            "--file",
            "script.sql",
            "--log",
            "--log-prefix=log",
        ]);
        pgbench.args(["--client", &clients.to_string(), "--jobs", &clients.min(2).to_string()]);
        pgbench.args(["--time", &seconds.to_string(), &self.url]);
        let began = Instant::now();
        let output = pgbench.current_dir(&self.folder).output().context("pgbench cannot be started")?;
        let took = began.elapsed();
        ensure!(output.status.success(), "pgbench: {}", String::from_utf8_lossy(&output.stderr));
        let mut times = Vec::new();
        for log in std::fs::read_dir(&self.folder)?.flatten() {
            if log.file_name().to_string_lossy().starts_with("log.") {
                // client, transaction, microseconds, script, and when
                for line in std::fs::read_to_string(log.path())?.lines() {
                    let micros = line.split(' ').nth(2).context("a time in pgbench's log")?;
                    times.push(Duration::from_micros(micros.parse()?));
                }
            }
        }
        // Connecting 64 times takes a while and is not what is measured.
        let took = tps(&String::from_utf8_lossy(&output.stdout))
            .map_or(took, |tps| Duration::from_secs_f64(times.len() as f64 / tps));
        Ok(Run { times, took })
    }
}

/// `tps = 1234.5 (without initial connection time)`
fn tps(output: &str) -> Option<f64> {
    let line = output.lines().find_map(|line| line.strip_prefix("tps = "))?;
    line.split(' ').next()?.parse().ok()
}
