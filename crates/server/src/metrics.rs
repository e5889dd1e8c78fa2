//! Counts and times of answers, and their rendering for Prometheus together with the queue's figures.
//!
//! Each app has its own registry of plain atomics: nothing global, so many can live in one test process.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;

/// The routes that are told apart, as [`crate::route::Target::name`] gives them; the last takes what
/// named nothing.
const ROUTES: [&str; 17] = [
    "submit",
    "run",
    "status",
    "stream",
    "result",
    "cancel",
    "token",
    "models",
    "history",
    "delete_payloads",
    "meta",
    "openapi",
    "health",
    "ready",
    "metrics",
    "preflight",
    "none",
];

/// Upper bounds of the latency buckets, in seconds: from a status read to a run that waits for a training.
const BOUNDS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5, 30.0, 600.0];

/// The status codes that kiln answers with; the last takes any other.
const CODES: [&str; 17] = [
    "200", "202", "204", "400", "401", "403", "404", "405", "413", "422", "429", "499", "500", "502", "503",
    "504", "other",
];

#[derive(Default)]
struct RouteMetrics {
    codes: [AtomicU64; CODES.len()],
    buckets: [AtomicU64; BOUNDS.len()],
    count: AtomicU64,
    micros: AtomicU64,
}

/// What this process has answered since it started.
#[derive(Default)]
pub(crate) struct Metrics {
    routes: [RouteMetrics; ROUTES.len()],
    panics: AtomicU64,
}

impl Metrics {
    /// Counts one answer. For a stream the time is that until its headers.
    pub(crate) fn answered(&self, route: &str, status: StatusCode, took: Duration) {
        let index = ROUTES.iter().position(|name| *name == route).unwrap_or(ROUTES.len() - 1);
        let metrics = &self.routes[index];
        let slot = CODES.iter().position(|&code| code == status.as_str()).unwrap_or(CODES.len() - 1);
        metrics.codes[slot].fetch_add(1, Ordering::Relaxed);
        let seconds = took.as_secs_f64();
        if let Some(bucket) = BOUNDS.iter().position(|&bound| seconds <= bound) {
            metrics.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
        metrics.count.fetch_add(1, Ordering::Relaxed);
        metrics.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Counts a handler that panicked.
    pub(crate) fn panicked(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// Writes the process's own figures in Prometheus' text format.
    pub(crate) fn render(&self, text: &mut Text) {
        text.family("kiln_http_requests_total", "counter", "Answers by route and status code.");
        for (name, route) in ROUTES.iter().zip(&self.routes) {
            for (code, count) in CODES.iter().zip(&route.codes) {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    text.sample("kiln_http_requests_total", &[("route", name), ("code", code)], count);
                }
            }
        }
        text.family(
            "kiln_http_request_seconds",
            "histogram",
            "Time from a request to the headers of its answer.",
        );
        for (name, route) in ROUTES.iter().zip(&self.routes) {
            let count = route.count.load(Ordering::Relaxed);
            if count == 0 {
                continue;
            }
            let mut below = 0;
            for (bound, bucket) in BOUNDS.iter().zip(&route.buckets) {
                below += bucket.load(Ordering::Relaxed);
                let bound = bound.to_string();
                text.sample("kiln_http_request_seconds_bucket", &[("route", name), ("le", &bound)], below);
            }
            text.sample("kiln_http_request_seconds_bucket", &[("route", name), ("le", "+Inf")], count);
            let seconds = Duration::from_micros(route.micros.load(Ordering::Relaxed)).as_secs_f64();
            text.sample("kiln_http_request_seconds_sum", &[("route", name)], seconds);
            text.sample("kiln_http_request_seconds_count", &[("route", name)], count);
        }
        text.family(
            "kiln_http_panics_total",
            "counter",
            "Handlers that broke an invariant and answered 500.",
        );
        text.sample("kiln_http_panics_total", &[], self.panics.load(Ordering::Relaxed));
    }
}

/// Prometheus' text exposition format, version 0.0.4.
#[derive(Default)]
pub(crate) struct Text(String);

impl Text {
    /// Opens a family of samples.
    pub(crate) fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Writes one sample.
    pub(crate) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (index, (label, word)) in labels.iter().enumerate() {
            self.0.push(if index == 0 { '{' } else { ',' });
            let word = word.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{label}=\"{word}\"");
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// The finished text.
    #[must_use]
    pub(crate) fn finish(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_its_own_row() {
        // A name that is missing in ROUTES would be counted under "none".
        use crate::route::{About, Endpoint, Target};
        let endpoint = Endpoint { owner: "o".into(), alias: "a".into(), path: String::new() };
        let about = |about| Target::Request { endpoint: endpoint.clone(), id: None, about };
        for target in [
            Target::Submit(endpoint.clone()),
            Target::Run(endpoint.clone()),
            about(About::Status),
            about(About::Stream),
            about(About::Result),
            about(About::Cancel),
            Target::Token,
            Target::Models,
            Target::History,
            Target::DeletePayloads(None),
            Target::Meta,
            Target::OpenApi,
            Target::Health,
            Target::Ready,
            Target::Metrics,
            Target::Preflight,
        ] {
            assert!(ROUTES.contains(&target.name()), "{target:?}");
        }
    }

    #[test]
    fn buckets_are_cumulative_and_codes_are_counted() {
        let metrics = Metrics::default();
        metrics.answered("status", StatusCode::OK, Duration::from_micros(900));
        metrics.answered("status", StatusCode::OK, Duration::from_millis(4));
        metrics.answered("status", StatusCode::IM_A_TEAPOT, Duration::from_secs(5000));
        let mut text = Text::default();
        metrics.render(&mut text);
        let text = text.finish();
        for line in [
            r#"kiln_http_requests_total{route="status",code="200"} 2"#,
            r#"kiln_http_requests_total{route="status",code="other"} 1"#,
            r#"kiln_http_request_seconds_bucket{route="status",le="0.001"} 1"#,
            r#"kiln_http_request_seconds_bucket{route="status",le="0.005"} 2"#,
            r#"kiln_http_request_seconds_bucket{route="status",le="600"} 2"#,
            r#"kiln_http_request_seconds_bucket{route="status",le="+Inf"} 3"#,
            r#"kiln_http_request_seconds_count{route="status"} 3"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} not in\n{text}");
        }
    }

    #[test]
    fn label_values_are_escaped() {
        let mut text = Text::default();
        text.sample("x", &[("l", "a\"b\\c\nd")], 1);
        assert_eq!(text.finish(), "x{l=\"a\\\"b\\\\c\\nd\"} 1\n");
    }
}
