//! Tells a job to stop. A waiting one never runs; a running one is told and may still finish.

use axum::response::Response;
use http::StatusCode;
use serde_json::json;
use spec::Failure;
use store::Cancel;
use uuid::Uuid;

use crate::error::Error;
use crate::{Call, wire};

pub(super) async fn cancel(call: &Call<'_>, id: Uuid) -> Result<Response, Error> {
    match call.store().request_cancel(id, Failure::cancelled()).await? {
        Cancel::Requested => {
            tracing::info!(job_id = %id, key_id = call.caller.key_id(), "cancel requested");
            Ok(wire::json(StatusCode::ACCEPTED, &json!({"status": "CANCELLATION_REQUESTED"})))
        }
        Cancel::AlreadyCompleted => {
            Ok(wire::json(StatusCode::BAD_REQUEST, &json!({"status": "ALREADY_COMPLETED"})))
        }
        Cancel::NotFound => Err(Error::NoRequest),
    }
}
