//! Real Postgres for tests.
//!
//! One server is shared by all test processes of a run (nextest starts a process per test), each test gets a
//! database of its own, copied from a migrated template. The server lives under `/tmp`, without fsync; the first
//! test starts it, a small watchdog stops it a minute after the last test, and the next run starts it again.
//! [`durable_cluster`] makes a server of a test's own, with Postgres' default durability, to be killed and started
//! at will.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, postgres::PgConnectOptions};
use store::cluster::{Cluster, Options};

/// The shared server stops this long after the last use.
const IDLE_SECONDS: u32 = 60;

/// A database of the test's own. It is dropped by the next test that starts after this one ended.
#[derive(Debug)]
pub struct Database {
    server: SharedServer,
    name: String,
    // Held as long as the database is in use; whoever can take it exclusively may drop the database.
    _lock: fs::File,
}

impl Database {
    /// Address for `Store::connect`.
    pub fn url(&self) -> String {
        self.server.cluster.url_of(&self.name)
    }

    /// The same database, its clock standing at `time` for whoever connects with this address.
    pub fn url_at(&self, time: DateTime<Utc>) -> String {
        let setting = format!("-c kiln.now={}", time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true));
        let escaped: String = setting
            .bytes()
            .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
            .collect();
        format!("{}&options={escaped}", self.url())
    }

    /// A connection past the store, to look at rows or to make them odd.
    pub async fn connect(&self) -> Result<PgConnection> {
        connect(&self.url()).await
    }
}

/// Makes a migrated database for one test.
pub async fn database() -> Result<Database> {
    new_database(Some(&template_name())).await
}

/// Makes an empty database for one test.
pub async fn empty_database() -> Result<Database> {
    new_database(None).await
}

/// The migrations that the template holds, embedded so that a test binary needs nothing but Postgres.
static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations");

/// Templates are named after their content: worktrees with different migrations do not disturb each other.
fn template_name() -> String {
    let mut digest = Sha256::new();
    for migration in MIGRATIONS.iter() {
        digest.update(migration.version.to_le_bytes());
        digest.update(&migration.checksum);
    }
    format!("template_{}", hex::encode(&digest.finalize()[..8]))
}

async fn new_database(template: Option<&str>) -> Result<Database> {
    let server = SharedServer::join().await?;
    let name = format!("t_{}", uuid::Uuid::new_v4().simple());
    let lock = open(&server.folder.join("databases").join(&name))?;
    lock.lock_shared()?;
    let mut admin = connect(&server.cluster.url_of("postgres")).await?;
    if let Some(template) = template {
        server.make_template(&mut admin, template).await?;
    }
    let source = template.unwrap_or("template0");
    admin.execute(AssertSqlSafe(format!("create database {name} template {source}"))).await?;
    server.drop_left_databases(&mut admin).await?;
    admin.close().await?;
    Ok(Database { server, name, _lock: lock })
}

#[derive(Debug)]
struct SharedServer {
    cluster: Cluster,
    folder: PathBuf,
}

impl SharedServer {
    async fn join() -> Result<Self> {
        let folder = PathBuf::from(format!("/tmp/kiln-test-pg-{}", own_uid()?));
        fs::create_dir_all(folder.join("databases"))?;
        let cluster = Cluster::start(Options {
            durable: false,
            stop_when_last: false,
            watch: false,
            settings: ["shared_buffers=64MB", "max_wal_size=256MB", "autovacuum=off"]
                .map(str::to_owned)
                .to_vec(),
            ..Options::new(&folder)
        })
        .await
        .context("starting the shared test database")?;
        let server = Self { cluster, folder };
        server.start_watchdog()?;
        Ok(server)
    }

