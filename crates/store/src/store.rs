//! The handle: connecting, migrating, and the parts that work in the background.

use std::{str::FromStr, sync::Arc};

use chrono::{DateTime, Utc};
use sqlx::{
    Connection, PgPool,
    migrate::Migrate,
    postgres::{PgConnectOptions, PgConnection, PgPoolOptions},
};
use tokio::task::JoinHandle;

use crate::{
    Error, Options, Subscription, WebhookSignal, WorkSignal,
    batch::{Batcher, Limits},
    hub::{Hub, Observer},
    jobs::{StatusQuery, StatusReader},
    keys::KeyCache,
    positions::Positions,
    retry::persist,
    submit::{Submission, Submitter},
};

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations");

/// Everything in Postgres. Clones share one pool.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) pool: PgPool,
    listen_pool: PgPool,
    pub(crate) options: Options,
    pub(crate) hub: Arc<Hub>,
    pub(crate) positions: Arc<Positions>,
    pub(crate) keys: Arc<KeyCache>,
    pub(crate) submits: Batcher<Submission, <Submission as crate::submit::Batched>::Output>,
    pub(crate) statuses: Batcher<StatusQuery, <StatusQuery as crate::submit::Batched>::Output>,
    listening: JoinHandle<()>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// What a migration did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// Versions applied now, oldest first.
    pub applied: Vec<i64>,
    /// The version that the tables have.
    pub version: i64,
}

impl Store {
    /// Connects, brings the tables up to this version of kiln, and starts to listen for notifications.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for an unusable address, [`Error::Migrate`] when the tables belong to another version,
    /// [`Error::Unavailable`] when there is no database.
    pub async fn connect(url: &str, options: Options) -> Result<Self, Error> {
        let connect = connect_options(url, &options)?;
        Self::migrate_with(&connect, &options).await?;
        let pool = PgPoolOptions::new()
            .max_connections(options.max_connections)
            .acquire_timeout(options.patience)
            // A dead connection is noticed when it is used, and the call repeated; asking first costs a round trip.
            .test_before_acquire(false)
            .connect_lazy_with(connect.clone());
        let listen_pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(options.patience)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(connect);
        let positions = Arc::new(Positions::default());
        let keys = Arc::new(KeyCache::default());
        let caches = Caches { positions: positions.clone(), keys: keys.clone() };
        let hub = Arc::new(Hub::new(options.poll, Box::new(caches)));
        let listening = tokio::spawn(hub.clone().listen(listen_pool.clone()));
        let submitter =
            Submitter { pool: pool.clone(), positions: positions.clone(), patience: options.patience };
        let reader =
            StatusReader { pool: pool.clone(), positions: positions.clone(), patience: options.patience };
        let submits = Batcher::new(
            Limits { parallel: 2, items: 256, weight: 8 << 20 },
            Submission::weight,
            move |batch| Box::pin(submitter.clone().run(batch)),
        );
        let statuses = Batcher::new(
            Limits { parallel: 2, items: 256, weight: 256 },
            |_| 1,
            move |batch| Box::pin(reader.clone().run(batch)),
        );
        let inner = Inner { pool, listen_pool, options, hub, positions, keys, submits, statuses, listening };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Brings the tables up to this version of kiln. Several processes may do so at once: an advisory lock lets one
    /// at a time in.
    ///
    /// # Errors
    ///
    /// As [`Store::connect`].
    pub async fn migrate(url: &str) -> Result<Migrated, Error> {
        let options = Options::default();
        Self::migrate_with(&connect_options(url, &options)?, &options).await
    }

    async fn migrate_with(connect: &PgConnectOptions, options: &Options) -> Result<Migrated, Error> {
        // Only finding the server is repeated: a migration that fails is a matter for the operator.
        let mut connection = persist(options.patience, || PgConnection::connect_with(connect)).await?;
        // The same lock that the run takes once more: it is the session's, and counted.
        connection.lock().await?;
        let before = applied(&mut connection).await?;
        MIGRATIONS.run(&mut connection).await?;
        let after = applied(&mut connection).await?;
        // Closing the session gives the lock back, as every error above does.
        connection.close().await?;
        let version = after.last().copied().unwrap_or_default();
        Ok(Migrated { applied: after.into_iter().filter(|v| !before.contains(v)).collect(), version })
    }

    /// What this store was made with.
    pub fn options(&self) -> &Options {
        &self.inner.options
    }

    /// Asks the database for an answer, once and without patience.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn ping(&self) -> Result<(), Error> {
        let ask = sqlx::query("/* ping */ select 1").execute(&self.inner.pool);
        match tokio::time::timeout(std::time::Duration::from_secs(2), ask).await {
            Ok(answer) => Ok(answer.map(drop)?),
            Err(_) => Err(Error::Unavailable(sqlx::Error::PoolTimedOut)),
        }
    }

