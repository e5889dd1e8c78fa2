//! fal's words: header names, the addresses that are handed out, the status document, log items.

use std::fmt::Write as _;
use std::io;

use axum::body::Body;
use axum::response::Response;
use chrono::{DateTime, SecondsFormat, Utc};
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::ser::SerializeSeq as _;
use serde::{Serialize, Serializer};
use url::Url;
use uuid::Uuid;

use crate::route::{Service, fal_host};

/// `application/json`, without which the JS client hands out text.
pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// The job's id where the request is about a job, else one of the request's own.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-fal-request-id");
/// The `error_type` of the body.
pub(crate) const ERROR_TYPE: HeaderName = HeaderName::from_static("x-fal-error-type");
const RETRYABLE: HeaderName = HeaderName::from_static("x-fal-retryable");
const NEEDS_RETRY: HeaderName = HeaderName::from_static("x-fal-needs-retry");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Says in the older and the newer way whether it is worth asking again.
pub(crate) fn retryable(headers: &mut HeaderMap, yes: bool) {
    headers.insert(RETRYABLE, HeaderValue::from_static(if yes { "true" } else { "false" }));
    headers.insert(NEEDS_RETRY, HeaderValue::from_static(if yes { "1" } else { "0" }));
}

/// An answer with a JSON body.
pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let body = serde_json::to_vec(body).expect("invariant: wire documents have string keys");
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

/// Where the client reaches this server: the root of every absolute address that is handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    /// `http://localhost:8080`, without trailing slash.
    root: String,
    /// The client came by one of fal's own names: the services are hosts, not prefixes.
    by_host: bool,
}

impl Origin {
    /// The configured public URL, else the Host header and scheme of the request at hand. A Host header that names
    /// no host counts as none: no address could be made of it.
    pub(crate) fn new(public_url: Option<&Url>, headers: &HeaderMap, over_tls: bool) -> Self {
        if let Some(url) = public_url {
            return Self::public(url);
        }
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        let host = host.filter(|host| is_host(host)).unwrap_or("localhost");
        let name = host.split(':').next().unwrap_or(host);
        let by_host = fal_host(name).is_some();
        let forwarded = headers.get(FORWARDED_PROTO).map(HeaderValue::as_bytes);
        let scheme = match forwarded {
            Some(b"https") => "https",
            Some(b"http") => "http",
            _ if over_tls => "https",
            // The clients reach fal's names only through TLS; something in front of us ended it.
            _ if by_host => "https",
            _ => "http",
        };
        Self { root: format!("{scheme}://{host}"), by_host }
    }

    /// The configured public URL.
    pub(crate) fn public(url: &Url) -> Self {
        Self { root: url.as_str().trim_end_matches('/').to_owned(), by_host: false }
    }

    /// Whether an address is on the host that the client reaches this server at.
    pub(crate) fn is_at(&self, url: &Url) -> bool {
        let root = Url::parse(&self.root).ok();
        let place = |url: &Url| (url.host_str().map(str::to_owned), url.port_or_known_default());
        root.is_some_and(|root| place(&root) == place(url))
    }

    /// The base of one service, without trailing slash.
    pub(crate) fn base(&self, service: Service) -> String {
        let (prefix, host) = match service {
            Service::Queue => ("queue", "queue.fal.run"),
            Service::Run => ("run", "fal.run"),
            Service::Rest => ("rest", "rest.fal.ai"),
            Service::Cdn => ("cdn", "v3.fal.media"),
            Service::Platform => {
                return if self.by_host { "https://api.fal.ai".into() } else { self.root.clone() };
            }
            Service::Site => return if self.by_host { "https://fal.ai".into() } else { self.root.clone() },
        };
        match self.root.split_once("://") {
            Some((scheme, _)) if self.by_host => format!("{scheme}://{host}"),
            _ => format!("{}/{prefix}", self.root),
        }
    }
}

/// Whether this is a host with or without a port.
fn is_host(text: &str) -> bool {
    let authority = text.parse::<http::uri::Authority>();
    authority.is_ok_and(|authority| !authority.host().is_empty() && !text.contains('@'))
}

