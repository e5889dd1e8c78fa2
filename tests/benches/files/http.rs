//! The client of the figures: blocking sockets and nothing that costs much, so that the servers are what is measured.
//! Bodies go out by `sendfile`, and what comes in is counted and dropped.

use anyhow::{Context as _, Result, bail, ensure};
use std::{
    fmt::Write as _,
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    net::TcpStream,
    ops::Range,
    path::Path,
};

/// What is read from a socket at once.
const READ_BYTES: usize = 256 << 10;

/// A kept-alive HTTP/1.1 connection.
pub(crate) struct Connection {
    host: String,
    stream: BufReader<TcpStream>,
}

/// What goes out.
pub(crate) enum Body<'a> {
    /// Nothing.
    None,
    /// These bytes.
    Bytes(&'a [u8]),
    /// A part of a file.
    File(&'a Path, Range<u64>),
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) etag: Option<String>,
    /// The body, when it was asked for.
    pub(crate) body: Vec<u8>,
    /// Its length.
    pub(crate) bytes: u64,
}

impl Connection {
    /// Connects to `host:port`.
    pub(crate) fn open(host: &str) -> Result<Connection> {
        let stream = TcpStream::connect(host)?;
        stream.set_nodelay(true)?;
        Ok(Connection { host: host.to_owned(), stream: BufReader::with_capacity(READ_BYTES, stream) })
    }

    /// Sends a request and reads the answer, which must be a 2xx; the body is kept if it is JSON.
    pub(crate) fn send(&mut self, head: &str, headers: &[(&str, &str)], body: &Body<'_>) -> Result<Answer> {
        let length = match body {
            Body::None => 0,
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::File(_, range) => range.end - range.start,
        };
        let mut text = format!("{head} HTTP/1.1\r\nhost: {}\r\n", self.host);
        if !matches!(body, Body::None) {
            write!(text, "content-length: {length}\r\n")?;
        }
        for (name, value) in headers {
            write!(text, "{name}: {value}\r\n")?;
        }
        text.push_str("\r\n");
        let out = self.stream.get_mut();
        out.write_all(text.as_bytes())?;
        match body {
            Body::None => {}
            Body::Bytes(bytes) => out.write_all(bytes)?,
            Body::File(path, range) => {
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(range.start))?;
                let sent = std::io::copy(&mut (&file).take(length), out)?;
                ensure!(sent == length, "{sent} of {length} bytes were sent");
            }
        }
        self.answer(head)
    }

    fn answer(&mut self, head: &str) -> Result<Answer> {
        let status = self.line()?;
        let mut answer = Answer { etag: None, body: Vec::new(), bytes: 0 };
        let mut keep = false;
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').with_context(|| format!("the header line {line:?}"))?;
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => answer.bytes = value.parse()?,
                "etag" => answer.etag = Some(value.to_owned()),
                "content-type" => keep = value == "application/json",
                "transfer-encoding" => bail!("{head}: a body without a length"),
                _ => {}
            }
        }
        let mut left = answer.bytes;
        while left > 0 {
            let piece = self.stream.fill_buf()?;
            ensure!(!piece.is_empty(), "{head}: the body ended {left} bytes early");
            let taken = piece.len().min(usize::try_from(left)?);
            if keep {
                answer.body.extend_from_slice(&piece[..taken]);
            }
            self.stream.consume(taken);
            left -= taken as u64;
        }
        let good = status.split(' ').nth(1).is_some_and(|code| code.starts_with('2'));
        ensure!(good, "{head}: {status}: {}", String::from_utf8_lossy(&answer.body));
        Ok(answer)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        ensure!(line.ends_with('\n'), "the connection ended");
        Ok(line.trim_end().to_owned())
    }
}
