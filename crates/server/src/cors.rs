//! Cross-origin rules: any page may call, cookies are never used.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Methods that any route may have.
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE, OPTIONS");
/// What the clients send. `authorization` is named because the wildcard does not cover it.
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, range, x-fal-target-url, x-fal-queue-priority, x-fal-request-timeout, \
     x-fal-request-start-timeout, x-fal-runner-hint, x-fal-object-lifecycle, x-fal-object-lifecycle-preference, \
     x-fal-store-io, x-fal-no-retry, x-fal-retry-config, x-fal-tags, x-fal-file-name, x-app-fal-disable-fallback, \
     idempotency-key",
);
/// What a page may read. Without the first two `requestId` and `isUserTimeout` of the JS client are empty.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "x-fal-request-id, x-fal-request-timeout-type, x-fal-error-type, x-fal-billable-units, x-fal-retryable, \
     x-fal-needs-retry, etag, content-range, accept-ranges, content-length",
);
const PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");
const REQUEST_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");

/// Adds what every answer carries, errors included.
pub(crate) fn allow_reading(headers: &mut HeaderMap) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
}

/// The further headers of the answer to a preflight. Asks for no key: browsers send none.
pub(crate) fn preflight(request: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    let wanted = request.get(ACCESS_CONTROL_REQUEST_HEADERS).cloned().unwrap_or(REQUEST_HEADERS);
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, wanted);
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
    headers.insert(VARY, HeaderValue::from_static("Access-Control-Request-Headers"));
    if request
        .get(REQUEST_PRIVATE_NETWORK)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true"))
    {
        // A public page that calls a server on this machine or network.
        headers.insert(PRIVATE_NETWORK, HeaderValue::from_static("true"));
    }
    headers
}
