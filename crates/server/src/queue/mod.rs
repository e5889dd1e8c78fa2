//! The queue and the synchronous run.

mod addresses;
mod cancel;
mod result;
mod run;
mod status;
mod stream;
mod submit;

use std::sync::Arc;

use axum::response::Response;
use spec::Mode;
use uuid::Uuid;

pub(crate) use run::run;
pub(crate) use submit::submit;

use crate::error::Error;
use crate::route::{About, Endpoint};
use crate::{App, Call};

/// The application of an endpoint, or 404.
fn check_app(endpoint: &Endpoint) -> Result<(), Error> {
    if endpoint.owner == spec::OWNER && endpoint.alias == spec::ALIAS {
        Ok(())
    } else {
        Err(Error::NoApplication(endpoint.alias.clone()))
    }
}

/// The mode behind an endpoint, or 404.
fn find_mode(endpoint: &Endpoint) -> Result<&'static Mode, Error> {
    check_app(endpoint)?;
    spec::find(&endpoint.path).ok_or_else(|| Error::NoPath(endpoint.path.clone()))
}

/// Answers a question about a job. The sub-path, which some documents put before `/requests/`, must exist but
/// need not be the job's own: both clients drop it.
pub(crate) async fn about(
    app: &Arc<App>,
    call: &Call<'_>,
    endpoint: &Endpoint,
    id: Option<Uuid>,
    about: About,
) -> Result<Response, Error> {
    if endpoint.path.is_empty() {
        check_app(endpoint)?;
    } else {
        find_mode(endpoint)?;
    }
    let id = id.ok_or(Error::NoRequest)?;
    match about {
        About::Status => status::status(call, id).await,
        About::Stream => stream::stream(app, call, id).await,
        About::Result => result::result(call, id).await,
        About::Cancel => cancel::cancel(call, id).await,
    }
}
