//! Many HTTP clients on one thread, as lean as they can be: they share the cores with what they measure.

use anyhow::{Context as _, Result};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Clients that each keep one connection and one request in flight.
pub(crate) struct Load<'a> {
    pub(crate) address: &'a str,
    pub(crate) clients: usize,
    pub(crate) seconds: u64,
}

/// What a load measured.
pub(crate) struct Run {
    /// From sending a request to having read its answer, one per request.
    pub(crate) times: Vec<Duration>,
    /// From the first request to the last answer.
    pub(crate) took: Duration,
}

/// An answer.
pub(crate) struct Reply<'a> {
    pub(crate) status: u16,
    pub(crate) body: &'a [u8],
}

impl Load<'_> {
    /// Sends `next(client, turn)` for the time of the load, and has each answer checked.
    pub(crate) async fn run(
        &self,
        next: impl Fn(usize, usize) -> Vec<u8>,
        check: impl Fn(Reply<'_>) -> Result<()>,
    ) -> Result<Run> {
        let mut connections = Vec::with_capacity(self.clients);
        for _ in 0..self.clients {
            connections.push(Connection::open(self.address).await?);
        }
        let began = Instant::now();
        let until = began + Duration::from_secs(self.seconds);
        let clients = connections.into_iter().enumerate().map(|(client, mut connection)| {
            let (next, check) = (&next, &check);
            async move {
                let mut times = Vec::new();
                while Instant::now() < until {
                    let request = next(client, times.len());
                    let sent = Instant::now();
                    check(connection.ask(&request).await?)?;
                    times.push(sent.elapsed());
                }
                anyhow::Ok(times)
            }
        });
        let times = futures_util::future::try_join_all(clients).await?.concat();
        Ok(Run { times, took: began.elapsed() })
    }
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(address: &str) -> Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, buffer: Vec::with_capacity(4096) })
    }

    async fn ask(&mut self, request: &[u8]) -> Result<Reply<'_>> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let (head, length) = loop {
            self.more().await?;
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break (at + 4, content_length(&self.buffer[..at])?);
            }
        };
        while self.buffer.len() < head + length {
            self.more().await?;
        }
        let status = self.buffer.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
        let status = status.and_then(|digits| digits.parse().ok()).context("a status line")?;
        Ok(Reply { status, body: &self.buffer[head..] })
    }

    async fn more(&mut self) -> Result<()> {
        let read = self.stream.read_buf(&mut self.buffer).await?;
        anyhow::ensure!(read > 0, "the server closed the connection");
        Ok(())
    }
}

fn content_length(head: &[u8]) -> Result<usize> {
    let head = std::str::from_utf8(head).context("a head in ASCII")?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    length.context("an answer with a length")?.trim().parse().context("a length")
}
