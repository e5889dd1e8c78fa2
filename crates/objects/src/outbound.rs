//! The one HTTP client for addresses that a user gave.
//!
//! A name is resolved by our resolver, every address it gives is judged by [`Allowed`], and the connection goes to one
//! of those very addresses, so a name that changes between look-ups gains nothing. Redirects are followed by hand and
//! judged again. Proxy variables are ignored: a proxy would do the look-up that is judged here.
//!
//! Messages name the class of a refused address, never what an address answered.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{self, HeaderMap};
use url::{Host, Url};

use crate::addresses::{Allowed, Class};

/// Limits and permissions of the client.
#[derive(Clone, Debug)]
pub struct Options {
    /// Addresses allowed beside public ones.
    pub allowed: Allowed,
    /// Longest wait for a name and a connection.
    pub connect_timeout: Duration,
    /// Longest pause between two pieces of an answer.
    pub idle_timeout: Duration,
    /// Redirects followed before giving up.
    pub max_redirects: usize,
    /// Sent as `User-Agent`.
    pub user_agent: String,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            allowed: Allowed::default(),
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            max_redirects: 5,
            user_agent: concat!("kiln/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// Why an address was not reached or not read. No variant carries anything that the other side sent but its status.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No absolute http or https URL.
    #[error("`{url}` is not an http or https URL{reason}")]
    NotAUrl {
        /// The address, shortened, without credentials and query.
        url: String,
        /// What is wrong with it, starting with ": ", or nothing.
        reason: String,
    },
    /// The address, or one that its name resolves to, is on a network that is not allowed.
    #[error("{host} is on a {class} network, which this server does not reach; its operator may allow it")]
    Refused {
        /// Host of the URL.
        host: String,
        /// Class of the refused address.
        class: Class,
    },
    /// The name has no address.
    #[error("the name {host} cannot be resolved")]
    Unresolved {
        /// Host of the URL.
        host: String,
    },
    /// More redirects than allowed, or one without a usable target.
    #[error("{host} redirects {what}")]
    Redirect {
        /// Host of the first URL.
        host: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The answer is no success.
    #[error("{host} answered {status}")]
    Status {
        /// Host of the last URL.
        host: String,
        /// HTTP status.
        status: u16,
    },
    /// Connection, TLS or time limit.
    #[error("{host} {what}")]
    Unreachable {
        /// Host of the URL.
        host: String,
        /// What failed, in plain words.
        what: &'static str,
    },
    /// The answer is larger than asked for.
    #[error("{host} sent more than {limit} bytes")]
    TooLarge {
        /// Host of the URL.
        host: String,
        /// The limit.
        limit: u64,
    },
}

impl Error {
    /// Whether the same call may succeed later without anybody changing anything.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Error::Unresolved { .. } | Error::Unreachable { .. } => true,
            Error::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }
}

/// The start of a successful answer; read the rest from `body`.
pub struct Download {
    /// Length of the whole file, when the other side says it (also for a resumed download).
    pub total_bytes: Option<u64>,
    /// Where `body` starts: what was asked for, or 0 when the other side ignores ranges.
    pub offset: u64,
    /// Media type as sent.
    pub content_type: Option<String>,
    /// Strong validator, to be handed to the next [`Get::resume`].
    pub etag: Option<String>,
    /// The last segment of the final URL's path, decoded; may be empty.
    pub file_name: String,
    /// The bytes; ends with an error past the limit.
    pub body: Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>,
}

/// What to fetch.
#[derive(Clone, Debug)]
pub struct Get<'a> {
    /// The user's address.
    pub url: &'a str,
    /// Largest file taken, in bytes.
    pub max_bytes: u64,
    /// Continue behind these bytes, if the file still has this validator.
    pub resume: Option<(u64, String)>,
}

/// Resolves names. The system's resolver outside tests.
pub trait Lookup: Send + Sync + 'static {
    /// All addresses of a name.
    fn lookup(&self, name: String) -> Pin<Box<dyn Future<Output = std::io::Result<Vec<IpAddr>>> + Send>>;
}

struct SystemLookup;

impl Lookup for SystemLookup {
    fn lookup(&self, name: String) -> Pin<Box<dyn Future<Output = std::io::Result<Vec<IpAddr>>> + Send>> {
        Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.map(|a| a.ip()).collect()) })
    }
}

