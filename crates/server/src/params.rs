//! What a request says in its query and headers, read leniently where fal does and refused clearly where
//! a wrong value would change what happens.

use std::borrow::Cow;
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use serde_json::Value;

/// The deprecated name; both clients send it.
const TIMEOUT: HeaderName = HeaderName::from_static("x-fal-request-timeout");
/// The newest name; wins over the other.
const START_TIMEOUT: HeaderName = HeaderName::from_static("x-fal-request-start-timeout");
const PRIORITY: HeaderName = HeaderName::from_static("x-fal-queue-priority");
const NO_RETRY: HeaderName = HeaderName::from_static("x-fal-no-retry");
const RETRY_CONFIG: HeaderName = HeaderName::from_static("x-fal-retry-config");
const STORE_IO: HeaderName = HeaderName::from_static("x-fal-store-io");
const TAGS: HeaderName = HeaderName::from_static("x-fal-tags");
const RUNNER_HINT: HeaderName = HeaderName::from_static("x-fal-runner-hint");
const LIFECYCLE: HeaderName = HeaderName::from_static("x-fal-object-lifecycle-preference");

/// Start deadlines must be longer than this, as fal's documentation says.
const SHORTEST_START_SECONDS: f64 = 0.1;
/// Ten years. Longer deadlines mean nothing and would leave the range of a timestamp.
const LONGEST_START_SECONDS: f64 = 10.0 * 366.0 * 86_400.0;
/// Longer webhook addresses are refused: no receiver needs them, and they are kept with the job.
const LONGEST_WEBHOOK_BYTES: usize = 8 * 1024;

/// A query or header value that cannot be used. Its text is for the caller and repeats no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(pub String);

/// Everything submit is told beside the body.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SubmitParams {
    /// Whom to tell when the job is final. Holds secrets of the receiver: not for logs.
    pub webhook: Option<String>,
    /// Refuse when more jobs than this wait.
    pub max_queue_length: Option<u64>,
    /// Runs only when no normal job waits.
    pub low_priority: bool,
    /// The job must start within this time.
    pub start_within: Option<Duration>,
    /// Whether the death of its worker ends the job.
    pub no_retry: bool,
    /// Whether input and output are kept for the request history.
    pub store_io: bool,
    /// How long output files live and who may read them, as the client wrote it.
    pub lifecycle: Option<Value>,
    /// `key=value` list, as the client wrote it.
    pub tags: Option<String>,
    /// Routing affinity, as the client wrote it.
    pub runner_hint: Option<String>,
}

/// Reads the query and headers of a submit.
///
/// # Errors
/// [`Unusable`] for a timeout, webhook address or queue length that cannot mean anything.
pub fn submit(query: &str, headers: &HeaderMap) -> Result<SubmitParams, Unusable> {
    let mut params = run(headers)?;
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match name.as_ref() {
            "fal_webhook" if !value.is_empty() => params.webhook = Some(webhook(value)?),
            "fal_max_queue_length" => params.max_queue_length = Some(max_queue_length(&value)?),
            _ => {}
        }
    }
    Ok(params)
}

/// Reads the headers of a synchronous run, which has no query parameters.
///
/// # Errors
/// [`Unusable`] for a timeout that cannot mean anything.
pub fn run(headers: &HeaderMap) -> Result<SubmitParams, Unusable> {
    Ok(SubmitParams {
        webhook: None,
        max_queue_length: None,
        low_priority: text(headers, &PRIORITY).is_some_and(|value| value.eq_ignore_ascii_case("low")),
        start_within: start_within(headers)?,
        no_retry: no_retry(headers),
        store_io: text(headers, &STORE_IO) != Some("0"),
        lifecycle: text(headers, &LIFECYCLE)
            .and_then(|value| serde_json::from_str(value).ok())
            .filter(Value::is_object),
        tags: text(headers, &TAGS).map(str::to_owned),
        runner_hint: text(headers, &RUNNER_HINT).map(str::to_owned),
    })
}

/// Whether a status should hold log lines: `1` and `true`, in any case.
#[must_use]
pub fn wants_logs(query: &str) -> bool {
    value(query, "logs").is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true"))
}

/// The last value of a query parameter.
#[must_use]
pub fn value<'q>(query: &'q str, name: &str) -> Option<Cow<'q, str>> {
    url::form_urlencoded::parse(query.as_bytes()).filter(|(n, _)| n == name).last().map(|(_, value)| value)
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim)
}

fn webhook(value: Cow<'_, str>) -> Result<String, Unusable> {
    if value.len() > LONGEST_WEBHOOK_BYTES {
        return Err(Unusable(format!("fal_webhook is longer than {LONGEST_WEBHOOK_BYTES} bytes")));
    }
    match url::Url::parse(&value) {
        // Kept as parsed: control characters are percent-encoded then.
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url.into()),
        _ => Err(Unusable(
            "fal_webhook is not an absolute http or https URL (percent-encode it in the query)".into(),
        )),
    }
}

