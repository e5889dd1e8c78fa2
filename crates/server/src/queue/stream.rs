//! Where a job stands, told as server-sent events: at once, on each change, and for the last time when it is final.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::{Stream, stream};
use http::{HeaderName, HeaderValue};
use store::{Logs, State, Status, Subscription};
use uuid::Uuid;

use crate::error::Error;
use crate::wire::{self, Origin, StatusDocument};
use crate::{App, Call, params};

/// Pause before asking again when the database is away: the stream outlives that.
const AGAIN: Duration = Duration::from_secs(1);

pub(super) async fn stream(app: &Arc<App>, call: &Call<'_>, id: Uuid) -> Result<Response, Error> {
    let with_logs = params::wants_logs(call.query);
    // Before the first read, so that no change falls between them.
    let changes = app.store.subscribe(id);
    let first =
        app.store.status(id, if with_logs { Logs::All } else { Logs::No }).await?.ok_or(Error::NoRequest)?;
    let watch = Watch {
        app: app.clone(),
        origin: call.origin(),
        id,
        with_logs,
        changes,
        pending: Some(first),
        told: None,
        last_seq: 0,
        done: false,
    };
    let ping = KeepAlive::new().interval(app.options.ping_every).text("ping");
    let mut response = Sse::new(watch.events()).keep_alive(ping).into_response();
    // Proxies must pass each event on at once.
    let unbuffered = HeaderName::from_static("x-accel-buffering");
    response.headers_mut().insert(unbuffered, HeaderValue::from_static("no"));
    Ok(response)
}

/// One client that follows one job.
struct Watch {
    app: Arc<App>,
    origin: Origin,
    id: Uuid,
    with_logs: bool,
    changes: Subscription,
    /// A status that was read but not told yet.
    pending: Option<Status>,
    /// What the last event said, logs aside.
    told: Option<(State, Option<u64>)>,
    /// The newest log line told.
    last_seq: i64,
    done: bool,
}

impl Watch {
    fn events(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, |mut watch| async move {
            let event = watch.next().await?;
            Some((Ok(event), watch))
        })
    }

    /// The next event; `None` after the final one, when the job is deleted, or when the server stops.
    async fn next(&mut self) -> Option<Event> {
        while !self.done {
            let job = match self.pending.take() {
                Some(job) => job,
                None => self.reread().await?,
            };
            self.done = job.state.is_final();
            let says = (job.state, job.position);
            let has_lines = job.logs.as_ref().is_some_and(|lines| !lines.is_empty());
            if self.told != Some(says) || has_lines {
                self.told = Some(says);
                let document = StatusDocument::of(&self.origin, &job);
                // A waiting job shows no logs, so lines of an earlier attempt are still to be told.
                if document.logs.is_some() {
                    self.last_seq = job.last_seq;
                }
                return Some(Event::default().data(wire::ascii_json(&document)));
            }
        }
        None
    }

    /// Waits for a change and reads the status with the lines that were not told yet.
    async fn reread(&mut self) -> Option<Status> {
        let stop = self.app.shutdown.clone();
        tokio::select! {
            () = self.changes.changed() => {}
            () = stop.cancelled() => return None,
        }
        let logs = if self.with_logs { Logs::Since(self.last_seq) } else { Logs::No };
        loop {
            match self.app.store.status(self.id, logs).await {
                Ok(status) => return status,
                Err(store::Error::Unavailable(_)) => {
                    tokio::select! {
                        () = tokio::time::sleep(AGAIN) => {}
                        () = stop.cancelled() => return None,
                    }
                }
                Err(error) => {
                    tracing::error!(job_id = %self.id, %error, "a status stream broke off");
                    return None;
                }
            }
        }
    }
}
