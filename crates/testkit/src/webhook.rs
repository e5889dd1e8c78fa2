//! A webhook receiver that remembers every delivery and answers as it is told.

use anyhow::{Context as _, Result};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
};
use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

/// One delivery, exactly as it came.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Path and query.
    pub target: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// The bytes of the body; signatures are over these.
    pub body: Bytes,
}

/// How to answer one delivery.
#[derive(Debug, Clone, Copy)]
pub enum Reply {
    /// With this status, at once.
    Status(u16),
    /// With 200 after this time.
    Slow(Duration),
}

/// The receiver; it stops when dropped.
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    changed: watch::Receiver<usize>,
    serving: JoinHandle<()>,
}

struct Shared {
    deliveries: Mutex<Vec<Delivery>>,
    replies: Mutex<VecDeque<Reply>>,
    count: watch::Sender<usize>,
}

impl Receiver {
    /// Listens on a free loopback port. The first deliveries get `replies`, in order, all others 200.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(replies: impl IntoIterator<Item = Reply>) -> Result<Receiver> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("a free port")?;
        let address = listener.local_addr()?;
        let (count, changed) = watch::channel(0);
        let shared = Arc::new(Shared {
            deliveries: Mutex::default(),
            replies: Mutex::new(replies.into_iter().collect()),
            count,
        });
        let router = Router::new().fallback(receive).with_state(shared.clone());
        let serving = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("a loopback listener serves until it is dropped");
        });
        Ok(Receiver { address, shared, changed, serving })
    }

    /// An address for `fal_webhook`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// Everything delivered so far.
    #[must_use]
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.shared.deliveries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until there are at least `count` deliveries.
    ///
    /// # Errors
    /// When the time is up.
    pub async fn wait_for(&mut self, count: usize, within: Duration) -> Result<Vec<Delivery>> {
        let enough = self.changed.wait_for(|seen| *seen >= count);
        let timely = tokio::time::timeout(within, enough).await.map(|seen| seen.map(|_| ()));
        timely
            .with_context(|| format!("{} of {count} deliveries in {within:?}", self.deliveries().len()))?
            .context("the receiver stopped")?;
        Ok(self.deliveries())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn receive(State(shared): State<Arc<Shared>>, uri: Uri, headers: HeaderMap, body: Bytes) -> StatusCode {
    let count = {
        let mut deliveries = shared.deliveries.lock().unwrap_or_else(PoisonError::into_inner);
        deliveries.push(Delivery { target: uri.to_string(), headers, body });
        deliveries.len()
    };
    shared.count.send_replace(count);
    let reply = shared.replies.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    match reply {
        Some(Reply::Status(status)) => StatusCode::from_u16(status).unwrap_or(StatusCode::OK),
        Some(Reply::Slow(time)) => {
            tokio::time::sleep(time).await;
            StatusCode::OK
        }
        None => StatusCode::OK,
    }
}

#[cfg(test)]
mod tests {
    use super::{Receiver, Reply};
    use std::time::Duration;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    #[tokio::test]
    async fn deliveries_are_kept_as_they_came_and_answered_as_told() -> anyhow::Result<()> {
        let mut receiver = Receiver::start([Reply::Status(503)]).await?;
        let address = receiver.url().replace("http://", "").replace("/hook", "");
        for (status, body) in [("503", "first"), ("200", "second")] {
            let mut stream = TcpStream::connect(&address).await?;
            let request =
                format!("POST /hook?n=1 HTTP/1.0\r\nx-a: b\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            assert!(answer.starts_with(&format!("HTTP/1.0 {status}")), "{answer}");
        }
        let deliveries = receiver.wait_for(2, Duration::from_secs(5)).await?;
        assert_eq!(deliveries[0].target, "/hook?n=1");
        assert_eq!(deliveries[0].headers["x-a"], "b");
        assert_eq!((&deliveries[0].body[..], &deliveries[1].body[..]), (&b"first"[..], &b"second"[..]));
        Ok(())
    }
}
