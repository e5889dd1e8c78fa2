//! The HTTP face: fal's wire protocol over the job table.
//!
//! [`app`] turns an [`App`] into an axum router, [`serve()`] runs it on a listener until it is told to stop.
//! A request is resolved by [`route::resolve`] (one pure function), its caller checked by [`auth`], answered by
//! one function per [`route::Target`], and dressed with the headers that every answer carries (request id,
//! cross-origin rules). What goes wrong on the way is an [`error::Error`] and becomes an answer in one place.
//!
//! Invariants:
//! - knows no SQL, no tensors, no media; reads no configuration: whoever starts it hands in [`Options`];
//! - a job is accepted only when the store says that it is committed;
//! - reaches an address that a client names only through `objects::outbound`, to deliver a webhook;
//! - holds no file in memory: uploads and downloads stream;
//! - logs no header, no query string and no body: keys, tokens, webhook addresses and data URIs stay out.

pub mod auth;
mod body;
mod cors;
pub mod error;
mod files;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod health;
mod metrics;
mod openapi;
pub mod params;
mod platform;
mod queue;
mod range;
pub mod route;
mod serve;
pub mod tls;
mod token;
mod uploads;
pub mod webhooks;
mod wire;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::extract::Request;
use axum::response::Response;
use chrono::{DateTime, Utc};
use futures_util::FutureExt as _;
use http::header::{CONTENT_LENGTH, HOST};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use hyper::ext::ReasonPhrase;
use store::Store;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use url::Url;
use uuid::Uuid;

use ::files::Files;
pub use auth::Auth;
use auth::Caller;
use error::Error;
use metrics::Metrics;
use objects::Objects;
use objects::outbound::Outbound;
use route::{Refusal, Refused, Target};
pub use serve::{OverTls, serve, serve_with_tls};
use wire::Origin;

/// Everything that can be set about the server.
#[derive(Clone)]
pub struct Options {
    /// The root of every address that is handed out; without it, the Host header of the request at hand.
    pub public_url: Option<Url>,
    /// Whether callers must show a key.
    pub auth: Auth,
    /// The largest JSON body, in bytes.
    pub body_limit: u64,
    /// The largest file that may be uploaded, in bytes.
    pub upload_limit: u64,
    /// How long an upload stays open without another byte.
    pub upload_open_for: Duration,
    /// How long a token for uploads is good.
    pub upload_token_lifetime: Duration,
    /// How webhooks are delivered.
    pub webhooks: webhooks::Options,
    /// Where new request ids come from.
    pub ids: Ids,
    /// What time it is, for tokens. Jobs live by the database's clock.
    pub clock: Clock,
    /// Pause between two comments on a silent status stream.
    pub ping_every: Duration,
    /// How long requests in flight may take to end once the server is told to stop.
    pub drain: Duration,
    /// Address ranges that webhooks come from, as told by `/v1/meta`.
    pub webhook_ip_ranges: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            public_url: None,
            auth: Auth::Required,
            body_limit: 256 << 20,
            upload_limit: 64 << 30,
            upload_open_for: Duration::from_secs(24 * 3600),
            upload_token_lifetime: Duration::from_secs(24 * 3600),
            webhooks: webhooks::Options::default(),
            ids: Ids::random(),
            clock: Clock::system(),
            ping_every: Duration::from_secs(15),
            drain: Duration::from_secs(20),
            webhook_ip_ranges: Vec::new(),
        }
    }
}

/// A source of request ids.
#[derive(Clone)]
pub struct Ids(Arc<dyn Fn() -> Uuid + Send + Sync>);

impl Ids {
    /// Version 7: random, and in order of time, which keeps the job table's index compact.
    #[must_use]
    pub fn random() -> Self {
        Self(Arc::new(Uuid::now_v7))
    }

    /// Any other source, for tests: it must never repeat an id.
    #[must_use]
    pub fn from_fn(next: impl Fn() -> Uuid + Send + Sync + 'static) -> Self {
        Self(Arc::new(next))
    }

