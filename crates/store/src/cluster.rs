//! The private Postgres: kiln's own database server when nobody gave it one.
//!
//! One cluster per data folder, shared by every kiln process on that folder, reached through a unix socket only.
//! Two file locks keep it sound, and the kernel drops both when a process is killed:
//!
//! - `start.lock`, exclusive, held for the moments in which the server is started or stopped;
//! - `users.lock`, shared, held as long as a process uses the server. Whoever leaves and can make it exclusive was
//!   the last one and stops the server.
//!
//! A server that vanished (killed, out of memory) is started again by whichever process notices first. Postgres
//! refuses to run as root, so under root its programs run as the user `postgres` (or `nobody`), which then owns
//! the files. Durability is Postgres' default unless [`Options::durable`] is switched off, which only tests do.
//!
//! Knows nothing of what is inside the database.

mod identity;
mod programs;
mod server;

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

pub use identity::Identity;
pub use programs::{Programs, find_programs};
use server::Server;

/// How long one process waits for another that is starting or stopping the server.
const LOCK_WAIT: Duration = Duration::from_secs(120);
/// How often a process looks whether the server is still there.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Why the private Postgres is not available; the text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No usable PostgreSQL installation.
    #[error(
        "PostgreSQL{} was not found (looked for initdb, pg_ctl and postgres in {looked}): install the package \
         {package} (Debian, Ubuntu: apt-get install {package}), or give kiln a database by its URL",
        version.map(|v| format!(" {v}")).unwrap_or_default()
    )]
    ProgramsMissing {
        /// Folders that were searched.
        looked: String,
        /// The major version the data folder needs, if it exists already.
        version: Option<u32>,
        /// The package to install.
        package: String,
    },
    /// Root cannot run Postgres, and no other user was found.
    #[error(
        "kiln runs as root, and PostgreSQL may not: it needs an unprivileged user named postgres or nobody \
         (the package postgresql creates one), or run kiln as an ordinary user"
    )]
    NoUser,
    /// The unprivileged user cannot get to the data folder.
    #[error(
        "the user {user}, as which PostgreSQL runs, cannot write in {folder}: choose a data folder all of whose \
         parents this user may enter (not below /root), or run kiln as an ordinary user"
    )]
    Unreachable {
        /// The database's folder.
        folder: PathBuf,
        /// The user's name.
        user: String,
    },
    /// A folder of that name exists and is not ours.
    #[error("{folder} is needed for the database's socket but belongs to somebody else: remove it")]
    SocketFolder {
        /// The folder in the way.
        folder: PathBuf,
    },
    /// Another process has been starting or stopping the server for too long.
    #[error(
        "another kiln process has been starting or stopping the database for {seconds} s ({lock} is held)"
    )]
    Busy {
        /// The lock file.
        lock: PathBuf,
        /// How long we waited.
        seconds: u64,
    },
    /// A Postgres program failed.
    #[error("{program} failed: {output}")]
    Program {
        /// Its name.
        program: String,
        /// What it printed, and the end of the server's log.
        output: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.into(), source }
    }
}

/// Where the cluster lives and how it runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// kiln's data folder; the cluster lives in `<data>/postgres`.
    pub data: PathBuf,
    /// Full durability. Only test clusters switch it off.
    pub durable: bool,
    /// Whether the last process out stops the server.
    pub stop_when_last: bool,
    /// Whether this process starts the server again when it vanishes.
    pub watch: bool,
    /// Further server settings, as `name=value`.
    pub settings: Vec<String>,
}

impl Options {
    /// The product's settings for the given data folder.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self { data: data.into(), durable: true, stop_when_last: true, watch: true, settings: Vec::new() }
    }
}

/// A share in the running private Postgres.
///
/// [`Cluster::close`] gives it back in good order. A dropped handle only lets go of the lock: the server runs on
/// until the next process on the folder leaves.
#[derive(Debug)]
pub struct Cluster {
    server: Arc<Server>,
    users: File,
    stop_when_last: bool,
    watcher: Option<tokio::task::JoinHandle<()>>,
}

