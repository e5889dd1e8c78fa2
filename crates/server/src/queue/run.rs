//! Runs a job and waits for it: the synchronous call.
//!
//! The clients give up on a silent connection and post again, so a job whose caller went away is cancelled:
//! otherwise each retry would leave a training behind.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use spec::Failure;
use store::{Cancel, Store};
use uuid::Uuid;

use super::submit::{self, Prepared};
use super::{find_mode, result};
use crate::Call;
use crate::error::Error;
use crate::params;
use crate::route::Endpoint;

/// How often, and with which pause, an abandoned job is looked for that is not there.
const TRIES: u32 = 5;
const AGAIN: Duration = Duration::from_secs(1);

pub(crate) async fn run(call: &Call<'_>, endpoint: &Endpoint, body: &mut Body) -> Result<Response, Error> {
    let mode = find_mode(endpoint)?;
    let params = params::run(call.headers)?;
    let Prepared { job, failure, stored } = submit::prepare(call, mode, params, body).await?;
    if let Some(failure) = failure {
        submit::commit(call, job, stored).await?;
        return Ok(result::failed(&failure));
    }
    let mut cancel = CancelOnDrop { store: call.store().clone(), job: Some(call.request_id) };
    submit::commit(call, job, stored).await?;
    let answer = tokio::select! {
        answer = call.store().wait_final(call.request_id) => answer?,
        // The caller will ask again elsewhere, so this job is cancelled like that of a caller who left.
        () = call.app.shutdown.cancelled() => return Err(Error::ShuttingDown),
    };
    cancel.disarm();
    // Deleted while it ran.
    let answer = answer.ok_or(Error::NoRequest)?;
    result::final_answer(&answer, &call.files_url())
        .ok_or_else(|| Error::Bug("a final job has no answer".into()))
}

/// Cancels the job when the handler is dropped, which hyper does when the client closes the connection.
/// Armed before the job is committed: the client may leave in the middle of that.
struct CancelOnDrop {
    store: Store,
    job: Option<Uuid>,
}

impl CancelOnDrop {
    fn disarm(&mut self) {
        self.job = None;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        let Some(job) = self.job.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let store = self.store.clone();
        runtime.spawn(async move {
            for _ in 0..TRIES {
                match store.request_cancel(job, Failure::disconnected()).await {
                    // The commit may still be on its way.
                    Ok(Cancel::NotFound) => tokio::time::sleep(AGAIN).await,
                    Ok(Cancel::Requested) => {
                        tracing::info!(job_id = %job, "cancelled: the caller of a synchronous run went away");
                        return;
                    }
                    Ok(Cancel::AlreadyCompleted) => return,
                    Err(error) => tracing::error!(job_id = %job, %error, "could not cancel an abandoned run"),
                }
            }
        });
    }
}
