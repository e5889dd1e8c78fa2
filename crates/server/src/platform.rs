//! The platform API: which models there are, what was asked of them, and forgetting it.

use axum::response::Response;
use chrono::{DateTime, Datelike as _, TimeDelta, Utc};
use http::StatusCode;
use serde_json::{Value, json};
use spec::Mode;
use store::{Answer, Deletion, ListFilter, ListKind, Listed};
use uuid::Uuid;

use crate::error::Error;
use crate::params::{self, Unusable};
use crate::route::Service;
use crate::{Call, openapi, wire};

/// How far back the history reaches when nobody says.
const WINDOW: TimeDelta = TimeDelta::hours(24);
/// The same when one request is asked for by its id.
const WINDOW_OF_ONE: TimeDelta = TimeDelta::days(90);
const PAGE: u32 = 50;
const LARGEST_PAGE: u32 = 100;

/// The endpoints, all or those named by `endpoint_id` (which may be given several times).
pub(crate) fn models(call: &Call<'_>) -> Result<Response, Error> {
    let named = named_modes(call.query)?;
    let modes: Vec<&Mode> = if named.is_empty() { spec::modes().iter().collect() } else { named };
    let with_openapi = all(call.query, "expand").any(|word| word == "openapi-3.0");
    let origin = call.origin();
    let base = origin.base(Service::Queue);
    let models: Vec<Value> = modes
        .into_iter()
        .map(|mode| {
            let mut model = json!({
                "endpoint_id": mode.endpoint_id(),
                "metadata": {
                    "display_name": mode.title,
                    "category": "training",
                    "status": "active",
                    "tags": [],
                    "model_url": format!("{base}/{}", mode.endpoint_id()),
                },
            });
            if with_openapi {
                model["openapi"] = openapi::make(mode, &origin);
            }
            model
        })
        .collect();
    Ok(wire::json(StatusCode::OK, &json!({"models": models, "next_cursor": null, "has_more": false})))
}

/// Finished requests of the named endpoints, newest first.
pub(crate) async fn history(call: &Call<'_>) -> Result<Response, Error> {
    let filter = history_filter(call.query, call.store().now().await?)?;
    let page = call.store().list(filter).await?;
    let base = call.files_url();
    let items: Vec<Value> = page.items.into_iter().map(|job| item(job, &base)).collect();
    let has_more = page.next_cursor.is_some();
    Ok(wire::json(
        StatusCode::OK,
        &json!({"items": items, "next_cursor": page.next_cursor, "has_more": has_more}),
    ))
}

/// Deletes a finished request's input, output and output files. Files that are not kept here are named with the reason
/// why they stay.
pub(crate) async fn delete_payloads(call: &Call<'_>, id: Option<Uuid>) -> Result<Response, Error> {
    let id = id.ok_or(Error::NoRequest)?;
    match call.store().delete_payloads(id).await? {
        Deletion::Deleted { outcome } => {
            tracing::info!(job_id = %id, key_id = call.caller.key_id(), "payloads deleted");
            // The rows are gone; what the object store cannot remove now is removed by the sweep.
            let removed = call.files().remove_job(id).await;
            let later =
                removed.is_err().then_some("The file is no longer served and will be removed in a moment");
            if let Err(error) = removed {
                tracing::warn!(job_id = %id, %error, "files of a deleted request stay until the next sweep");
            }
            let base = call.files_url();
            let results = |outcome: spec::Outcome| {
                let public = wire::public_outcome(&outcome, &base);
                let own = |file: &spec::File| file.url.starts_with(store::OWN_SCHEME);
                let exceptions = outcome.files().map(|(_, file)| {
                    if own(file) { later } else { Some("The file is not stored by this server") }
                });
                let links = public.files().map(|(_, file)| file.url.clone()).collect::<Vec<_>>().into_iter();
                links
                    .zip(exceptions.collect::<Vec<_>>())
                    .map(|(link, exception)| json!({"link": link, "exception": exception}))
                    .collect::<Vec<Value>>()
            };
            let files: Vec<Value> = outcome.map(results).unwrap_or_default();
            Ok(wire::json(StatusCode::OK, &json!({"cdn_delete_results": files})))
        }
        Deletion::NotFinished => Err(Error::NotFinished),
        Deletion::NotFound => Err(Error::NoRequest),
    }
}

/// Facts about the service.
pub(crate) fn meta(call: &Call<'_>) -> Response {
    wire::json(StatusCode::OK, &json!({"webhook_ip_ranges": call.app.options.webhook_ip_ranges}))
}

