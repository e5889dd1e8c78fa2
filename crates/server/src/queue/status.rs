//! Where a job stands. Asked ten times a second for each waiting job: one coalesced read of the store.

use axum::response::Response;
use http::StatusCode;
use store::Logs;
use uuid::Uuid;

use crate::error::Error;
use crate::wire::{self, StatusDocument};
use crate::{Call, params};

pub(super) async fn status(call: &Call<'_>, id: Uuid) -> Result<Response, Error> {
    // Polled logs are cumulative: every answer holds all lines so far.
    let logs = if params::wants_logs(call.query) { Logs::All } else { Logs::No };
    let job = call.store().status(id, logs).await?.ok_or(Error::NoRequest)?;
    let code = if job.state.is_final() { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok(wire::json(code, &StatusDocument::of(&call.origin(), &job)))
}
