//! `kiln serve`: the HTTP server.

use super::{print, shutdown_signal};
use crate::{config::Config, database::Database};
use anyhow::{Context as _, bail};
use server::{App, Auth, Options};
use std::process::ExitCode;
use tokio::net::TcpListener;

pub(super) async fn run(config: &Config) -> anyhow::Result<ExitCode> {
    let serve = &config.serve;
    if serve.insecure_no_auth && !serve.listen.ip().is_loopback() {
        bail!(
            "serve.insecure_no_auth lets anybody in who reaches {}: it is accepted for a loopback address only \
             (serve.listen = \"127.0.0.1:{}\")",
            serve.listen,
            serve.listen.port()
        );
    }
    let shutdown = shutdown_signal()?;
    // The port comes first: when it is taken, nothing else should have been started.
    let listener = TcpListener::bind(serve.listen)
        .await
        .with_context(|| format!("cannot listen on {}; set serve.listen to a free address", serve.listen))?;
    let address = listener.local_addr()?;
    let database = Database::open(config).await?;
    let served = async {
        first_key(config, &database.store).await?;
        let app = App::new(database.store.clone(), options(config));
        // For people and for programs that start kiln on port 0.
        print(&format!("kiln listens on http://{address}\n"))?;
        tokio::select! {
            served = server::serve(listener, app, shutdown.cancelled()) => served.context("the server cannot go on"),
            never = database.store.maintain() => match never {},
        }
    }
    .await;
    database.close().await;
    served?;
    Ok(ExitCode::SUCCESS)
}

fn options(config: &Config) -> Options {
    Options {
        public_url: config.serve.public_url.clone(),
        auth: if config.serve.insecure_no_auth { Auth::InsecureNoAuth } else { Auth::Required },
        body_limit: config.serve.body_limit_bytes,
        ..Options::default()
    }
}

/// The first start of all makes a key and prints it once; its hash alone is kept.
async fn first_key(config: &Config, store: &store::Store) -> anyhow::Result<()> {
    if config.serve.insecure_no_auth {
        return Ok(());
    }
    if let Some(key) = store.create_first_key("first").await? {
        print(&format!("FAL_KEY={}\n", key.text))?;
        tracing::info!(id = key.id, "the first start made a key and printed it; it is not shown again");
    }
    Ok(())
}