/// Every value of a parameter that may be repeated or be a list with commas.
fn all<'q>(query: &'q str, name: &'q str) -> impl Iterator<Item = String> + 'q {
    url::form_urlencoded::parse(query.as_bytes())
        .filter(move |(n, _)| n == name)
        .flat_map(|(_, value)| value.split(',').map(str::to_owned).collect::<Vec<_>>())
        .filter(|word| !word.is_empty())
}

fn named_modes(query: &str) -> Result<Vec<&'static Mode>, Error> {
    all(query, "endpoint_id").map(|id| openapi::find(&id).ok_or_else(|| Error::NoApplication(id))).collect()
}

pub(crate) fn history_filter(query: &str, now: DateTime<Utc>) -> Result<ListFilter, Error> {
    let modes = named_modes(query)?;
    if modes.is_empty() {
        return Err(Unusable(
            "endpoint_id is missing, for example endpoint_id=fal-ai/ltx23-trainer-v2/t2v".into(),
        )
        .into());
    }
    let request_id = match params::value(query, "request_id") {
        None => None,
        Some(id) => Some(Uuid::try_parse(&id).map_err(|_| Unusable("request_id is not a UUID".into()))?),
    };
    let limit = match params::value(query, "limit") {
        None => PAGE,
        Some(limit) => limit
            .parse()
            .ok()
            .filter(|limit| (1..=LARGEST_PAGE).contains(limit))
            .ok_or_else(|| Unusable("limit is not a whole number from 1 to 100".into()))?,
    };
    let kind = match params::value(query, "status").as_deref() {
        None => None,
        Some("success") => Some(ListKind::Success),
        Some("error") => Some(ListKind::Error),
        Some("user_error") => Some(ListKind::UserError),
        Some(_) => return Err(Unusable("status is none of success, error, user_error".into()).into()),
    };
    let window = if request_id.is_some() { WINDOW_OF_ONE } else { WINDOW };
    let until = time(query, "end")?;
    Ok(ListFilter {
        paths: Some(modes.into_iter().map(|mode| mode.path.to_owned()).collect()),
        from: Some(time(query, "start")?.unwrap_or_else(|| until.unwrap_or(now) - window)),
        until,
        kind,
        request_id,
        payloads: all(query, "expand").any(|word| word == "payloads"),
        unfinished: false,
        cursor: params::value(query, "cursor").map(Into::into),
        limit,
    })
}

/// ISO-8601 with an offset, or without one for UTC, or a date.
fn time(query: &str, name: &str) -> Result<Option<DateTime<Utc>>, Unusable> {
    let Some(text) = params::value(query, name) else { return Ok(None) };
    let naive = || text.parse::<chrono::NaiveDateTime>().map(|time| time.and_utc());
    let date =
        || text.parse::<chrono::NaiveDate>().map(|date| date.and_time(chrono::NaiveTime::MIN).and_utc());
    // A `+` that was not percent-encoded arrives as a space.
    let plus = || text.replace(' ', "+").parse::<DateTime<Utc>>();
    let time = text.parse::<DateTime<Utc>>().or_else(|_| naive()).or_else(|_| date()).or_else(|_| plus());
    // Years of four digits: the ends of the calendar are no times, and a window before them would be none at all.
    time.ok()
        .filter(|time| (1..=9999).contains(&time.year()))
        .map(Some)
        .ok_or_else(|| Unusable(format!("{name} is not an ISO-8601 time of the years 0001 to 9999")))
}

fn item(job: Listed, files_url: &str) -> Value {
    let endpoint_id = spec::find(&job.path).map_or(job.path.clone(), Mode::endpoint_id);
    let mut item = json!({
        "request_id": job.id,
        "endpoint_id": endpoint_id,
        "started_at": job.started_at.map(wire::timestamp),
        "sent_at": wire::timestamp(job.created_at),
        "ended_at": job.finished_at.map(wire::timestamp),
        "status_code": job.http_status,
        "duration": job.inference_seconds,
    });
    if let Some(input) = job.input {
        item["json_input"] = input;
    }
    match job.answer {
        Some(Answer::Completed(outcome)) => {
            item["json_output"] = wire::public_outcome(&outcome, files_url).to_result();
        }
        Some(Answer::Failed(failure)) => item["json_output"] = failure.body(),
        Some(Answer::Pending) | None => {}
    }
    item
}