impl Cluster {
    /// Starts the private Postgres, or joins the one that runs, creating it on the first start.
    ///
    /// # Errors
    ///
    /// Everything in [`Error`]; each text names the folder or package and what to do.
    pub async fn start(options: Options) -> Result<Self, Error> {
        blocking(move || Self::start_blocking(options)).await.map(|mut cluster| {
            if cluster.1 {
                cluster.0.watcher = Some(tokio::spawn(watch(cluster.0.server.clone())));
            }
            cluster.0
        })
    }

    fn start_blocking(options: Options) -> Result<(Self, bool), Error> {
        let identity = Identity::for_postgres()?;
        let server = Server::prepare(&options, identity)?;
        let start = server.lock_start()?;
        let users_path = server.folder().join("users.lock");
        let users = open_lock(&users_path)?;
        // Only a leaving process holds it exclusively, and that one holds start.lock, which we hold.
        users.lock_shared().map_err(Error::io(&users_path))?;
        server.create_if_missing()?;
        server.ensure_running()?;
        drop(start);
        let cluster =
            Self { server: Arc::new(server), users, stop_when_last: options.stop_when_last, watcher: None };
        Ok((cluster, options.watch))
    }

    /// The address of kiln's database in this cluster, for [`Store::connect`](crate::Store::connect).
    pub fn url(&self) -> &str {
        self.server.url()
    }

    /// The address of another database in this cluster.
    pub fn url_of(&self, database: &str) -> String {
        self.server.url_of(database)
    }

    /// Postgres' data folder.
    pub fn data(&self) -> &Path {
        self.server.data()
    }

    /// The process id of the running server, if it runs.
    pub fn pid(&self) -> Option<u32> {
        self.server.running()
    }

    /// A command that runs one of Postgres' own programs (`pg_ctl`, `pg_dump`, `pgbench`) as the user who owns the
    /// cluster.
    pub fn command(&self, program: &str) -> std::process::Command {
        self.server.command(program)
    }

    /// Starts the server again if it does not run.
    ///
    /// # Errors
    ///
    /// As [`Cluster::start`].
    pub async fn ensure_running(&self) -> Result<(), Error> {
        let server = self.server.clone();
        blocking(move || server.revive()).await
    }

    /// Leaves the cluster; the last process out stops the server, waiting until it is down.
    ///
    /// # Errors
    ///
    /// When the server could not be stopped. The share is given back all the same.
    pub async fn close(mut self) -> Result<(), Error> {
        if let Some(watcher) = self.watcher.take() {
            watcher.abort();
            // Wait for it: a revival under way must not race with the stop below.
            let _cancelled = watcher.await;
        }
        blocking(move || {
            let start = self.server.lock_start()?;
            let path = self.server.folder().join("users.lock");
            self.users.unlock().map_err(Error::io(&path))?;
            let last = match self.users.try_lock() {
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => false,
                Err(TryLockError::Error(e)) => return Err(Error::io(&path)(e)),
            };
            let stopped = if last && self.stop_when_last { self.server.stop() } else { Ok(()) };
            drop(start);
            stopped
        })
        .await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(watcher) = self.watcher.take() {
            watcher.abort();
        }
    }
}

/// Starts the server again whenever it is gone.
async fn watch(server: Arc<Server>) {
    loop {
        tokio::time::sleep(WATCH_EVERY).await;
        let server = server.clone();
        let looked = blocking(move || {
            if server.running().is_some() {
                return Ok(());
            }
            tracing::warn!(folder = %server.folder().display(), "the private Postgres is gone: starting it again");
            server.revive()
        })
        .await;
        if let Err(error) = looked {
            tracing::error!(%error, "the private Postgres could not be started again; next try in a moment");
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("invariant: the closure does not panic and is not aborted")
}

/// Opens a lock file, creating it. The descriptor is closed on exec, so Postgres never inherits the lock.
fn open_lock(path: &Path) -> Result<File, Error> {
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(Error::io(path))
}

/// Takes a lock exclusively, waiting up to [`LOCK_WAIT`].
fn lock_exclusive(path: &Path) -> Result<File, Error> {
    let file = open_lock(path)?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(e)) => return Err(Error::io(path)(e)),
            Err(TryLockError::WouldBlock) if begun.elapsed() > LOCK_WAIT => {
                return Err(Error::Busy { lock: path.to_owned(), seconds: LOCK_WAIT.as_secs() });
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
