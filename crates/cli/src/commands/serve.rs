//! `kiln serve`: the HTTP server.

use super::{print, shutdown_signal};
use crate::{config::Config, database::Database, storage};
use anyhow::{Context as _, bail};
use server::{App, Auth, Options, tls::Tls, webhooks};
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
    let tls = match &serve.tls {
        None => None,
        Some(tls) => {
            let loaded = Tls::load(&tls.certificate, &tls.key)?;
            let listener = TcpListener::bind(tls.listen).await.with_context(|| {
                format!("cannot listen on {}; set serve.tls_listen to a free address", tls.listen)
            })?;
            Some((listener, loaded))
        }
    };
    let (objects, outbound) = (storage::objects(config)?, storage::outbound(config)?);
    let database = Database::open(config).await?;
    let served = async {
        first_key(config, &database.store).await?;
        let app = App::new(database.store.clone(), objects, outbound, options(config));
        // For people and for programs that start kiln on port 0.
        print(&format!("kiln listens on http://{address}\n"))?;
        if let Some((listener, _)) = &tls {
            print(&format!("kiln listens on https://{}\n", listener.local_addr()?))?;
        }
        server::serve_with_tls(listener, tls, app, shutdown.cancelled())
            .await
            .context("the server cannot go on")
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
        upload_limit: config.serve.upload_limit_bytes,
        webhooks: webhooks::Options {
            first_pause: config.webhooks.first_pause,
            tries: config.webhooks.tries,
            ..webhooks::Options::default()
        },
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
