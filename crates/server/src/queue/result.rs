//! What came out: the model's bare output, or its own status, headers and body.

use axum::response::Response;
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::json;
use spec::Failure;
use store::Answer;
use uuid::Uuid;

use crate::error::Error;
use crate::{Call, wire};

pub(super) async fn result(call: &Call<'_>, id: Uuid) -> Result<Response, Error> {
    let answer = call.store().result(id).await?.ok_or(Error::NoRequest)?;
    Ok(final_answer(&answer, &call.files_url()).unwrap_or_else(|| {
        // Programs ask once before the end and must be told so, not 404.
        wire::json(StatusCode::BAD_REQUEST, &json!({"detail": "Request is still in progress"}))
    }))
}

/// The answer of a final job; `None` before.
pub(super) fn final_answer(answer: &Answer, files_url: &str) -> Option<Response> {
    match answer {
        Answer::Pending => None,
        Answer::Completed(outcome) => {
            Some(wire::json(StatusCode::OK, &wire::public_outcome(outcome, files_url)))
        }
        Answer::Failed(failure) => Some(failed(failure)),
    }
}

/// The answer of a failed or cancelled job.
pub(super) fn failed(failure: &Failure) -> Response {
    let status = StatusCode::from_u16(failure.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = wire::json(status, &failure.body());
    for (name, value) in failure.headers() {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}