fn max_queue_length(value: &str) -> Result<u64, Unusable> {
    // As many as the database can count.
    let length = value.trim().parse::<u64>().ok().filter(|&length| i64::try_from(length).is_ok());
    length.ok_or_else(|| Unusable("fal_max_queue_length is not a whole number of 0 or more".into()))
}

fn start_within(headers: &HeaderMap) -> Result<Option<Duration>, Unusable> {
    let Some((name, value)) =
        [START_TIMEOUT, TIMEOUT].into_iter().find_map(|name| headers.get(&name).map(|value| (name, value)))
    else {
        return Ok(None);
    };
    value
        .to_str()
        .ok()
        .and_then(|value| value.trim().parse::<f64>().ok())
        // Also false for NaN.
        .filter(|&seconds| seconds > SHORTEST_START_SECONDS && seconds <= LONGEST_START_SECONDS)
        .map(|seconds| Some(Duration::from_secs_f64(seconds)))
        .ok_or_else(|| {
            Unusable(format!("{name} is not a number of seconds greater than {SHORTEST_START_SECONDS}"))
        })
}

/// A trainer is tried again only when its worker died, which the wire calls a connection error.
fn no_retry(headers: &HeaderMap) -> bool {
    let said = |value: &str| ["1", "true", "yes"].iter().any(|yes| value.eq_ignore_ascii_case(yes));
    let no_retries = |value: &str| {
        let config: Value = serde_json::from_str(value).ok()?;
        Some(config.get("connection_error")?.get("retries")?.as_u64()? == 0)
    };
    text(headers, &NO_RETRY).is_some_and(said)
        || text(headers, &RETRY_CONFIG).and_then(no_retries).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn nothing_said_means_the_defaults() {
        let expected = SubmitParams { store_io: true, ..SubmitParams::default() };
        assert_eq!(submit("", &HeaderMap::new()).unwrap(), expected);
    }

    #[test]
    fn a_webhook_keeps_its_own_query() {
        let query = "fal_webhook=https%3A%2F%2Fexample.com%2Fhook%3Fa%3D1%26b%3D%25C3%25A9&logs=1";
        let params = submit(query, &HeaderMap::new()).unwrap();
        assert_eq!(params.webhook.as_deref(), Some("https://example.com/hook?a=1&b=%C3%A9"));
    }

    #[test]
    fn a_webhook_that_is_no_web_address_is_refused_without_repeating_it() {
        for bad in [
            "example.com/hook",
            "ftp://example.com",
            "mailto:secret@example.com",
            "http://",
            "file:///etc/passwd",
        ] {
            let query: String =
                url::form_urlencoded::Serializer::new(String::new()).append_pair("fal_webhook", bad).finish();
            let error = submit(&query, &HeaderMap::new()).unwrap_err();
            assert!(error.0.contains("fal_webhook") && !error.0.contains("secret"), "{error}");
        }
    }

    #[test]
    fn an_empty_webhook_is_none() {
        assert_eq!(submit("fal_webhook=", &HeaderMap::new()).unwrap().webhook, None);
    }

    #[test]
    fn the_queue_length_is_a_whole_number() {
        let read = |query: &str| submit(query, &HeaderMap::new()).map(|p| p.max_queue_length);
        assert_eq!(read("fal_max_queue_length=3"), Ok(Some(3)));
        assert_eq!(read("fal_max_queue_length=0"), Ok(Some(0)));
        for bad in ["", "-1", "1.5", "many", "99999999999999999999"] {
            assert!(read(&format!("fal_max_queue_length={bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn priority_is_low_only_when_it_says_so() {
        for (value, low) in [("low", true), ("LOW", true), ("normal", false), ("high", false), ("", false)] {
            assert_eq!(
                run(&headers(&[("x-fal-queue-priority", value)])).unwrap().low_priority,
                low,
                "{value}"
            );
        }
    }

    #[test]
    fn timeouts_are_seconds_and_may_be_fractional() {
        let read = |value| run(&headers(&[("x-fal-request-timeout", value)])).map(|p| p.start_within);
        assert_eq!(read("30.0"), Ok(Some(Duration::from_secs(30))));
        assert_eq!(read(" 1.5 "), Ok(Some(Duration::from_millis(1500))));
        for bad in ["0.1", "0", "-5", "NaN", "inf", "1e300", "soon", "", "30s"] {
            let error = read(bad).unwrap_err();
            assert!(error.0.contains("x-fal-request-timeout"), "{bad}: {error}");
        }
    }

    #[test]
    fn the_newer_timeout_header_wins_even_when_it_is_wrong() {
        let both = |new: &str, old: &str| {
            run(&headers(&[("x-fal-request-timeout", old), ("x-fal-request-start-timeout", new)]))
                .map(|p| p.start_within)
        };
        assert_eq!(both("5", "60"), Ok(Some(Duration::from_secs(5))));
        assert_eq!(both("5", "wrong"), Ok(Some(Duration::from_secs(5))));
        assert!(both("wrong", "60").unwrap_err().0.contains("x-fal-request-start-timeout"));
    }

    #[test]
    fn retries_are_forbidden_by_either_header() {
        let read = |pairs: &[_]| run(&headers(pairs)).unwrap().no_retry;
        let two = ("x-fal-retry-config", r#"{"connection_error":{"retries":2}}"#);
        let none = ("x-fal-retry-config", r#"{"connection_error":{"retries":0}}"#);
        assert!(!read(&[]) && !read(&[two]) && read(&[none]));
        for yes in ["1", "true", "Yes"] {
            assert!(read(&[two, ("x-fal-no-retry", yes)]), "{yes}");
        }
        assert!(!read(&[("x-fal-no-retry", "0")]) && read(&[none, ("x-fal-no-retry", "0")]));
    }

    #[test]
    fn a_bad_retry_config_is_ignored() {
        for bad in [
            "{",
            "0",
            "[]",
            r#"{"connection_error":0}"#,
            r#"{"connection_error":{"retries":-1}}"#,
            r#"{"timeout":{"retries":0}}"#,
        ] {
            assert!(!run(&headers(&[("x-fal-retry-config", bad)])).unwrap().no_retry, "{bad}");
        }
    }

    #[test]
    fn io_is_kept_unless_zero_is_sent() {
        for (value, kept) in [("0", false), ("1", true), ("", true), ("false", true)] {
            let headers = headers(&[("x-fal-store-io", value)]);
            assert_eq!(run(&headers).unwrap().store_io, kept, "{value}");
            assert_eq!(submit("", &headers).unwrap().store_io, kept, "{value}");
        }
    }

    #[test]
    fn logs_are_asked_for_in_either_clients_way() {
        for (query, wanted) in [
            ("logs=1", true),
            ("logs=true", true),
            ("logs=True", true),
            ("a=b&logs=TRUE", true),
            ("logs=0", false),
            ("logs=false", false),
            ("logs", false),
            ("logs=2", false),
            ("", false),
            ("log=1", false),
            ("logs=0&logs=1", true),
        ] {
            assert_eq!(wants_logs(query), wanted, "{query}");
        }
    }

    proptest! {
        #[test]
        fn any_query_and_headers_read_or_are_refused(query in "\\PC*", pairs in proptest::collection::vec((0usize..7, proptest::collection::vec(any::<u8>(), 0..40)), 0..8)) {
            let names = [TIMEOUT, START_TIMEOUT, PRIORITY, NO_RETRY, RETRY_CONFIG, STORE_IO, LIFECYCLE];
            let mut map = HeaderMap::new();
            for (name, value) in pairs {
                if let Ok(value) = http::HeaderValue::from_bytes(&value) {
                    map.append(names[name].clone(), value);
                }
            }
            let _ = wants_logs(&query);
            match submit(&query, &map) {
                Ok(params) => {
                    if let Some(time) = params.start_within {
                        prop_assert!(time.as_secs_f64() > SHORTEST_START_SECONDS && time.as_secs_f64() <= LONGEST_START_SECONDS);
                    }
                    prop_assert!(params.max_queue_length.is_none_or(|length| i64::try_from(length).is_ok()));
                }
                Err(Unusable(text)) => prop_assert!(!text.is_empty()),
            }
        }

        #[test]
        fn any_webhook_survives_its_encoding(path in "[a-zA-Z0-9/._~é-]{0,30}", key in "\\PC{0,20}", word in "\\PC{0,20}") {
            let mut url = url::Url::parse("https://example.com/").unwrap();
            url.set_path(&path);
            url.query_pairs_mut().append_pair(&key, &word);
            let query = url::form_urlencoded::Serializer::new(String::new()).append_pair("fal_webhook", url.as_str()).finish();
            prop_assert_eq!(submit(&query, &HeaderMap::new()).unwrap().webhook, Some(url.to_string()));
        }

        #[test]
        fn a_timeout_in_range_is_read_exactly(millis in 101u64..10_000_000) {
            let value = format!("{}.{:03}", millis / 1000, millis % 1000);
            let read = run(&headers(&[("x-fal-request-timeout", &value)])).unwrap().start_within.unwrap();
            prop_assert!(read.abs_diff(Duration::from_millis(millis)) < Duration::from_micros(1));
        }
    }
}
