//! Every route, status code, header and body of fal's protocol, in process: the router over a real Postgres,
//! the clock standing still and the ids counted up.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, helpers included")]

mod auth;
mod cancel;
mod cors;
mod data_uris;
mod errors;
mod files;
mod history;
mod models;
mod operations;
mod properties;
mod queue_order;
mod result;
mod routing;
mod run;
mod secrets;
mod status;
mod stream;
mod submit;
mod support;
mod tls;
mod uploads;
mod webhooks;
mod wire;