    fn next(&self) -> Uuid {
        (self.0)()
    }
}

/// A source of the time.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>);

impl Clock {
    /// The clock of this machine.
    #[must_use]
    pub fn system() -> Self {
        Self(Arc::new(|| std::time::SystemTime::now().into()))
    }

    /// Any other clock, for tests.
    #[must_use]
    pub fn from_fn(now: impl Fn() -> DateTime<Utc> + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    fn now(&self) -> DateTime<Utc> {
        (self.0)()
    }
}

/// What the handlers share.
pub struct App {
    store: Store,
    files: Files,
    outbound: Outbound,
    options: Options,
    metrics: Metrics,
    token_secret: tokio::sync::OnceCell<[u8; 32]>,
    /// Ends streams and waiting runs.
    shutdown: CancellationToken,
}

impl App {
    /// Puts the parts together.
    #[must_use]
    pub fn new(store: Store, objects: Objects, outbound: Outbound, options: Options) -> Arc<Self> {
        Arc::new(Self {
            files: Files::new(store.clone(), objects),
            outbound,
            store,
            options,
            metrics: Metrics::default(),
            token_secret: tokio::sync::OnceCell::new(),
            shutdown: CancellationToken::new(),
        })
    }

    /// The files; whoever runs no [`serve()`] beside the router sweeps them itself.
    #[must_use]
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Told once the server should stop: streams end, waiting runs answer.
    #[must_use]
    pub fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    async fn token_secret(&self) -> Result<[u8; 32], Error> {
        Ok(*self.token_secret.get_or_try_init(|| self.store.secret(auth::TOKEN_SECRET)).await?)
    }
}

/// Makes the router. All routes are one fallback: which one is meant depends on the host and on headers too.
pub fn app(app: Arc<App>) -> Router {
    Router::new().fallback(move |request: Request| answer(app.clone(), request))
}

/// One request on its way through the handlers.
struct Call<'a> {
    app: &'a App,
    headers: &'a HeaderMap,
    query: &'a str,
    caller: Caller,
    over_tls: bool,
    /// The id of this request; a submit gives it to its job.
    request_id: Uuid,
}

impl Call<'_> {
    fn store(&self) -> &Store {
        &self.app.store
    }

    fn files(&self) -> &Files {
        &self.app.files
    }

    fn origin(&self) -> Origin {
        Origin::new(self.app.options.public_url.as_ref(), self.headers, self.over_tls)
    }

    /// Where the client reaches files, without trailing slash.
    fn files_url(&self) -> String {
        self.origin().base(route::Service::Cdn)
    }

    /// Whether an address has the form of our files and names our host.
    fn is_own(&self, url: &str) -> bool {
        ::files::Address::from_url(url).is_some()
            && Url::parse(url.trim()).is_ok_and(|url| self.origin().is_at(&url))
    }
}