/// A result as clients see it: kiln's own files, which the row names by reference, at their public addresses.
pub(crate) fn public_outcome(outcome: &spec::Outcome, files_url: &str) -> spec::Outcome {
    let mut outcome = outcome.clone();
    let files = [&mut outcome.lora_file, &mut outcome.config_file]
        .into_iter()
        .chain([&mut outcome.video, &mut outcome.audio, &mut outcome.debug_dataset].into_iter().flatten());
    for file in files {
        if let Some(path) = file.url.strip_prefix(store::OWN_SCHEME) {
            file.url = format!("{files_url}{path}");
        }
    }
    outcome
}

/// The three addresses of a job. Owner and alias only, no sub-path and no `/response`: so the handles
/// of both clients compare equal whether they come from submit or from the id.
#[derive(Debug, Serialize)]
pub(crate) struct Addresses {
    response_url: String,
    status_url: String,
    cancel_url: String,
}

impl Addresses {
    pub(crate) fn new(origin: &Origin, id: Uuid) -> Self {
        let response_url = format!(
            "{}/{}/{}/requests/{}",
            origin.base(Service::Queue),
            spec::OWNER,
            spec::ALIAS,
            id.as_hyphenated()
        );
        Self {
            status_url: format!("{response_url}/status"),
            cancel_url: format!("{response_url}/cancel"),
            response_url,
        }
    }
}

/// `{}` before a job is final, then how long it ran.
#[derive(Debug, Default, Serialize)]
pub(crate) struct JobMetrics {
    #[serde(skip_serializing_if = "Option::is_none")]
    inference_time: Option<f64>,
}

/// The answer to submit, to status, and one event of the stream.
#[derive(Debug, Serialize)]
pub(crate) struct StatusDocument<'a> {
    pub(crate) status: &'static str,
    pub(crate) request_id: Uuid,
    /// Submit only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gateway_request_id: Option<Uuid>,
    #[serde(flatten)]
    pub(crate) addresses: Addresses,
    /// Always there, null unless asked for: Python reads the key without a default.
    pub(crate) logs: Option<LogItems<'a>>,
    pub(crate) metrics: JobMetrics,
    /// There exactly while the job waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) queue_position: Option<u64>,
    /// There exactly when the job failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<&'a str>,
    /// There exactly when it failed for a reason that is not the model's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error_type: Option<&'a str>,
}

impl<'a> StatusDocument<'a> {
    /// The answer to an accepted submit. A job that was born final is still told as waiting at the front:
    /// programs expect this one word here, and the next status says the rest.
    pub(crate) fn submitted(origin: &Origin, id: Uuid, position: Option<u64>) -> Self {
        Self {
            status: "IN_QUEUE",
            request_id: id,
            gateway_request_id: Some(id),
            addresses: Addresses::new(origin, id),
            logs: None,
            metrics: JobMetrics::default(),
            queue_position: Some(position.unwrap_or(0)),
            error: None,
            error_type: None,
        }
    }

    /// Where a job stands. Failed and cancelled jobs are `COMPLETED` too.
    pub(crate) fn of(origin: &Origin, job: &'a store::Status) -> Self {
        let waiting = job.state == store::State::Queued;
        let done = job.state.is_final();
        let status = match job.state {
            store::State::Queued => "IN_QUEUE",
            store::State::Running => "IN_PROGRESS",
            store::State::Completed | store::State::Failed | store::State::Cancelled => "COMPLETED",
        };
        Self {
            status,
            request_id: job.id,
            gateway_request_id: None,
            addresses: Addresses::new(origin, job.id),
            logs: job.logs.as_deref().filter(|_| !waiting).map(LogItems),
            metrics: JobMetrics { inference_time: done.then(|| job.inference_seconds.unwrap_or(0.0)) },
            queue_position: waiting.then(|| job.position.unwrap_or(0)),
            error: job.error.as_deref().filter(|_| done),
            error_type: job.error_type.as_deref().filter(|_| done),
        }
    }
}

/// Log lines as the wire spells them.
#[derive(Debug)]
pub(crate) struct LogItems<'a>(pub(crate) &'a [store::Log]);

