//! The listener: HTTP/1.1 with reason phrases, and an orderly end.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};

use crate::App;
use crate::tls::Tls;

/// A client that has not sent its headers by then is cut off.
const HEADERS_WITHIN: Duration = Duration::from_secs(30);
/// Pause after a failed accept, most likely for want of file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Marks a request that came over TLS, in the request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct OverTls;

/// Serves until `stop` is done, then takes no more connections, ends streams and waiting runs, and waits up to
/// `Options::drain` for the requests in flight.
///
/// HTTP/1.1 only: the JS client shows the reason phrase as the error's message, and HTTP/2 has none.
///
/// # Errors
/// When the listener's address cannot be read, so it is no listener.
pub async fn serve(listener: TcpListener, app: Arc<App>, stop: impl Future<Output = ()>) -> io::Result<()> {
    serve_with_tls(listener, None, app, stop).await
}

/// As [`serve()`], and on a second listener over TLS.
///
/// # Errors
/// As [`serve()`].
pub async fn serve_with_tls(
    listener: TcpListener,
    tls: Option<(TcpListener, Tls)>,
    app: Arc<App>,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    tracing::info!(%address, "serving");
    let (tls_listener, acceptor) = tls.map(|(listener, tls)| (listener, tls.acceptor())).unzip();
    if let Some(listener) = &tls_listener {
        tracing::info!(address = %listener.local_addr()?, "serving over TLS");
    }
    let router = crate::app(app.clone());
    let chores = chores(&app);
    let connections = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let (accepted, over_tls) = tokio::select! {
            accepted = listener.accept() => (accepted, None),
            accepted = accept(tls_listener.as_ref()) => (accepted, acceptor.clone()),
            () = &mut stop => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        // Small answers must not wait for more of them.
        let _ = stream.set_nodelay(true);
        let router = router.clone();
        match over_tls {
            None => connect(&connections, TokioIo::new(stream), router),
            Some(acceptor) => {
                let watcher = connections.watcher();
                tokio::spawn(async move {
                    match tokio::time::timeout(HEADERS_WITHIN, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => {
                            let router = router.layer(axum::Extension(OverTls));
                            end(watcher.watch(connection(TokioIo::new(stream), router))).await;
                        }
                        Ok(Err(error)) => tracing::debug!(%error, "no TLS connection came about"),
                        Err(_) => tracing::debug!("a TLS client fell silent"),
                    }
                });
            }
        }
    }
    drop((listener, tls_listener, chores));
    app.shutdown.cancel();
    tracing::info!("stopping: waiting for requests in flight");
    if tokio::time::timeout(app.options.drain, connections.shutdown()).await.is_err() {
        tracing::warn!(seconds = app.options.drain.as_secs(), "requests were still in flight");
    }
    Ok(())
}

/// What goes on beside the requests, until it is dropped: deadlines pass and leases expire whether or not a worker is
/// there to see to it, files expire, webhooks are delivered.
fn chores(app: &Arc<App>) -> [AbortOnDrop<Infallible>; 3] {
    let (store, files, app) = (app.store.clone(), app.files.clone(), app.clone());
    [
        AbortOnDrop(tokio::spawn(async move { store.maintain().await })),
        AbortOnDrop(tokio::spawn(async move { files.maintain().await })),
        AbortOnDrop(tokio::spawn(crate::webhooks::deliver(app))),
    ]
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

fn connect(connections: &GracefulShutdown, io: TokioIo<TcpStream>, router: Router) {
    tokio::spawn(end(connections.watch(connection(io, router))));
}

fn connection<I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static>(
    io: I,
    router: Router,
) -> http1::Connection<I, TowerToHyperService<Router>> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .serve_connection(io, TowerToHyperService::new(router))
}

async fn end(connection: impl Future<Output = hyper::Result<()>>) {
    if let Err(error) = connection.await {
        // Clients come and go; that is no event of ours.
        tracing::debug!(%error, "connection ended");
    }
}

/// A task that ends with its owner.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
