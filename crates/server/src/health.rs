//! Is it alive, can it serve, and how is it doing?

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde_json::json;

use crate::error::Error;
use crate::metrics::Text;
use crate::{Call, wire};

/// Probes give up early, so a slow database counts as none.
const READY_WITHIN: Duration = Duration::from_secs(2);
/// What the figures of the recent past look back on.
const RECENT: Duration = Duration::from_secs(3600);

/// The process answers.
pub(crate) fn health() -> Response {
    wire::json(StatusCode::OK, &json!({"status": "ok"}))
}

/// The database is there and migrated, and the server is not about to stop.
pub(crate) async fn ready(call: &Call<'_>) -> Response {
    let problem = if call.app.shutdown.is_cancelled() {
        Some("the server is shutting down")
    } else {
        match tokio::time::timeout(READY_WITHIN, check(call)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => {
                tracing::warn!(%error, "not ready");
                Some("the database cannot be used")
            }
            Err(_) => Some("the database does not answer"),
        }
    };
    match problem {
        None => wire::json(StatusCode::OK, &json!({"status": "ready"})),
        Some(problem) => {
            wire::json(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "unavailable", "detail": problem}))
        }
    }
}

async fn check(call: &Call<'_>) -> Result<(), store::Error> {
    call.store().ping().await?;
    // The clock is a function of the migrations: a database without them has none.
    call.store().now().await.map(drop)
}

fn write_recent(text: &mut Text, recent: &store::Recent) {
    text.family("kiln_recent_completed", "gauge", "Jobs that ended with a result in the last hour.");
    text.sample("kiln_recent_completed", &[], recent.completed);
    text.family(
        "kiln_recent_failures",
        "gauge",
        "Jobs that failed or were cancelled in the last hour, by kind.",
    );
    for (kind, count) in &recent.failures {
        text.sample("kiln_recent_failures", &[("kind", kind)], count);
    }
    text.family("kiln_recent_started", "gauge", "Jobs that started in the last hour.");
    text.sample("kiln_recent_started", &[], recent.started);
    text.family("kiln_recent_start_seconds", "gauge", "Time from acceptance to start of those jobs.");
    for (quantile, seconds) in [
        ("0.5", recent.start_seconds_p50),
        ("0.95", recent.start_seconds_p95),
        ("1", recent.start_seconds_max),
    ] {
        if let Some(seconds) = seconds {
            text.sample("kiln_recent_start_seconds", &[("quantile", quantile)], seconds);
        }
    }
}

/// Prometheus' text format: this process's answers, and the queue's figures from the database.
pub(crate) async fn metrics(call: &Call<'_>) -> Result<Response, Error> {
    let now = call.store().now().await?;
    let counts = call.store().counts().await?;
    let recent = call.store().recent(RECENT).await?;
    let mut text = Text::default();
    text.family("kiln_queue_jobs", "gauge", "Jobs that wait or run, by endpoint path.");
    for count in &counts {
        text.sample("kiln_queue_jobs", &[("path", &count.path), ("state", "queued")], count.queued);
        text.sample("kiln_queue_jobs", &[("path", &count.path), ("state", "running")], count.running);
    }
    text.family(
        "kiln_queue_oldest_seconds",
        "gauge",
        "How long the oldest waiting job has waited, by endpoint path.",
    );
    for count in &counts {
        if let Some(oldest) = count.oldest_queued_at {
            let seconds = (now - oldest).as_seconds_f64().max(0.0);
            text.sample("kiln_queue_oldest_seconds", &[("path", &count.path)], seconds);
        }
    }
    write_recent(&mut text, &recent);
    call.app.metrics.render(&mut text);
    let mut response = Response::new(Body::from(text.finish()));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    Ok(response)
}
