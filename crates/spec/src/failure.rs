//! How a request ended badly, and what that looks like on the wire: status, body, headers, words.

use crate::fal_error::FalError;
use crate::problem::{Problem, Problems};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt;

/// Why a request has no result. The job row stores it, the server shows it.
///
/// Source: fal's documentation of model errors and of request errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "failure", rename_all = "snake_case")]
pub enum Failure {
    /// The request or its data is at fault: 422 with every problem. Never worth a retry.
    User {
        /// What is wrong.
        problems: Problems,
    },
    /// The job itself broke or ran out of time, in the same shape as [`Failure::User`] but with a status of its own.
    Model {
        /// 500 or 504.
        status: u16,
        /// What went wrong, in words fit for a stranger.
        problems: Problems,
        /// Whether the same request may succeed when sent again.
        retryable: bool,
    },
    /// The machinery around the job: timeouts, lost workers, cancellation.
    Request {
        /// Which of fal's request errors.
        error_type: RequestErrorKind,
        /// Sentence for a person.
        detail: String,
    },
}

/// fal's request errors. The names are the wire's `error_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestErrorKind {
    /// The client's start deadline passed before the request began (504).
    RequestTimeout,
    /// A worker took too long to get ready (504).
    StartupTimeout,
    /// No worker could be found (503).
    RunnerSchedulingFailure,
    /// A worker did not answer in time (503).
    RunnerConnectionTimeout,
    /// A worker went away during the job (503).
    RunnerDisconnected,
    /// A worker refused the job (503).
    RunnerConnectionRefused,
    /// A worker could not be reached (503).
    RunnerConnectionError,
    /// A worker's answer was cut short (502).
    RunnerIncompleteResponse,
    /// A worker answered with an error of its own (500).
    RunnerServerError,
    /// The service broke (500).
    InternalError,
    /// The client of a synchronous run went away (499).
    ClientDisconnected,
    /// The client cancelled the request (499).
    ClientCancelled,
    /// The request cannot be read (400).
    BadRequest,
}

impl RequestErrorKind {
    /// Every kind, in the order of fal's table.
    pub const ALL: [RequestErrorKind; 13] = [
        Self::RequestTimeout,
        Self::StartupTimeout,
        Self::RunnerSchedulingFailure,
        Self::RunnerConnectionTimeout,
        Self::RunnerDisconnected,
        Self::RunnerConnectionRefused,
        Self::RunnerConnectionError,
        Self::RunnerIncompleteResponse,
        Self::RunnerServerError,
        Self::InternalError,
        Self::ClientDisconnected,
        Self::ClientCancelled,
        Self::BadRequest,
    ];

    /// The wire's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RequestTimeout => "request_timeout",
            Self::StartupTimeout => "startup_timeout",
            Self::RunnerSchedulingFailure => "runner_scheduling_failure",
            Self::RunnerConnectionTimeout => "runner_connection_timeout",
            Self::RunnerDisconnected => "runner_disconnected",
            Self::RunnerConnectionRefused => "runner_connection_refused",
            Self::RunnerConnectionError => "runner_connection_error",
            Self::RunnerIncompleteResponse => "runner_incomplete_response",
            Self::RunnerServerError => "runner_server_error",
            Self::InternalError => "internal_error",
            Self::ClientDisconnected => "client_disconnected",
            Self::ClientCancelled => "client_cancelled",
            Self::BadRequest => "bad_request",
        }
    }

    /// Status of the answer.
    pub fn http_status(self) -> u16 {
        match self {
            Self::RequestTimeout | Self::StartupTimeout => 504,
            Self::RunnerSchedulingFailure
            | Self::RunnerConnectionTimeout
            | Self::RunnerDisconnected
            | Self::RunnerConnectionRefused
            | Self::RunnerConnectionError => 503,
            Self::RunnerIncompleteResponse => 502,
            Self::RunnerServerError | Self::InternalError => 500,
            Self::ClientDisconnected | Self::ClientCancelled => 499,
            Self::BadRequest => 400,
        }
    }

    /// Whether the same request may succeed when sent again.
    pub fn retryable(self) -> bool {
        !matches!(self, Self::ClientDisconnected | Self::ClientCancelled | Self::BadRequest)
    }
}

impl fmt::Display for RequestErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Failure {
    /// A fault of the request or its data (422).
    pub fn user(problems: impl Into<Problems>) -> Self {
        Failure::User { problems: problems.into() }
    }

