//! The OpenAPI document of one endpoint, as tools fetch it to learn the input schema. Public.

use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};
use spec::Mode;

use crate::Call;
use crate::error::Error;
use crate::params::{self, Unusable};
use crate::route::Service;
use crate::wire::{self, Origin};

/// `GET /api/openapi/queue/openapi.json?endpoint_id=...`
pub(crate) fn document(call: &Call<'_>) -> Result<Response, Error> {
    let id = params::value(call.query, "endpoint_id").ok_or_else(|| {
        Unusable("endpoint_id is missing, for example endpoint_id=fal-ai/ltx23-trainer-v2/t2v".into())
    })?;
    let mode = find(&id).ok_or_else(|| Error::NoApplication(id.into_owned()))?;
    Ok(wire::json(StatusCode::OK, &make(mode, &call.origin())))
}

/// The document of a mode, for a client that reaches this server at `origin`.
pub(crate) fn make(mode: &Mode, origin: &Origin) -> Value {
    let mut document = spec::schema::openapi(mode, &origin.base(Service::Site));
    // Under fal's own names the queue is a host, not a prefix.
    document["servers"] = json!([{"url": origin.base(Service::Queue)}]);
    document
}

/// The mode with this endpoint id.
pub(crate) fn find(endpoint_id: &str) -> Option<&'static Mode> {
    let path = endpoint_id
        .strip_prefix(spec::OWNER)?
        .strip_prefix('/')?
        .strip_prefix(spec::ALIAS)?
        .strip_prefix('/')?;
    spec::find(path)
}
