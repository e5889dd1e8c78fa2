//! Puts a job into the queue and answers at once.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;
use spec::{Failure, Mode};
use store::{NewJob, Priority, Submitted, Work};

use super::addresses::{self, Stored};
use super::find_mode;
use crate::error::Error;
use crate::params::{self, SubmitParams, Unusable};
use crate::route::Endpoint;
use crate::wire::{self, StatusDocument};
use crate::{Call, body};

/// A body beyond this size is parsed on a thread of its own, so that it holds up nobody's status.
const PARSED_INLINE_BYTES: usize = 64 << 10;

pub(crate) async fn submit(call: &Call<'_>, endpoint: &Endpoint, body: &mut Body) -> Result<Response, Error> {
    let mode = find_mode(endpoint)?;
    let params = params::submit(call.query, call.headers)?;
    if let Some(webhook) = &params.webhook {
        check_webhook(call, webhook)?;
    }
    let Prepared { job, stored, .. } = prepare(call, mode, params, body).await?;
    let position = commit(call, job, stored).await?;
    Ok(wire::json(StatusCode::OK, &StatusDocument::submitted(&call.origin(), call.request_id, position)))
}

/// Refuses an address that can be seen to be unusable. A name is judged when it is resolved, at each delivery.
fn check_webhook(call: &Call<'_>, webhook: &str) -> Result<(), Error> {
    match call.app.outbound.check(webhook) {
        Ok(_) => Ok(()),
        Err(error) => Err(Unusable(format!("fal_webhook cannot be used: {error}")).into()),
    }
}

/// A job that is ready to be committed.
pub(super) struct Prepared {
    pub(super) job: NewJob,
    /// What is wrong with its input. Such a job is born with this failure and never waits.
    pub(super) failure: Option<Failure>,
    /// Files of the request that are stored already.
    pub(super) stored: Stored,
}

/// Reads the body and makes a job of it, under the request's own id. An invalid input makes a job too.
pub(super) async fn prepare(
    call: &Call<'_>,
    mode: &'static Mode,
    params: SubmitParams,
    body: &mut Body,
) -> Result<Prepared, Error> {
    let body = body::read(body, call.app.options.body_limit).await?;
    let (mut input, mut parsed) = if body.len() <= PARSED_INLINE_BYTES {
        parse(mode, &body)
    } else {
        tokio::task::spawn_blocking(move || parse(mode, &body))
            .await
            .map_err(|error| Error::Bug(format!("parsing a request failed: {error}")))?
    };
    let mut stored = Stored::default();
    if let Ok(train) = &mut parsed {
        match addresses::settle(call, train, &mut input, &mut stored).await {
            Ok(Ok(())) => {}
            Ok(Err(problems)) => parsed = Err(Failure::user(problems)),
            Err(error) => {
                stored.forget(call).await;
                return Err(error);
            }
        }
    }
    if let Some(input) = &mut input {
        addresses::cut_data_uris(input);
    }
    let failure = parsed.as_ref().err().cloned();
    let work = match parsed {
        Ok(spec) => Work::Run(Box::new(spec)),
        Err(failure) => Work::BornFailed(failure),
    };
    let job = NewJob {
        priority: if params.low_priority { Priority::Low } else { Priority::Normal },
        input,
        webhook_url: params.webhook,
        key_id: call.caller.key_id().map(str::to_owned),
        start_timeout: params.start_within,
        max_queue_length: params.max_queue_length,
        no_retry: params.no_retry,
        store_io: params.store_io,
        lifecycle: params.lifecycle,
        tags: params.tags,
        runner_hint: params.runner_hint,
        files_url: Some(call.files_url()),
        ..NewJob::new(call.request_id, mode.path, work)
    };
    Ok(Prepared { job, failure, stored })
}

/// Commits the job and gives its place in the queue, if it waits in one.
pub(super) async fn commit(call: &Call<'_>, job: NewJob, stored: Stored) -> Result<Option<u64>, Error> {
    let path = job.path.clone();
    match call.store().submit(job).await? {
        Submitted::Accepted { position } => {
            tracing::info!(job_id = %call.request_id, path, key_id = call.caller.key_id(), position, "accepted");
            Ok(position)
        }
        Submitted::QueueFull { waiting } => {
            stored.forget(call).await;
            Err(Error::QueueFull(waiting))
        }
    }
}

/// The body as JSON, whatever its content type says, and what it asks for or what is wrong with it.
fn parse(mode: &'static Mode, body: &Bytes) -> (Option<Value>, Result<spec::TrainSpec, Failure>) {
    let input: Option<Value> = serde_json::from_slice(body).ok();
    let parsed = match &input {
        Some(input) => spec::parse(mode, input),
        None => spec::parse_body(mode, (!body.is_empty()).then_some(body.as_ref())),
    };
    (input, parsed.map_err(Failure::from))
}