/// The client. Cheap to clone; keeps connections.
#[derive(Clone)]
pub struct Outbound {
    client: reqwest::Client,
    options: Arc<Options>,
}

impl Outbound {
    /// Makes a client that resolves names through the system.
    ///
    /// # Errors
    /// [`reqwest::Error`] when the system's certificates cannot be read.
    pub fn new(options: Options) -> Result<Outbound, reqwest::Error> {
        Outbound::with_lookup(options, Arc::new(SystemLookup))
    }

    /// Makes a client with another resolver.
    ///
    /// # Errors
    /// As [`Outbound::new`].
    pub fn with_lookup(options: Options, lookup: Arc<dyn Lookup>) -> Result<Outbound, reqwest::Error> {
        // Fails when a provider is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(options.connect_timeout)
            .read_timeout(options.idle_timeout)
            .user_agent(&options.user_agent)
            .dns_resolver(Judge { lookup, allowed: options.allowed.clone() })
            .build()?;
        Ok(Outbound { client, options: Arc::new(options) })
    }

    /// Judges an address without connecting: its form, and its host where that is a literal address. A name is judged
    /// when it is resolved.
    ///
    /// # Errors
    /// [`Error::NotAUrl`], [`Error::Refused`].
    pub fn check(&self, url: &str) -> Result<Url, Error> {
        let not_a_url = |reason: String| Error::NotAUrl { url: shown(url), reason };
        let parsed = Url::parse(url.trim()).map_err(|error| not_a_url(format!(": {error}")))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(not_a_url(format!(": the scheme is `{}`", parsed.scheme())));
        }
        let literal = match parsed.host() {
            None => return Err(not_a_url(": it names no host".to_owned())),
            Some(Host::Ipv4(v4)) => IpAddr::V4(v4),
            Some(Host::Ipv6(v6)) => IpAddr::V6(v6),
            // RFC 6761: never another machine, whatever a resolver says.
            Some(Host::Domain(name)) if is_localhost(name) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Some(Host::Domain(_)) => return Ok(parsed),
        };
        match self.options.allowed.check(literal) {
            Ok(()) => Ok(parsed),
            Err(class) => Err(Error::Refused { host: host(&parsed), class }),
        }
    }

    /// Starts a download, following redirects.
    ///
    /// # Errors
    /// Any of [`Error`]; [`Error::TooLarge`] at once when the announced length is over the limit.
    pub async fn get(&self, get: Get<'_>) -> Result<Download, Error> {
        let mut url = self.check(get.url)?;
        let first = host(&url);
        for _ in 0..=self.options.max_redirects {
            let mut request = self.client.get(url.clone()).header(header::ACCEPT_ENCODING, "identity");
            if let Some((offset, etag)) = get.resume.as_ref().filter(|(offset, _)| *offset > 0) {
                request =
                    request.header(header::RANGE, format!("bytes={offset}-")).header(header::IF_RANGE, etag);
            }
            let response = request.send().await.map_err(|error| failure(&url, &error))?;
            if !response.status().is_redirection() {
                return start(&url, response, &get);
            }
            let target = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let next = target.and_then(|target| url.join(target).ok());
            let next =
                next.ok_or(Error::Redirect { host: first.clone(), what: "without saying where to" })?;
            url = self.check(next.as_str())?;
        }
        Err(Error::Redirect { host: first, what: "too often" })
    }

    /// Posts a body once; redirects are not followed but returned as the status they are.
    ///
    /// # Errors
    /// [`Error::NotAUrl`], [`Error::Refused`], [`Error::Unresolved`], [`Error::Unreachable`].
    pub async fn post(
        &self,
        url: &str,
        headers: HeaderMap,
        body: Bytes,
        timeout: Duration,
    ) -> Result<u16, Error> {
        let url = self.check(url)?;
        let request = self.client.post(url.clone()).headers(headers).body(body).timeout(timeout);
        let response = request.send().await.map_err(|error| failure(&url, &error))?;
        Ok(response.status().as_u16())
    }
}

