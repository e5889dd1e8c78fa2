//! From the configuration to an open database: the one that was named, or the private Postgres (decision 2).

use crate::config::Config;
use anyhow::Context as _;
use std::{path::PathBuf, time::Duration};
use store::{Store, cluster::Cluster};

/// An open database and, where kiln runs it itself, the cluster it lives in.
pub(crate) struct Database {
    pub(crate) store: Store,
    cluster: Option<Cluster>,
}

impl Database {
    /// Starts the private Postgres when no address is named, connects and brings the tables up to date.
    ///
    /// # Errors
    /// What is wrong with the address or the machine, and what to do.
    pub(crate) async fn open(config: &Config) -> anyhow::Result<Database> {
        let place = Place::of(config).await?;
        match Store::connect(&place.url, options(config)).await {
            Ok(store) => Ok(Database { store, cluster: place.cluster }),
            Err(error) => {
                leave(place.cluster).await;
                Err(error).with_context(|| format!("the database ({}) cannot be used", place.words))
            }
        }
    }

    /// Closes the connections; the last process on a private Postgres stops it.
    pub(crate) async fn close(self) {
        self.store.close().await;
        leave(self.cluster).await;
    }
}

/// Gives a share in the private Postgres back; the last one stops it.
pub(crate) async fn leave(cluster: Option<Cluster>) {
    if let Some(cluster) = cluster
        && let Err(error) = cluster.close().await
    {
        tracing::warn!(%error, "the private Postgres could not be stopped in good order");
    }
}

/// Where the database is, before anybody connected.
pub(crate) struct Place {
    pub(crate) url: String,
    /// For people; without the password.
    pub(crate) words: String,
    pub(crate) cluster: Option<Cluster>,
}

impl Place {
    pub(crate) async fn of(config: &Config) -> anyhow::Result<Place> {
        if let Some(url) = &config.database.url {
            return Ok(Place { url: url.reveal().to_owned(), words: shown(url.reveal()), cluster: None });
        }
        let folder: PathBuf = config.data_dir.clone();
        let words = format!("kiln's private Postgres in {}", folder.join("postgres").display());
        let cluster = Cluster::start(store::cluster::Options::new(folder))
            .await
            .with_context(|| format!("{words} cannot be started"))?;
        Ok(Place { url: cluster.url().to_owned(), words, cluster: Some(cluster) })
    }
}

/// The store's options as the configuration wants them.
pub(crate) fn options(config: &Config) -> store::Options {
    store::Options {
        max_connections: config.database.max_connections,
        lease: config.queue.lease,
        max_attempts: config.queue.max_attempts,
        retention: config.queue.retention,
        poll: config.work.poll,
        // A dead worker's job is seen soon after its lease ran out, whatever the lease is.
        sweep_every: (config.queue.lease / 9).clamp(Duration::from_millis(200), Duration::from_secs(5)),
        ..store::Options::default()
    }
}

/// A database address without what must not be shown.
pub(crate) fn shown(address: &str) -> String {
    match url::Url::parse(address) {
        Ok(mut url) => {
            if url.password().is_some() {
                let _ = url.set_password(Some("…"));
            }
            // Connection parameters may hold a password too.
            let harmless: Vec<(String, String)> = url
                .query_pairs()
                .filter(|(name, _)| name != "password")
                .map(|(a, b)| (a.into(), b.into()))
                .collect();
            url.set_query(None);
            if !harmless.is_empty() {
                url.query_pairs_mut().extend_pairs(harmless);
            }
            url.to_string().replace("%E2%80%A6", "…")
        }
        Err(_) => "an address that cannot be read".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn an_address_is_shown_without_its_password() {
        assert_eq!(shown("postgres://kiln:hunter2@db:5432/kiln"), "postgres://kiln:…@db:5432/kiln");
        assert_eq!(shown("postgres://db/kiln?user=a&password=hunter2"), "postgres://db/kiln?user=a");
        assert_eq!(shown("postgres:///kiln?host=/run/pg"), "postgres:///kiln?host=%2Frun%2Fpg");
        assert_eq!(shown("hunter2"), "an address that cannot be read");
    }
}