    /// Migrates the template once; later callers find it.
    async fn make_template(&self, admin: &mut PgConnection, template: &str) -> Result<()> {
        let exists = "select 1 from pg_database where datname = $1 and datistemplate";
        if sqlx::query(exists).bind(template).fetch_optional(&mut *admin).await?.is_some() {
            return Ok(());
        }
        let mut tx = admin.begin().await?;
        // One maker at a time, whichever test binary it runs in. Databases cannot be made inside a transaction,
        // so this one only carries the lock.
        sqlx::query("select pg_advisory_xact_lock(hashtext($1))").bind(template).execute(&mut *tx).await?;
        if sqlx::query(exists).bind(template).fetch_optional(&mut *tx).await?.is_none() {
            let mut maker = connect(&self.cluster.url_of("postgres")).await?;
            maker.execute(AssertSqlSafe(format!("drop database if exists {template}"))).await?;
            maker.execute(AssertSqlSafe(format!("create database {template} template template0"))).await?;
            let mut inside = connect(&self.cluster.url_of(template)).await?;
            MIGRATIONS.run(&mut inside).await?;
            inside.close().await?;
            maker.execute(AssertSqlSafe(format!("alter database {template} is_template true"))).await?;
            maker.close().await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Drops databases whose test is over: their lock is free.
    async fn drop_left_databases(&self, admin: &mut PgConnection) -> Result<()> {
        for entry in fs::read_dir(self.folder.join("databases"))?.flatten() {
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            let Ok(lock) = open(&entry.path()) else { continue };
            if lock.try_lock().is_ok() {
                ensure!(
                    name.starts_with("t_") && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                );
                admin.execute(AssertSqlSafe(format!("drop database if exists {name} with (force)"))).await?;
                fs::remove_file(entry.path()).ok();
            }
        }
        Ok(())
    }

    /// Starts the process that stops the server when nobody has used it for a while. It outlives the test process
    /// on purpose, and there is one at most.
    fn start_watchdog(&self) -> Result<()> {
        static STARTED: OnceLock<()> = OnceLock::new();
        fs::File::create(self.folder.join("last-use"))?;
        if STARTED.set(()).is_err() {
            return Ok(());
        }
        // The numbers 8 and 9 are the watchdog's own lock, and the lock that every user of the cluster shares.
        const SCRIPT: &str = r#"
            cd "$0" || exit 0
            exec 8>watchdog.lock; flock -n 8 || exit 0
            while sleep 10; do
                [ -d postgres/cluster ] || exit 0
                [ -z "$(find last-use -newermt "-$1 seconds" 2>/dev/null)" ] || continue
                exec 7>postgres/start.lock; flock -n 7 || { exec 7>&-; continue; }
                exec 9>postgres/users.lock; flock -n 9 || { exec 9>&- 7>&-; continue; }
                kill -INT "$(head -n 1 postgres/cluster/postmaster.pid)" 8>&- 7>&- 9>&-
                exit 0
            done"#;
        let mut watchdog = Command::new("sh");
        watchdog.args(["-c", SCRIPT]).arg(&self.folder).arg(IDLE_SECONDS.to_string());
        watchdog.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // Out of the terminal's process group: an interrupted test run must not take the watchdog with it.
        std::os::unix::process::CommandExt::process_group(&mut watchdog, 0);
        watchdog.spawn().context("starting the watchdog of the test database")?;
        Ok(())
    }
}

impl Drop for SharedServer {
    fn drop(&mut self) {
        // A hint for the watchdog; without it the server only stops a little earlier.
        fs::File::create(self.folder.join("last-use")).and_then(|mut f| f.write_all(b"\n")).ok();
    }
}

/// Starts a Postgres of the test's own with Postgres' default durability. It ends with the handle.
pub async fn durable_cluster() -> Result<DurableCluster> {
    // Short, and enterable by the user that Postgres runs as.
    let folder = tempfile::Builder::new().prefix("kiln-pg-").tempdir_in("/tmp")?;
    let open_to_all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder.path(), open_to_all)?;
    let cluster = Cluster::start(Options { watch: false, ..Options::new(folder.path()) }).await?;
    Ok(DurableCluster { cluster, folder })
}

/// A Postgres with fsync on that a test may kill.
#[derive(Debug)]
pub struct DurableCluster {
    cluster: Cluster,
    folder: tempfile::TempDir,
}

impl DurableCluster {
    /// Address of its database, not migrated.
    pub fn url(&self) -> &str {
        self.cluster.url()
    }

    /// kiln's data folder, for another [`Cluster`] on it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Process id of the server, if it runs.
    pub fn pid(&self) -> Option<u32> {
        self.cluster.pid()
    }

    /// Kills the server with SIGKILL.
    pub fn kill_postmaster(&self) -> Result<()> {
        let pid = self.cluster.pid().context("the server does not run")?;
        let status = Command::new("kill").args(["-9", &pid.to_string()]).status()?;
        ensure!(status.success(), "kill -9 {pid}: {status}");
        Ok(())
    }

    /// `pg_ctl stop -m immediate`: the server quits without saving anything, as in a crash.
    pub async fn stop_immediate(&self) -> Result<()> {
        let mut stop = self.cluster.command("pg_ctl");
        stop.arg("stop").arg("-D").arg(self.cluster.data()).args(["-s", "-w", "-m", "immediate"]);
        let output = tokio::task::spawn_blocking(move || stop.output()).await??;
        ensure!(output.status.success(), "pg_ctl stop: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Starts it again.
    pub async fn start(&self) -> Result<()> {
        Ok(self.cluster.ensure_running().await?)
    }
}

impl Drop for DurableCluster {
    fn drop(&mut self) {
        let mut stop = self.cluster.command("pg_ctl");
        stop.arg("stop").arg("-D").arg(self.cluster.data()).args(["-s", "-w", "-m", "immediate"]);
        // It may have been killed already.
        stop.stdout(Stdio::null()).stderr(Stdio::null()).status().ok();
    }
}

async fn connect(url: &str) -> Result<PgConnection> {
    let options: PgConnectOptions = url.parse()?;
    // Right after another test's start the server may still be refusing for an instant.
    let mut last = None;
    for _ in 0..50 {
        match options.connect().await {
            Ok(connection) => return Ok(connection),
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(last.expect("invariant: 50 tries were made").into())
}

fn open(path: &Path) -> Result<fs::File> {
    let file = fs::OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
    file.with_context(|| format!("opening {}", path.display()))
}

fn own_uid() -> Result<u32> {
    Ok(std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self")?))
}