    /// A fault of the request about one value, with one of fal's own types. Server-side types become
    /// [`Failure::Model`] that may be retried.
    pub fn fal(error: &FalError, loc: Vec<crate::Loc>, msg: impl Into<String>) -> Self {
        let problems = Problems::from(Problem::fal(error, loc, msg));
        match error.http_status() {
            422 => Failure::User { problems },
            status => Failure::Model { status, problems, retryable: true },
        }
    }

    /// Something broke during the job and trying again will not help (500). `msg` reaches the client: no internals.
    pub fn internal(msg: impl Into<String>) -> Self {
        let problem = Problem::fal(&FalError::InternalServerError, vec!["body".into()], msg);
        Failure::Model { status: 500, problems: problem.into(), retryable: false }
    }

    /// A fault of the machinery.
    pub fn request(error_type: RequestErrorKind, detail: impl Into<String>) -> Self {
        Failure::Request { error_type, detail: detail.into() }
    }

    /// The client cancelled the request (499).
    pub fn cancelled() -> Self {
        Failure::request(RequestErrorKind::ClientCancelled, "Request was cancelled by the client")
    }

    /// The client of a synchronous run went away (499).
    pub fn disconnected() -> Self {
        Failure::request(
            RequestErrorKind::ClientDisconnected,
            "Client disconnected before the request completed",
        )
    }

    /// The client's start deadline passed in the queue (504).
    pub fn start_deadline() -> Self {
        Failure::request(RequestErrorKind::RequestTimeout, "Request timed out before a worker could start it")
    }

    /// The last of `attempts` workers went away (503).
    pub fn workers_lost(attempts: u32) -> Self {
        let times = if attempts == 1 { "once".to_owned() } else { format!("{attempts} times") };
        Failure::request(
            RequestErrorKind::RunnerDisconnected,
            format!("The worker running this request went away {times}; giving up"),
        )
    }

    /// Status of the result answer.
    pub fn http_status(&self) -> u16 {
        match self {
            Failure::User { .. } => 422,
            Failure::Model { status, .. } => *status,
            Failure::Request { error_type, .. } => error_type.http_status(),
        }
    }

    /// Body of the result answer and payload of the webhook.
    pub fn body(&self) -> Value {
        match self {
            Failure::User { problems } | Failure::Model { problems, .. } => problems.to_body(),
            Failure::Request { error_type, detail } => json!({ "detail": detail, "error_type": error_type }),
        }
    }

    /// Headers of the result answer, besides `x-fal-request-id`.
    pub fn headers(&self) -> Vec<(&'static str, &'static str)> {
        let retry = [("true", "1"), ("false", "0")][usize::from(!self.retryable())];
        match self {
            Failure::User { .. } | Failure::Model { .. } => vec![
                ("x-fal-retryable", retry.0),
                ("x-fal-needs-retry", retry.1),
                ("x-fal-billable-units", "0"),
            ],
            Failure::Request { error_type, .. } => {
                let mut headers = vec![("x-fal-error-type", error_type.as_str())];
                if *error_type == RequestErrorKind::RequestTimeout {
                    headers.push(("x-fal-request-timeout-type", "user"));
                }
                headers
            }
        }
    }

    /// The status answer's `error`: one line for a person.
    pub fn error_line(&self) -> String {
        match self {
            Failure::User { problems } | Failure::Model { problems, .. } => problems.line(),
            Failure::Request { detail, .. } => detail.clone(),
        }
    }

    /// The webhook's `error`.
    pub fn webhook_error(&self) -> String {
        format!("Invalid status code: {}", self.http_status())
    }

    /// The status answer's `error_type`: only request errors have one.
    pub fn error_type(&self) -> Option<&'static str> {
        match self {
            Failure::Request { error_type, .. } => Some(error_type.as_str()),
            Failure::User { .. } | Failure::Model { .. } => None,
        }
    }

    /// Whether the same request may succeed when sent again.
    pub fn retryable(&self) -> bool {
        match self {
            Failure::User { .. } => false,
            Failure::Model { retryable, .. } => *retryable,
            Failure::Request { error_type, .. } => error_type.retryable(),
        }
    }

    /// True when the client asked for the end (cancelled or gone): nobody's fault.
    pub fn is_cancelled(&self) -> bool {
        matches!(
            self,
            Failure::Request {
                error_type: RequestErrorKind::ClientCancelled | RequestErrorKind::ClientDisconnected,
                ..
            }
        )
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Failure::User { problems }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error_line())
    }
}
impl std::error::Error for Failure {}
