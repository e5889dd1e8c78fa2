//! The listener: HTTP/1.1 with reason phrases, and an orderly end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;

use crate::App;

/// A client that has not sent its headers by then is cut off.
const HEADERS_WITHIN: Duration = Duration::from_secs(30);
/// Pause after a failed accept, most likely for want of file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Serves until `stop` is done, then takes no more connections, ends streams and waiting runs, and waits up to
/// `Options::drain` for the requests in flight.
///
/// HTTP/1.1 only: the JS client shows the reason phrase as the error's message, and HTTP/2 has none.
///
/// # Errors
/// When the listener's address cannot be read, so it is no listener.
pub async fn serve(listener: TcpListener, app: Arc<App>, stop: impl Future<Output = ()>) -> io::Result<()> {
    let address = listener.local_addr()?;
    tracing::info!(%address, "serving");
    let router = crate::app(app.clone());
    // Deadlines pass and leases expire whether or not a worker is there to see to it.
    let sweeper = app.store.clone();
    let sweeper = AbortOnDrop(tokio::spawn(async move { sweeper.maintain().await }));
    let connections = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            },
            () = &mut stop => break,
        };
        // Small answers must not wait for more of them.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS_WITHIN)
            .serve_connection(TokioIo::new(stream), service);
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                // Clients come and go; that is no event of ours.
                tracing::debug!(%error, "connection ended");
            }
        });
    }
    drop((listener, sweeper));
    app.shutdown.cancel();
    tracing::info!("stopping: waiting for requests in flight");
    if tokio::time::timeout(app.options.drain, connections.shutdown()).await.is_err() {
        tracing::warn!(seconds = app.options.drain.as_secs(), "requests were still in flight");
    }
    Ok(())
}

/// A task that ends with its owner.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
