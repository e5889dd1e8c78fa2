//! Everything that can be refused or go wrong at the HTTP edge, and the one place where it becomes an answer.
//!
//! What a *job* ends with is not here: a [`spec::Failure`] knows its own status, headers and body.

use axum::body::Body;
use axum::response::Response;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::params::Unusable;
use crate::wire;

/// Why a request gets no answer of its own.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No key, a wrong one, or one that cannot be read.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// A good token that does not reach this far.
    #[error("{0}")]
    Forbidden(&'static str),
    /// Nobody serves this application here.
    #[error("Application '{0}' not found")]
    NoApplication(String),
    /// The application has no such path, or the service no such route. Without the leading slash.
    #[error("Path /{0} not found")]
    NoPath(String),
    /// No job has this id, or it was deleted.
    #[error("request not found")]
    NoRequest,
    /// The route exists, the method does not; holds the ones that do.
    #[error("Method Not Allowed")]
    MethodNotAllowed(&'static str),
    /// The proxy route without a usable target.
    #[error("Invalid request")]
    InvalidTarget,
    /// A body beyond the limit, in bytes.
    #[error(
        "The request body is larger than {0} bytes, the limit of this server. Put large data behind a URL."
    )]
    TooLarge(u64),
    /// A file beyond the limit, in bytes.
    #[error("The file is larger than {0} bytes, the limit of this server")]
    FileTooLarge(u64),
    /// An upload that cannot go on like this.
    #[error("{0}")]
    Upload(String),
    /// No such upload, or its time is over.
    #[error("This upload does not exist or has expired. Begin a new one.")]
    NoUpload,
    /// The secret in the address is not the upload's.
    #[error("The secret in the upload address is wrong")]
    WrongSecret,
    /// No such file, or its time is over.
    #[error("File not found")]
    NoFile,
    /// Somebody else's file, by its owner's wish.
    #[error("You may not read this file")]
    HiddenFile,
    /// A body that broke off or stalled.
    #[error("{0}")]
    BrokenBody(&'static str),
    /// A query or header value without meaning.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// A field of a small request body without meaning: where, and what.
    #[error("{1}")]
    Field(&'static str, &'static str),
    /// More requests wait than the caller accepts.
    #[error("The queue is longer than fal_max_queue_length: {0} requests are waiting")]
    QueueFull(u64),
    /// The job is not final, so it cannot be deleted.
    #[error("The request is still in progress. Cancel it, or wait until it is completed.")]
    NotFinished,
    /// This server is going away.
    #[error("The server is shutting down, send the request again")]
    ShuttingDown,
    /// The database failed the request.
    #[error(transparent)]
    Store(store::Error),
    /// The object store failed the request.
    #[error(transparent)]
    Objects(objects::Error),
    /// A handler broke an invariant.
    #[error("{0}")]
    Bug(String),
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::BadCursor => Unusable("cursor is not one that this server gave out".into()).into(),
            error => Self::Store(error),
        }
    }
}

impl From<objects::Error> for Error {
    fn from(error: objects::Error) -> Self {
        match error {
            objects::Error::TooLarge { limit } => Self::FileTooLarge(limit),
            error => Self::Objects(error),
        }
    }
}

impl From<files::Error> for Error {
    fn from(error: files::Error) -> Self {
        match error {
            files::Error::Store(error) => error.into(),
            files::Error::Objects(error) => error.into(),
            error @ (files::Error::DataUri(_) | files::Error::BadKey { .. }) => Self::Bug(error.to_string()),
        }
    }
}

/// What a caller is told when the cause is inside: nothing but that.
const INTERNAL: &str = "Internal server error";
const UNAVAILABLE: &str = "The queue cannot be reached at the moment, send the request again";
const NO_STORAGE: &str = "The file storage cannot be used at the moment, send the request again";

