//! `POST rest/tokens/`: a short-lived token for pages that must not see the key.

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use serde_json::Value;

use crate::auth::Claims;
use crate::error::Error;
use crate::{Call, body, wire};

/// A request for a token is small.
const BODY_LIMIT: u64 = 64 << 10;
/// What the JS client asks for, in seconds.
const DEFAULT_SECONDS: i64 = 120;
/// Tokens cannot be taken back, so they end soon.
const LONGEST_SECONDS: i64 = 3600;
const MOST_APPS: usize = 64;

const EXPIRATION: &str = "token_expiration";
const APPS: &str = "allowed_apps";

/// Answers with the bare token as a JSON string.
pub(crate) async fn create(call: &Call<'_>, body: &mut Body) -> Result<Response, Error> {
    let body = body::read(body, BODY_LIMIT).await?;
    let request: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let seconds = match request.get(EXPIRATION) {
        None | Some(Value::Null) => DEFAULT_SECONDS,
        Some(seconds) => seconds
            .as_i64()
            .filter(|seconds| (1..=LONGEST_SECONDS).contains(seconds))
            .ok_or(Error::Field(EXPIRATION, "Input should be a whole number of seconds from 1 to 3600"))?,
    };
    let apps = request
        .get(APPS)
        .and_then(Value::as_array)
        .filter(|apps| (1..=MOST_APPS).contains(&apps.len()))
        .and_then(|apps| apps.iter().map(|app| app.as_str().map(alias)).collect::<Option<Vec<_>>>())
        .ok_or(Error::Field(APPS, "Input should be a list of 1 to 64 application names"))?;
    let claims = Claims {
        sub: call.caller.key_id().map(str::to_owned),
        apps,
        exp: call.app.options.clock.now().timestamp() + seconds,
    };
    Ok(wire::json(StatusCode::OK, &claims.sign(&call.app.token_secret().await?)))
}

/// The clients send the alias only; `owner/alias` and a full endpoint id mean the same.
fn alias(app: &str) -> String {
    app.split('/').nth(1).unwrap_or(app).to_owned()
}
