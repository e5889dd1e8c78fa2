//! The private Postgres: starting, sharing, recovering.

use std::{os::unix::fs::PermissionsExt, path::Path, time::Duration};

use anyhow::{Context, Result};
use sqlx::Connection;
use store::{
    Options, Store,
    cluster::{self, Cluster},
};

use crate::common::*;

/// A folder that the cluster's user can enter; the server in it does not outlive the test.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("kiln-cluster-").tempdir_in("/tmp")?;
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
        Ok(Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn options(&self) -> cluster::Options {
        cluster::Options::new(self.path())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(self.path().join("postgres/cluster/postmaster.pid")).ok();
        if let Some(pid) = pid.as_deref().and_then(|text| text.lines().next()) {
            std::process::Command::new("kill").args(["-QUIT", pid]).status().ok();
        }
    }
}

fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/cwd")).read_link().is_ok()
}

fn kill(pid: u32) -> Result<()> {
    std::process::Command::new("kill").args(["-9", &pid.to_string()]).status()?;
    Ok(())
}

#[tokio::test]
async fn several_starters_get_one_server_and_the_last_one_out_stops_it() -> Result<()> {
    let folder = Folder::new()?;
    let started =
        futures_util::future::try_join_all((0..3).map(|_| Cluster::start(folder.options()))).await?;
    let pid = started[0].pid().context("it runs")?;
    assert!(started.iter().all(|cluster| cluster.pid() == Some(pid)));
    let store =
        Store::connect(started[0].url(), Options { max_connections: 2, ..Options::default() }).await?;
    submit(&store, job(1)).await?;
    store.close().await;
    let mut left = started.into_iter();
    let last = left.next_back().context("three")?;
    for cluster in left {
        cluster.close().await?;
        assert!(alive(pid), "somebody still uses it");
    }
    last.close().await?;
    assert!(!alive(pid));
    // Nothing listens on a network, and what was written is there at the next start.
    let again = Cluster::start(folder.options()).await?;
    let store = Store::connect(again.url(), Options { max_connections: 2, ..Options::default() }).await?;
    assert_eq!(store.counts().await?[0].queued, 1);
    let mut direct = sqlx::PgConnection::connect(again.url()).await?;
    let settings: (String, String, String) = sqlx::query_as(
        "select current_setting('listen_addresses'), current_setting('fsync'), current_setting('synchronous_commit')",
    )
    .fetch_one(&mut direct)
    .await?;
    assert_eq!(settings, (String::new(), "on".to_owned(), "on".to_owned()));
    store.close().await;
    again.close().await?;
    Ok(())
}

#[tokio::test]
async fn a_killed_server_is_started_again_and_calls_ride_it_out() -> Result<()> {
    let folder = Folder::new()?;
    let cluster = Cluster::start(folder.options()).await?;
    let options = Options { max_connections: 4, patience: Duration::from_secs(60), ..Options::default() };
    let store = Store::connect(cluster.url(), options).await?;
    submit(&store, job(1)).await?;
    let first = cluster.pid().context("it runs")?;
    kill(first)?;
    submit(&store, job(2)).await?;
    assert_eq!(store.counts().await?[0].queued, 2);
    assert_ne!(cluster.pid().context("it runs again")?, first);
    store.close().await;
    cluster.close().await?;
    Ok(())
}

#[tokio::test]
async fn a_pid_file_whose_number_belongs_to_somebody_else_does_not_stop_the_start() -> Result<()> {
    let folder = Folder::new()?;
    let cluster = Cluster::start(cluster::Options { watch: false, ..folder.options() }).await?;
    let pid = cluster.pid().context("it runs")?;
    kill(pid)?;
    eventually("the server is gone", async || Ok(!alive(pid))).await?;
    // This test's own number: a living process that is no Postgres.
    let file = folder.path().join("postgres/cluster/postmaster.pid");
    let text = std::fs::read_to_string(&file)?;
    std::fs::write(&file, text.replacen(&pid.to_string(), &std::process::id().to_string(), 1))?;
    assert_eq!(cluster.pid(), None);
    cluster.ensure_running().await?;
    assert!(cluster.pid().is_some());
    cluster.close().await?;
    Ok(())
}

#[tokio::test]
async fn a_process_that_was_killed_leaves_a_server_that_the_next_one_shares_and_stops() -> Result<()> {
    let folder = Folder::new()?;
    let killed = Cluster::start(cluster::Options { watch: false, ..folder.options() }).await?;
    let pid = killed.pid().context("it runs")?;
    // What the kernel does to a killed process' locks.
    drop(killed);
    assert!(alive(pid));
    let next = Cluster::start(folder.options()).await?;
    assert_eq!(next.pid(), Some(pid));
    next.close().await?;
    assert!(!alive(pid));
    Ok(())
}

#[tokio::test]
async fn a_first_start_that_was_cut_off_is_begun_anew() -> Result<()> {
    let folder = Folder::new()?;
    let half = folder.path().join("postgres/cluster.new");
    std::fs::create_dir_all(&half)?;
    std::fs::write(half.join("PG_VERSION"), "15\n")?;
    let cluster = Cluster::start(folder.options()).await?;
    assert!(cluster.pid().is_some() && !half.exists());
    cluster.close().await?;
    Ok(())
}

#[tokio::test]
async fn a_folder_deeper_than_a_socket_path_may_be_works_too() -> Result<()> {
    let folder = Folder::new()?;
    let deep = folder.path().join("d".repeat(60)).join("d e'e%p".repeat(6));
    std::fs::create_dir_all(&deep)?;
    let cluster = Cluster::start(cluster::Options::new(&deep)).await?;
    Store::migrate(cluster.url()).await?;
    let url = cluster.url().to_owned();
    let (_, sockets) = url.split_once("host=").context("the address names the socket's folder")?;
    let sockets = Path::new(sockets.split('&').next().unwrap_or_default()).to_owned();
    assert!(sockets.starts_with("/tmp") && sockets.is_dir(), "{}", sockets.display());
    cluster.close().await?;
    assert!(!sockets.exists(), "the last one out leaves nothing in /tmp");
    Ok(())
}

#[tokio::test]
async fn a_folder_that_postgres_cannot_enter_is_refused_with_a_way_out() -> Result<()> {
    if cluster::Identity::for_postgres()?.drop_to.is_none() {
        eprintln!("SKIPPED: only root has another user's folders to worry about");
        return Ok(());
    }
    let closed = tempfile::Builder::new().prefix("kiln-closed-").tempdir_in("/tmp")?;
    std::fs::set_permissions(closed.path(), std::fs::Permissions::from_mode(0o700))?;
    let error =
        Cluster::start(cluster::Options::new(closed.path().join("data"))).await.expect_err("it is closed");
    let text = error.to_string();
    assert!(
        matches!(error, cluster::Error::Unreachable { .. }) && text.contains("choose a data folder"),
        "{text}"
    );
    Ok(())
}