/// Resolves, answers, and dresses the answer.
async fn answer(app: Arc<App>, request: Request) -> Response {
    let began = Instant::now();
    let (parts, mut body) = request.into_parts();
    let route = route::resolve(
        &parts.method,
        parts.uri.path(),
        parts.uri.query().unwrap_or_default(),
        host(&parts),
        &parts.headers,
    );
    let name = route.as_ref().map_or("none", |route| route.target.name());
    let request_id = match &route {
        Ok(route::Route { target: Target::Request { id: Some(id), .. }, .. }) => *id,
        _ => app.options.ids.next(),
    };
    let span = tracing::debug_span!("request", method = %parts.method, route = name, %request_id);
    let mut response = async {
        let (target, query, platform) = match route {
            Ok(route) => (route.target, route.query, route.platform),
            Err(Refused { why, platform }) => return refuse(why).into_response(platform, request_id),
        };
        let handled =
            AssertUnwindSafe(handle(&app, &parts, &target, &query, request_id, &mut body)).catch_unwind();
        let result = handled.await.unwrap_or_else(|panic| {
            app.metrics.panicked();
            Err(Error::Bug(panic_text(panic.as_ref()).to_owned()))
        });
        result.unwrap_or_else(|error| error.into_response(platform, request_id))
    }
    .instrument(span)
    .await;

    if !body.is_end_stream() {
        // Refused before it was read: a client in the middle of sending must still see why.
        body::linger(body);
    }
    if response.status().as_u16() == 499 {
        // Not in the standard's list; the JS client shows the reason phrase as the message.
        response.extensions_mut().insert(ReasonPhrase::from_static(b"Client Closed Request"));
    }
    let headers = response.headers_mut();
    cors::allow_reading(headers);
    headers.entry(wire::REQUEST_ID).or_insert_with(|| id_header(request_id));
    if parts.method == Method::HEAD {
        // Dropped here rather than by hyper, so that a stream asked for with HEAD ends at once.
        if let Some(length) = response.body().size_hint().exact()
            && !response.headers().contains_key(CONTENT_LENGTH)
        {
            response.headers_mut().insert(CONTENT_LENGTH, length.into());
        }
        *response.body_mut() = Body::empty();
    }
    app.metrics.answered(name, response.status(), began.elapsed());
    tracing::debug!(method = %parts.method, route = name, %request_id, status = response.status().as_u16(), "answered");
    response
}

/// The host that the client meant: of an absolute request line, else of the Host header.
fn host(parts: &http::request::Parts) -> Option<&str> {
    let named = parts.uri.authority().map(http::uri::Authority::as_str);
    named.or_else(|| parts.headers.get(HOST).and_then(|host| host.to_str().ok()))
}

fn refuse(why: Refusal) -> Error {
    match why {
        Refusal::InvalidTarget => Error::InvalidTarget,
        Refusal::NotFound(path) => Error::NoPath(path.trim_start_matches('/').to_owned()),
        Refusal::MethodNotAllowed(allow) => Error::MethodNotAllowed(allow),
    }
}

async fn handle(
    app: &Arc<App>,
    parts: &http::request::Parts,
    target: &Target,
    query: &str,
    request_id: Uuid,
    body: &mut Body,
) -> Result<Response, Error> {
    let (method, headers) = (&parts.method, &parts.headers);
    let caller = auth::authorize(app, target, method, headers, query).await?;
    let over_tls = parts.extensions.get::<OverTls>().is_some();
    let call = Call { app, headers, query, caller, over_tls, request_id };
    match target {
        Target::Submit(endpoint) => queue::submit(&call, endpoint, body).await,
        Target::Run(endpoint) => queue::run(&call, endpoint, body).await,
        Target::Request { endpoint, id, about } => queue::about(app, &call, endpoint, *id, *about).await,
        Target::Token => token::create(&call, body).await,
        Target::Initiate => uploads::initiate(&call, body).await,
        Target::UploadToken => uploads::token(&call).await,
        Target::Upload => uploads::upload(&call, body).await,
        Target::UploadParts => uploads::begin_parts(&call).await,
        Target::Put(slot, number) => uploads::put(&call, slot, number.as_deref(), body).await,
        Target::Complete(slot) => uploads::complete(&call, slot, body).await,
        Target::File(address) => files::file(&call, method, address).await,
        Target::Jwks => webhooks::jwks(&call).await,
        Target::Models => platform::models(&call),
        Target::History => platform::history(&call).await,
        Target::DeletePayloads(id) => platform::delete_payloads(&call, *id).await,
        Target::Meta => Ok(platform::meta(&call)),
        Target::OpenApi => openapi::document(&call),
        Target::Health => Ok(health::health()),
        Target::Ready => Ok(health::ready(&call).await),
        Target::Metrics => health::metrics(&call).await,
        Target::Preflight => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            *response.headers_mut() = cors::preflight(headers);
            Ok(response)
        }
    }
}

fn id_header(id: Uuid) -> HeaderValue {
    let mut text = Uuid::encode_buffer();
    HeaderValue::from_str(id.as_hyphenated().encode_lower(&mut text)).expect("invariant: a UUID is ASCII")
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a handler panicked")
}
