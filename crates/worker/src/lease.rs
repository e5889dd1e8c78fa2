//! Keeps a job's lease while its trainer works, and notices when it cannot be kept.

use crate::flag::{StopFlag, Why};
use std::time::Duration;
use store::{Claim, Error, Store};
use tokio::time::{Instant, sleep_until, timeout_at};

/// Pause between two looks at the row when its notifications come thick: the job's own log lines cause them too.
const BREATH: Duration = Duration::from_millis(500);

/// Renews the lease at a third of its length until the flag says that it is lost; returns only then.
///
/// A renewal also brings the client's cancel request, and a notification about the job brings a renewal, so that a
/// cancel is seen at once. While the database cannot be reached the trainer goes on for as long as the last answer
/// allows: counted from before that renewal was sent, so never longer than the database itself counts.
pub(crate) async fn keep(store: &Store, claim: &Claim, claimed: Instant, flag: &StopFlag) {
    let job = claim.lease.job;
    let mut news = store.subscribe(job);
    let mut renewed = claimed;
    loop {
        tokio::select! {
            () = sleep_until(renewed + claim.lease_for / 3) => {}
            () = async { sleep_until(renewed + BREATH).await; news.changed().await } => {}
        }
        let deadline = renewed + claim.lease_for;
        let lost = loop {
            let sent = Instant::now();
            match timeout_at(deadline, store.renew(&claim.lease)).await {
                Ok(Ok(renewal)) => {
                    renewed = sent;
                    if renewal.cancel_requested && flag.why().is_none() {
                        tracing::info!("the client cancelled the request");
                        flag.set(Why::Cancelled);
                    }
                    break None;
                }
                Ok(Err(Error::LeaseLost)) => {
                    break Some("another worker may have it, or it was given up as dead");
                }
                Err(_) => break Some("the database could not be asked before the lease ended"),
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the lease could not be renewed; trying again until it ends");
                    sleep_until(deadline.min(Instant::now() + BREATH)).await;
                    if Instant::now() >= deadline {
                        break Some("the database could not be asked before the lease ended");
                    }
                }
            }
        };
        if let Some(why) = lost {
            tracing::warn!(why, "the job's lease is lost: its work is dropped");
            flag.set(Why::Lost);
            return;
        }
    }
}