fn start(url: &Url, response: reqwest::Response, get: &Get<'_>) -> Result<Download, Error> {
    let host = host(url);
    let status = response.status().as_u16();
    let asked = get.resume.as_ref().map_or(0, |(offset, _)| *offset);
    if !response.status().is_success() {
        return Err(Error::Status { host, status });
    }
    let text = |name| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let offset =
        if status == 206 { range_start(text(header::CONTENT_RANGE).as_deref(), asked, &host)? } else { 0 };
    let total_bytes = response.content_length().map(|left| left + offset);
    if total_bytes.is_some_and(|total| total > get.max_bytes) {
        return Err(Error::TooLarge { host, limit: get.max_bytes });
    }
    let segment = url.path_segments().and_then(|mut segments| segments.next_back()).unwrap_or_default();
    Ok(Download {
        total_bytes,
        offset,
        content_type: text(header::CONTENT_TYPE),
        etag: text(header::ETAG).filter(|tag| !tag.starts_with("W/")),
        file_name: crate::names::decode_segment(segment).unwrap_or_default(),
        body: Box::pin(limited(url.clone(), response, offset, get.max_bytes)),
    })
}

/// A part that does not start where it was asked to would corrupt the file.
fn range_start(content_range: Option<&str>, asked: u64, host: &str) -> Result<u64, Error> {
    let start = content_range
        .and_then(|range| range.strip_prefix("bytes "))
        .and_then(|range| range.split('-').next())
        .and_then(|start| start.parse::<u64>().ok());
    if start == Some(asked) {
        Ok(asked)
    } else {
        Err(Error::Unreachable {
            host: host.to_owned(),
            what: "answered another range than the one asked for",
        })
    }
}

fn limited(
    url: Url,
    response: reqwest::Response,
    offset: u64,
    limit: u64,
) -> impl Stream<Item = Result<Bytes, Error>> + Send {
    let mut seen = offset;
    let mut over = false;
    response
        .bytes_stream()
        .map(move |chunk| {
            let chunk = chunk.map_err(|error| failure(&url, &error))?;
            seen += chunk.len() as u64;
            if seen > limit { Err(Error::TooLarge { host: host(&url), limit }) } else { Ok(chunk) }
        })
        .take_while(move |chunk| {
            let stop = over;
            over = chunk.is_err();
            std::future::ready(!stop)
        })
}

fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || name.to_ascii_lowercase().ends_with(".localhost")
}

fn host(url: &Url) -> String {
    url.host_str().unwrap_or_default().to_owned()
}

/// An address as it may stand in a message: short, without credentials and query.
fn shown(url: &str) -> String {
    let bare = url.split(['?', '#']).next().unwrap_or_default();
    let bare = match (bare.find("://"), bare.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}{}", &bare[..scheme + 3], &bare[at + 1..]),
        _ => bare.to_owned(),
    };
    let short: String = bare.chars().filter(|c| !c.is_control()).take(100).collect();
    if short.chars().count() < bare.chars().count() { format!("{short}…") } else { short }
}

/// Turns the client's error into ours; the resolver's refusal travels inside it.
fn failure(url: &Url, error: &reqwest::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(refusal) = inner.downcast_ref::<Refusal>() {
            return match *refusal {
                Refusal::Class(class) => Error::Refused { host: host(url), class },
                Refusal::NoAddress => Error::Unresolved { host: host(url) },
            };
        }
        cause = inner.source();
    }
    let what = if error.is_timeout() {
        "did not answer in time"
    } else if error.is_connect() {
        "refused the connection, or its certificate is not valid"
    } else {
        "broke off the answer"
    };
    Error::Unreachable { host: host(url), what }
}

/// Why the resolver gives no address.
#[derive(Clone, Copy, Debug, thiserror::Error)]
enum Refusal {
    #[error("an address of class {0}")]
    Class(Class),
    #[error("no address")]
    NoAddress,
}

struct Judge {
    lookup: Arc<dyn Lookup>,
    allowed: Allowed,
}

impl Resolve for Judge {
    fn resolve(&self, name: Name) -> Resolving {
        let found = self.lookup.lookup(name.as_str().to_owned());
        let allowed = self.allowed.clone();
        Box::pin(async move {
            let addresses = found.await.map_err(|_| Refusal::NoAddress)?;
            if addresses.is_empty() {
                return Err(Refusal::NoAddress.into());
            }
            // One forbidden address among several is enough: an honest name has none.
            for address in &addresses {
                allowed.check(*address).map_err(Refusal::Class)?;
            }
            let sockets: Addrs = Box::new(addresses.into_iter().map(|ip| SocketAddr::new(ip, 0)));
            Ok(sockets)
        })
    }
}