impl Error {
    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) | Self::WrongSecret | Self::HiddenFile => StatusCode::FORBIDDEN,
            Self::NoApplication(_) | Self::NoPath(_) | Self::NoRequest | Self::NoUpload | Self::NoFile => {
                StatusCode::NOT_FOUND
            }
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::InvalidTarget
            | Self::BrokenBody(_)
            | Self::Unusable(_)
            | Self::Upload(_)
            | Self::NotFinished => StatusCode::BAD_REQUEST,
            Self::TooLarge(_) | Self::FileTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Field(..) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::QueueFull(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::ShuttingDown
            | Self::Store(store::Error::Unavailable(_))
            | Self::Objects(objects::Error::Unavailable { .. }) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Store(_) | Self::Objects(_) | Self::Bug(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// fal's word for it, where the wire has one.
    fn error_type(&self) -> Option<&'static str> {
        match self {
            Self::Unusable(_) | Self::BrokenBody(_) | Self::Upload(_) => Some("bad_request"),
            Self::ShuttingDown => Some("runner_disconnected"),
            Self::Store(store::Error::Unavailable(_)) | Self::Objects(objects::Error::Unavailable { .. }) => {
                Some("runner_connection_error")
            }
            Self::Store(_) | Self::Objects(_) | Self::Bug(_) => Some("internal_error"),
            _ => None,
        }
    }

    /// The text for the caller: never an inner cause.
    fn detail(&self) -> String {
        match self {
            Self::Store(store::Error::Unavailable(_)) => UNAVAILABLE.to_owned(),
            Self::Objects(objects::Error::Unavailable { .. }) => NO_STORAGE.to_owned(),
            Self::Store(_) | Self::Objects(_) | Self::Bug(_) => INTERNAL.to_owned(),
            other => other.to_string(),
        }
    }

    fn body(&self) -> Value {
        match self {
            Self::InvalidTarget => json!("Invalid request"),
            Self::NoRequest => json!({"status": "NOT_FOUND"}),
            Self::Field(field, msg) => {
                json!({"detail": [{"loc": ["body", field], "msg": msg, "type": "value_error"}]})
            }
            _ => match self.error_type() {
                Some(error_type) => json!({"detail": self.detail(), "error_type": error_type}),
                None => json!({"detail": self.detail()}),
            },
        }
    }

    /// The same in the shape of the platform API.
    fn platform_body(&self, request_id: Uuid) -> Value {
        let kind = match self.status().as_u16() {
            401 | 403 => "authorization_error",
            404 => "not_found",
            429 => "rate_limited",
            500.. => "server_error",
            _ => "validation_error",
        };
        let message =
            if matches!(self, Self::NoRequest) { "Request not found".to_owned() } else { self.detail() };
        json!({"error": {
            "type": kind,
            "message": message,
            "docs_url": format!("https://docs.fal.ai/errors/#{kind}"),
            "request_id": request_id,
        }})
    }

    /// Turns the error into an answer, and logs what only the operator may know.
    #[must_use]
    pub fn into_response(self, platform: bool, request_id: Uuid) -> Response {
        let status = self.status();
        if status.is_server_error() && !matches!(self, Self::ShuttingDown) {
            tracing::error!(%request_id, error = &self as &dyn std::error::Error, "request failed");
        }
        let body = if platform { self.platform_body(request_id) } else { self.body() };
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, wire::JSON);
        if let Some(error_type) = self.error_type() {
            headers.insert(wire::ERROR_TYPE, HeaderValue::from_static(error_type));
        }
        match self {
            Self::MethodNotAllowed(allow) => {
                headers.insert(ALLOW, HeaderValue::from_static(allow));
            }
            Self::ShuttingDown
            | Self::Store(store::Error::Unavailable(_))
            | Self::Objects(objects::Error::Unavailable { .. }) => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
                wire::retryable(headers, true);
            }
            Self::Store(_) | Self::Objects(_) | Self::Bug(_) => wire::retryable(headers, false),
            _ => {}
        }
        response
    }
}