    /// The database's clock, by which leases and deadlines go.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn now(&self) -> Result<DateTime<Utc>, Error> {
        self.persist(|| sqlx::query_scalar("/* now */ select kiln_now()").fetch_one(&self.inner.pool)).await
    }

    /// What the database says it is.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`].
    pub async fn database_version(&self) -> Result<String, Error> {
        let ask = || {
            sqlx::query_scalar(
                "/* database_version */ select 'PostgreSQL ' || current_setting('server_version')",
            )
            .fetch_one(&self.inner.pool)
        };
        self.persist(ask).await
    }

    /// Interest in one job; take it before reading the job's status.
    pub fn subscribe(&self, id: uuid::Uuid) -> Subscription {
        self.inner.hub.subscribe(id)
    }

    /// Interest in claimable work; take it before claiming.
    pub fn work_signal(&self) -> WorkSignal {
        self.inner.hub.work_signal()
    }

    /// Interest in due webhooks; take it before asking for them.
    pub fn webhook_signal(&self) -> WebhookSignal {
        self.inner.hub.webhook_signal()
    }

    /// Closes this process' connections; every clone of the store stops working.
    pub async fn close(self) {
        self.inner.listening.abort();
        self.inner.listen_pool.close().await;
        self.inner.pool.close().await;
    }

    pub(crate) fn pool(&self) -> &PgPool {
        &self.inner.pool
    }

    /// Repeats an operation while the database is away; see [`persist`].
    pub(crate) async fn persist<T, F, Fut>(&self, operation: F) -> Result<T, Error>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, sqlx::Error>>,
    {
        persist(self.inner.options.patience, operation).await
    }
}

fn connect_options(url: &str, options: &Options) -> Result<PgConnectOptions, Error> {
    // The parser takes any scheme; only one kind of database is meant.
    if !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
        let form = "postgres://user:password@host/database";
        return Err(Error::Config(format!(
            "the database's address cannot be used: it must look like {form}"
        )));
    }
    let connect = PgConnectOptions::from_str(url)
        .map_err(|e| Error::Config(format!("the database's address cannot be used: {e}")))?;
    let settings = options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    Ok(connect.application_name("kiln").options(settings))
}

async fn applied(connection: &mut PgConnection) -> Result<Vec<i64>, Error> {
    connection.ensure_migrations_table("_sqlx_migrations").await?;
    let mut versions: Vec<i64> =
        connection.list_applied_migrations("_sqlx_migrations").await?.iter().map(|m| m.version).collect();
    versions.sort_unstable();
    Ok(versions)
}

/// What notifications invalidate.
#[derive(Debug)]
struct Caches {
    positions: Arc<Positions>,
    keys: Arc<KeyCache>,
}

impl Observer for Caches {
    fn queue_grew(&self, path: &str) {
        self.positions.grew(path);
    }

    fn queue_moved(&self, path: &str) {
        self.positions.moved(path);
    }

    fn key_revoked(&self, id: &str) {
        self.keys.forget(id);
    }

    fn reset(&self) {
        self.positions.reset();
        self.keys.clear();
    }
}