impl Serialize for LogItems<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Item<'a> {
            message: &'a str,
            level: &'static str,
            source: &'static str,
            timestamp: String,
        }
        let mut seq = serializer.serialize_seq(Some(self.0.len()))?;
        for line in self.0 {
            seq.serialize_element(&Item {
                message: &line.message,
                level: line.level.as_str(),
                source: "USER",
                timestamp: timestamp(line.at),
            })?;
        }
        seq.end()
    }
}

/// ISO-8601 with six digits and an explicit offset: the form that `datetime.fromisoformat` reads in every
/// Python, and that JavaScript does not take for local time.
pub(crate) fn timestamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, false)
}

/// JSON in ASCII only, for stream events: the JS client decodes each network chunk on its own, so a
/// character cut by a chunk's border would be lost.
pub(crate) fn ascii_json(value: &impl Serialize) -> String {
    struct Ascii;
    impl serde_json::ser::Formatter for Ascii {
        fn write_string_fragment<W: io::Write + ?Sized>(
            &mut self,
            writer: &mut W,
            text: &str,
        ) -> io::Result<()> {
            if text.is_ascii() {
                return writer.write_all(text.as_bytes());
            }
            let mut escaped = String::with_capacity(text.len() * 2);
            let mut units = [0; 2];
            for c in text.chars() {
                if c.is_ascii() {
                    escaped.push(c);
                } else {
                    for unit in c.encode_utf16(&mut units) {
                        let _ = write!(escaped, "\\u{unit:04x}");
                    }
                }
            }
            writer.write_all(escaped.as_bytes())
        }
    }
    let mut bytes = Vec::new();
    value
        .serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Ascii))
        .expect("invariant: wire documents have string keys");
    String::from_utf8(bytes).expect("invariant: escaped JSON is ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn addresses_follow_the_host_of_the_request() {
        let origin = Origin::new(None, &headers(&[("host", "10.0.0.5:8080")]), false);
        assert_eq!(origin.base(Service::Queue), "http://10.0.0.5:8080/queue");
        assert_eq!(origin.base(Service::Cdn), "http://10.0.0.5:8080/cdn");
    }

    #[test]
    fn a_tls_proxy_in_front_is_believed_about_the_scheme() {
        let origin =
            Origin::new(None, &headers(&[("host", "kiln.example"), ("x-forwarded-proto", "https")]), false);
        assert_eq!(origin.base(Service::Queue), "https://kiln.example/queue");
        let origin = Origin::new(
            None,
            &headers(&[("host", "kiln.example"), ("x-forwarded-proto", "javascript")]),
            false,
        );
        assert_eq!(origin.base(Service::Queue), "http://kiln.example/queue");
    }

    #[test]
    fn a_public_url_wins_over_the_host() {
        let public = Url::parse("https://train.example/base/").unwrap();
        let origin = Origin::new(Some(&public), &headers(&[("host", "queue.fal.run")]), false);
        assert_eq!(origin.base(Service::Queue), "https://train.example/base/queue");
    }

    #[test]
    fn under_fals_own_names_the_services_are_hosts() {
        for host in ["queue.fal.run", "fal.run", "QUEUE.fal.run:443", "rest.fal.ai"] {
            let origin = Origin::new(None, &headers(&[("host", host)]), false);
            assert_eq!(origin.base(Service::Queue), "https://queue.fal.run", "{host}");
            assert_eq!(origin.base(Service::Rest), "https://rest.fal.ai", "{host}");
        }
    }

    #[test]
    fn timestamps_have_six_digits_and_an_offset() {
        let at = DateTime::from_timestamp(1_767_322_205, 120_000_000).unwrap();
        assert_eq!(timestamp(at), "2026-01-02T02:50:05.120000+00:00");
    }

    #[test]
    fn escaped_json_is_ascii_and_reads_back() {
        let value = json!({"message": "é 🦀 \u{7f} \" \\ \n \u{2028}"});
        let text = ascii_json(&value);
        assert!(text.is_ascii() && text.contains("\\u00e9 \\ud83e\\udd80"), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }

    proptest! {
        #[test]
        fn any_text_survives_the_escaping(text in any::<String>()) {
            let escaped = ascii_json(&text);
            prop_assert!(escaped.is_ascii());
            prop_assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), text);
        }
    }
}
