//! Reads a request's body up to a limit of its own.

use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;

use crate::error::Error;

/// A client that sends nothing for this long in the middle of a body is gone.
const STALLED: Duration = Duration::from_secs(60);
/// How much of a refused body is still read, and for how long.
const LINGER_BYTES: u64 = 64 << 20;
const LINGER: Duration = Duration::from_secs(5);
/// What is set aside at first for a body that announces its length.
const FIRST_BYTES: u64 = 1 << 20;

/// Reads the whole body; empty when there is none. After an error the rest is still there, to [`linger`] over.
///
/// # Errors
/// [`Error::TooLarge`] at once when the announced length is beyond the limit, else as soon as it is
/// exceeded; [`Error::BrokenBody`] when the client stops sending.
pub(crate) async fn read(body: &mut Body, limit: u64) -> Result<Bytes, Error> {
    let size = body.size_hint();
    if size.lower() > limit {
        return Err(Error::TooLarge(limit));
    }
    let mut whole = BytesMut::new();
    loop {
        let Some(data) = next(body).await? else { return Ok(whole.freeze()) };
        if (whole.len() + data.len()) as u64 > limit {
            return Err(Error::TooLarge(limit));
        }
        if whole.is_empty() {
            if body.is_end_stream() {
                // The usual case: everything came in one piece.
                return Ok(data);
            }
            whole.reserve(usize::try_from(size.lower().min(FIRST_BYTES)).unwrap_or(0).max(data.len()));
        }
        whole.extend_from_slice(&data);
    }
}

/// The next piece of a body; `None` at its end.
///
/// # Errors
/// [`Error::BrokenBody`] when the client stops sending.
pub(crate) async fn next(body: &mut Body) -> Result<Option<Bytes>, Error> {
    loop {
        let frame = tokio::time::timeout(STALLED, body.frame())
            .await
            .map_err(|_| Error::BrokenBody("The request body stalled before its end"))?;
        let Some(frame) = frame else {
            *body = Body::empty();
            return Ok(None);
        };
        let frame = frame.map_err(|_| Error::BrokenBody("The request body ended early"))?;
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
}

/// Reads on for a while and throws away, so that a client in the middle of sending sees the answer instead of a
/// reset connection.
pub(crate) fn linger(mut body: Body) {
    let drain = async move {
        let mut left = LINGER_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            let read = frame.data_ref().map_or(0, |data| data.len() as u64);
            let Some(rest) = left.checked_sub(read) else { break };
            left = rest;
        }
    };
    tokio::spawn(tokio::time::timeout(LINGER, drain));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn chunked(chunks: &'static [&'static str]) -> Body {
        Body::from_stream(futures_util::stream::iter(chunks.iter().map(|c| Ok::<_, Infallible>(*c))))
    }

    #[tokio::test]
    async fn no_body_is_empty() {
        assert_eq!(read(&mut Body::empty(), 10).await.unwrap(), "");
    }

    #[tokio::test]
    async fn chunks_are_joined_up_to_exactly_the_limit() {
        assert_eq!(read(&mut chunked(&["abc", "", "de", "f"]), 6).await.unwrap(), "abcdef");
    }

    #[tokio::test]
    async fn an_announced_length_beyond_the_limit_is_refused() {
        assert!(matches!(read(&mut Body::from("1234567"), 6).await, Err(Error::TooLarge(6))));
    }

    #[tokio::test]
    async fn a_stream_is_refused_as_soon_as_it_exceeds_the_limit() {
        // The stream never ends, so only an early refusal can answer.
        let endless = futures_util::stream::repeat_with(|| Ok::<_, Infallible>("abc"));
        assert!(matches!(read(&mut Body::from_stream(endless), 1 << 20).await, Err(Error::TooLarge(_))));
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_a_bad_request() {
        let broken = futures_util::stream::iter([Ok("abc"), Err(std::io::Error::other("gone"))]);
        assert!(matches!(read(&mut Body::from_stream(broken), 10).await, Err(Error::BrokenBody(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_is_a_bad_request() {
        let stalled = futures_util::stream::pending::<Result<Bytes, Infallible>>();
        assert!(matches!(read(&mut Body::from_stream(stalled), 10).await, Err(Error::BrokenBody(_))));
    }
}
