//! Which question a request asks: method, path, host and headers in, one [`Target`] out.
//!
//! One listener plays all of fal's hosts. [`resolve`] is pure: it looks, in this order, at the proxy
//! route, the Host header, the path's prefix and the bare path, finds the service that the official
//! client meant, and matches the rest of the path as that service would. It knows nothing of jobs,
//! keys or modes: whether an application or a path exists is asked later, in one place.
//!
//! Source: fal's queue and run hosts as `@fal-ai/client` 1.10.1 and `fal-client` 1.0.3 call them.

use std::borrow::Cow;

use http::{HeaderMap, Method};
use uuid::Uuid;

/// The route on which `x-fal-target-url` is honoured, and nowhere else: fal's own server-side proxy
/// forwards every `x-fal-*` header on ordinary requests too.
pub const PROXY_ROUTE: &str = "/api/fal/proxy";
/// Names the original URL of a request to [`PROXY_ROUTE`].
pub const PROXY_HEADER: &str = "x-fal-target-url";

/// One of the hosts of fal that this listener plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// `queue.fal.run`
    Queue,
    /// `fal.run`
    Run,
    /// `rest.fal.ai`
    Rest,
    /// `v3.fal.media`
    Cdn,
    /// `api.fal.ai`
    Platform,
    /// `fal.ai`, for the OpenAPI documents
    Site,
}

/// The service behind one of fal's host names, without port.
#[must_use]
pub fn fal_host(host: &str) -> Option<Service> {
    const HOSTS: [(&str, Service); 11] = [
        ("queue.fal.run", Service::Queue),
        ("fal.run", Service::Run),
        ("rest.fal.ai", Service::Rest),
        ("rest.alpha.fal.ai", Service::Rest),
        ("v3.fal.media", Service::Cdn),
        ("v3b.fal.media", Service::Cdn),
        ("api.fal.ai", Service::Platform),
        ("fal.ai", Service::Site),
        ("falrun.com", Service::Run),
        ("queue.falrun.com", Service::Queue),
        ("ws.fal.run", Service::Run),
    ];
    HOSTS.iter().find(|(name, _)| name.eq_ignore_ascii_case(host)).map(|&(_, service)| service)
}

/// The application part of an endpoint id, and the path behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `fal-ai`; a namespace (`workflows`, `comfy`) stays in front: `workflows/someone`.
    pub owner: String,
    /// `ltx23-trainer-v2`
    pub alias: String,
    /// `av2av`, `ic-lora/av2av`, or empty.
    pub path: String,
}

/// What is asked about a request that was submitted before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// Where it stands.
    Status,
    /// Where it stands, as server-sent events until it is final.
    Stream,
    /// What came out.
    Result,
    /// That it should stop.
    Cancel,
}

/// An upload that was begun, as the addresses handed out for it name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The upload; `None` when the segment is no UUID, so no upload can have it.
    pub upload: Option<Uuid>,
    /// The secret, where it is part of the path (Python). Otherwise it is in the query (JS).
    pub secret: Option<String>,
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Puts a job into the queue.
    Submit(Endpoint),
    /// Runs a job and waits for it.
    Run(Endpoint),
    /// Asks about a job. The id is `None` when the segment is no UUID, so no job can have it.
    Request {
        /// The application, with the sub-path that some documents put in front of `/requests/`.
        endpoint: Endpoint,
        /// The job.
        id: Option<Uuid>,
        /// The question.
        about: About,
    },
    /// Makes a short-lived token (`rest/tokens/`).
    Token,
    /// Begins an upload whose address holds its secret (`rest/storage/upload/initiate`, `…/initiate-multipart`).
    Initiate,
    /// Makes a token for uploads (`rest/storage/auth/token`).
    UploadToken,
    /// Takes a whole file (`cdn/files/upload`).
    Upload,
    /// Begins an upload in parts (`cdn/files/upload/multipart`).
    UploadParts,
    /// Takes the bytes of an upload, or those of one part: its number as written.
    Put(Slot, Option<String>),
    /// Ends an upload in parts.
    Complete(Slot),
    /// Hands out a file.
    File(files::Address),
    /// The keys that webhooks are signed with.
    Jwks,
    /// The list of models.
    Models,
    /// The history of one endpoint's requests.
    History,
    /// Deletes a finished request's input, output and files.
    DeletePayloads(Option<Uuid>),
    /// The addresses that webhooks come from.
    Meta,
    /// The OpenAPI document of one endpoint.
    OpenApi,
    /// Is the process alive?
    Health,
    /// Can it serve?
    Ready,
    /// Prometheus metrics.
    Metrics,
    /// A preflight, on any route.
    Preflight,
}

impl Target {
    /// A short constant word for logs and metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Submit(_) => "submit",
            Self::Run(_) => "run",
            Self::Request { about: About::Status, .. } => "status",
            Self::Request { about: About::Stream, .. } => "stream",
            Self::Request { about: About::Result, .. } => "result",
            Self::Request { about: About::Cancel, .. } => "cancel",
            Self::Token => "token",
            Self::Initiate => "initiate",
            Self::UploadToken => "upload_token",
            Self::Upload => "upload",
            Self::UploadParts => "upload_parts",
            Self::Put(..) => "put",
            Self::Complete(_) => "complete",
            Self::File(_) => "file",
            Self::Jwks => "jwks",
            Self::Models => "models",
            Self::History => "history",
            Self::DeletePayloads(_) => "delete_payloads",
            Self::Meta => "meta",
            Self::OpenApi => "openapi",
            Self::Health => "health",
            Self::Ready => "ready",
            Self::Metrics => "metrics",
            Self::Preflight => "preflight",
        }
    }
}

/// A request that names nothing here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What is wrong with it.
    pub why: Refusal,
    /// Whether it was sent to the platform API, whose errors have another shape.
    pub platform: bool,
}

/// Why a request names nothing here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The proxy route without a usable target.
    InvalidTarget,
    /// No such path. Holds the path as the service saw it.
    NotFound(String),
    /// The path exists, the method does not. Holds the value of `Allow`.
    MethodNotAllowed(&'static str),
}

/// A resolved request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route<'a> {
    /// What is asked.
    pub target: Target,
    /// The query string of the URL that the client meant (the proxy target's, on the proxy route).
    pub query: Cow<'a, str>,
    /// Whether the answer is in the platform API's error shape.
    pub platform: bool,
}

/// Where a request was sent: the service, the path it sees, and the query.
struct Place<'a> {
    /// `None` for a bare path, which is decided by its first segment.
    service: Option<Service>,
    path: Cow<'a, str>,
    query: Cow<'a, str>,
}

/// Finds out what a request asks for.
///
/// `path` and `query` are those of the request line, `host` is the Host header with or without port.
///
/// # Errors
/// What to refuse with 400, 404 or 405. Preflights are never refused.
pub fn resolve<'a>(
    method: &Method,
    path: &'a str,
    query: &'a str,
    host: Option<&str>,
    headers: &HeaderMap,
) -> Result<Route<'a>, Refused> {
    if method == Method::OPTIONS {
        return Ok(Route { target: Target::Preflight, query: Cow::Borrowed(query), platform: false });
    }
    let place = locate(path, query, host, headers).map_err(|why| Refused { why, platform: false })?;
    let path = place.path.as_ref();
    let (target, platform) = match place.service.map_or_else(|| bare(path), Bare::Service) {
        Bare::Own(target) => (get_only(method, target), false),
        Bare::Service(Service::Queue) => (queue(method, path), false),
        Bare::Service(Service::Run) => (run(method, path), false),
        Bare::Service(Service::Rest) => (rest(method, path), false),
        Bare::Service(Service::Cdn) => (cdn(method, path), false),
        Bare::Service(Service::Platform) => (platform_api(method, path), true),
        Bare::Service(Service::Site) => (site(method, path), false),
    };
    match target {
        Ok(target) => Ok(Route { target, query: place.query, platform }),
        Err(why) => Err(Refused { why, platform }),
    }
}

fn locate<'a>(
    path: &'a str,
    query: &'a str,
    host: Option<&str>,
    headers: &HeaderMap,
) -> Result<Place<'a>, Refusal> {
    if path == PROXY_ROUTE || path.strip_suffix('/') == Some(PROXY_ROUTE) {
        return proxied(headers).ok_or(Refusal::InvalidTarget);
    }
    if let Some(service) = host.map(without_port).and_then(fal_host) {
        return Ok(Place { service: Some(service), path: Cow::Borrowed(path), query: Cow::Borrowed(query) });
    }
    let (service, path) = match first_segment(path) {
        ("queue", rest) => (Some(Service::Queue), rest),
        ("run", rest) => (Some(Service::Run), rest),
        ("rest", rest) => (Some(Service::Rest), rest),
        ("cdn", rest) => (Some(Service::Cdn), rest),
        _ => (None, path),
    };
    Ok(Place { service, path: Cow::Borrowed(path), query: Cow::Borrowed(query) })
}

/// The place that `x-fal-target-url` names, if it is a URL of one of fal's hosts.
fn proxied(headers: &HeaderMap) -> Option<Place<'static>> {
    let target = url::Url::parse(headers.get(PROXY_HEADER)?.to_str().ok()?).ok()?;
    if !matches!(target.scheme(), "http" | "https") {
        return None;
    }
    let service = fal_host(target.host_str()?)?;
    Some(Place {
        service: Some(service),
        path: Cow::Owned(target.path().to_owned()),
        query: Cow::Owned(target.query().unwrap_or_default().to_owned()),
    })
}

/// The name in a Host header. An IPv6 literal keeps its brackets, which no name of fal's has.
fn without_port(host: &str) -> &str {
    host.rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
        .map_or(host, |(name, _)| name)
}

/// Splits `/queue/a/b` into `queue` and `/a/b`; the rest of `/queue` is `/`.
fn first_segment(path: &str) -> (&str, &str) {
    let path = path.strip_prefix('/').unwrap_or(path);
    match path.find('/') {
        Some(at) => (&path[..at], &path[at..]),
        None => (path, "/"),
    }
}

enum Bare {
    Service(Service),
    Own(Target),
}

/// What a path without prefix belongs to.
fn bare(path: &str) -> Bare {
    match path {
        "/health" => return Bare::Own(Target::Health),
        "/ready" => return Bare::Own(Target::Ready),
        "/metrics" => return Bare::Own(Target::Metrics),
        _ => {}
    }
    Bare::Service(match first_segment(path).0 {
        ".well-known" | "storage" | "tokens" => Service::Rest,
        "files" => Service::Cdn,
        "v1" => Service::Platform,
        "api" => Service::Site,
        // The safe reading: a submit answers at once, a run would not.
        _ => Service::Queue,
    })
}

fn is_get(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

fn get_only(method: &Method, target: Target) -> Result<Target, Refusal> {
    if is_get(method) { Ok(target) } else { Err(Refusal::MethodNotAllowed("GET, HEAD, OPTIONS")) }
}

fn post_only(method: &Method, target: Target) -> Result<Target, Refusal> {
    if method == Method::POST { Ok(target) } else { Err(Refusal::MethodNotAllowed("POST, OPTIONS")) }
}

/// Splits `/fal-ai/ltx23-trainer-v2/ic-lora/av2av` into its endpoint. One trailing slash is forgiven.
fn endpoint(path: &str) -> Option<Endpoint> {
    let path = path.strip_prefix('/')?;
    let path = path.strip_suffix('/').unwrap_or(path);
    let (owner, rest) = path.split_once('/')?;
    let (owner, rest) = match owner {
        "workflows" | "comfy" => {
            let (name, rest) = rest.split_once('/')?;
            (&path[..owner.len() + 1 + name.len()], rest)
        }
        _ => (owner, rest),
    };
    let (alias, path) = rest.split_once('/').unwrap_or((rest, ""));
    if owner.is_empty() || owner.ends_with('/') || alias.is_empty() {
        return None;
    }
    Some(Endpoint { owner: owner.to_owned(), alias: alias.to_owned(), path: path.to_owned() })
}

fn queue(method: &Method, path: &str) -> Result<Target, Refusal> {
    let not_found = || Refusal::NotFound(path.to_owned());
    let mut endpoint = endpoint(path).ok_or_else(not_found)?;
    let Some((sub_path, question)) = split_requests(&endpoint.path) else {
        return post_only(method, Target::Submit(endpoint));
    };
    let (id, question) = question.split_once('/').unwrap_or((question, ""));
    let about = match question {
        "" | "response" => About::Result,
        "status" => About::Status,
        "status/stream" => About::Stream,
        "cancel" => About::Cancel,
        _ => return Err(not_found()),
    };
    let allowed = if about == About::Cancel { method == Method::PUT } else { is_get(method) };
    if !allowed {
        return Err(Refusal::MethodNotAllowed(if about == About::Cancel {
            "PUT, OPTIONS"
        } else {
            "GET, HEAD, OPTIONS"
        }));
    }
    let id = request_id(id);
    endpoint.path = sub_path.to_owned();
    Ok(Target::Request { endpoint, id, about })
}

/// Splits `av2av/requests/ID/status` into `av2av` and `ID/status`.
fn split_requests(path: &str) -> Option<(&str, &str)> {
    if let Some(question) = path.strip_prefix("requests/") {
        return Some(("", question));
    }
    path.split_once("/requests/")
}

/// Only the hyphenated form is an id that was ever handed out.
fn request_id(segment: &str) -> Option<Uuid> {
    (segment.len() == 36).then(|| Uuid::try_parse(segment).ok()).flatten()
}

fn run(method: &Method, path: &str) -> Result<Target, Refusal> {
    let endpoint = endpoint(path).ok_or_else(|| Refusal::NotFound(path.to_owned()))?;
    post_only(method, Target::Run(endpoint))
}

fn rest(method: &Method, path: &str) -> Result<Target, Refusal> {
    match path {
        "/tokens" | "/tokens/" => post_only(method, Target::Token),
        "/storage/upload/initiate" | "/storage/upload/initiate-multipart" => {
            post_only(method, Target::Initiate)
        }
        "/storage/auth/token" => post_only(method, Target::UploadToken),
        "/.well-known/jwks.json" => get_only(method, Target::Jwks),
        _ => Err(Refusal::NotFound(path.to_owned())),
    }
}

/// Files and uploads. The address of a file ends in its name, so nothing may be appended to it but the routes that
/// Python appends: `/multipart/{upload}/{number}` and `/multipart/{upload}/complete`.
fn cdn(method: &Method, path: &str) -> Result<Target, Refusal> {
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    match segments[..] {
        ["files", "upload"] => post_only(method, Target::Upload),
        ["files", "upload", "multipart"] => post_only(method, Target::UploadParts),
        ["files", "put", upload] => {
            put_only(method, Target::Put(Slot { upload: request_id(upload), secret: None }, None))
        }
        ["files", "put", upload, last] => {
            part(method, Slot { upload: request_id(upload), secret: None }, last)
        }
        ["files", "b", upload, _, "multipart", secret, last] => {
            part(method, Slot { upload: request_id(upload), secret: Some(secret.to_owned()) }, last)
        }
        _ => match files::Address::from_path(path) {
            Some(address) => get_only(method, Target::File(address)),
            None => Err(Refusal::NotFound(path.to_owned())),
        },
    }
}

/// The number of a part, or the word that ends them.
fn part(method: &Method, slot: Slot, last: &str) -> Result<Target, Refusal> {
    if last == "complete" {
        return post_only(method, Target::Complete(slot));
    }
    put_only(method, Target::Put(slot, Some(last.to_owned())))
}

/// fal's own runners post their parts.
fn put_only(method: &Method, target: Target) -> Result<Target, Refusal> {
    let allowed = method == Method::PUT || method == Method::POST;
    if allowed { Ok(target) } else { Err(Refusal::MethodNotAllowed("PUT, POST, OPTIONS")) }
}

fn platform_api(method: &Method, path: &str) -> Result<Target, Refusal> {
    match path.strip_suffix('/').unwrap_or(path) {
        "/v1/models" => get_only(method, Target::Models),
        "/v1/models/requests/by-endpoint" => get_only(method, Target::History),
        "/v1/meta" => get_only(method, Target::Meta),
        path => {
            let id =
                path.strip_prefix("/v1/models/requests/").and_then(|rest| rest.strip_suffix("/payloads"));
            match id {
                Some(id) if method == Method::DELETE => Ok(Target::DeletePayloads(request_id(id))),
                Some(_) => Err(Refusal::MethodNotAllowed("DELETE, OPTIONS")),
                None => Err(Refusal::NotFound(path.to_owned())),
            }
        }
    }
}

fn site(method: &Method, path: &str) -> Result<Target, Refusal> {
    match path {
        "/api/openapi/queue/openapi.json" => get_only(method, Target::OpenApi),
        _ => Err(Refusal::NotFound(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

    fn id() -> Option<Uuid> {
        Some(ID.parse().unwrap())
    }

    fn endpoint(path: &str) -> Endpoint {
        Endpoint { owner: "fal-ai".into(), alias: "ltx23-trainer-v2".into(), path: path.into() }
    }

    fn request(about: About) -> Target {
        Target::Request { endpoint: endpoint(""), id: id(), about }
    }

    fn resolve_at(method: &str, host: &str, path: &str, target: Option<&str>) -> Result<Target, Refusal> {
        let mut headers = HeaderMap::new();
        if let Some(target) = target {
            headers.insert(PROXY_HEADER, target.parse().unwrap());
        }
        let method: Method = method.parse().unwrap();
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        match resolve(&method, path, query, Some(host), &headers) {
            Ok(route) => Ok(route.target),
            Err(refused) => Err(refused.why),
        }
    }

    fn bare(method: &str, path: &str) -> Result<Target, Refusal> {
        resolve_at(method, "localhost:8080", &path.replace("ID", ID), None)
    }

    #[test]
    fn queue_routes() {
        let app = "/fal-ai/ltx23-trainer-v2";
        for (method, path, target) in [
            ("POST", "/av2av", Target::Submit(endpoint("av2av"))),
            ("POST", "/av2av/", Target::Submit(endpoint("av2av"))),
            ("POST", "/ic-lora/av2av", Target::Submit(endpoint("ic-lora/av2av"))),
            ("POST", "", Target::Submit(endpoint(""))),
            ("GET", "/requests/ID/status", request(About::Status)),
            ("HEAD", "/requests/ID/status", request(About::Status)),
            ("GET", "/requests/ID/status/", request(About::Status)),
            ("GET", "/requests/ID/status/stream", request(About::Stream)),
            ("GET", "/requests/ID", request(About::Result)),
            ("GET", "/requests/ID/response", request(About::Result)),
            ("PUT", "/requests/ID/cancel", request(About::Cancel)),
        ] {
            for prefix in ["", "/queue"] {
                let path = format!("{prefix}{app}{path}");
                assert_eq!(bare(method, &path), Ok(target.clone()), "{method} {path}");
            }
        }
    }

    #[test]
    fn request_routes_may_carry_the_full_path() {
        for sub in ["av2av", "ic-lora/av2av"] {
            let expected = Target::Request { endpoint: endpoint(sub), id: id(), about: About::Status };
            assert_eq!(
                bare("GET", &format!("/queue/fal-ai/ltx23-trainer-v2/{sub}/requests/ID/status")),
                Ok(expected)
            );
        }
    }

    #[test]
    fn an_id_that_is_no_uuid_is_nobodys() {
        for bad in ["1", "x", "01890a5dac96774bbcceb302099a8057", "{01890a5d-ac96-774b-bcce-b302099a8057}"] {
            let got = bare("GET", &format!("/queue/fal-ai/ltx23-trainer-v2/requests/{bad}/status"));
            assert!(matches!(got, Ok(Target::Request { id: None, .. })), "{bad}: {got:?}");
        }
    }

    #[test]
    fn the_run_host_runs_and_the_queue_submits() {
        let path = "/fal-ai/ltx23-trainer-v2/av2av";
        let run = Ok(Target::Run(endpoint("av2av")));
        let submit = Ok(Target::Submit(endpoint("av2av")));
        assert_eq!(bare("POST", &format!("/run{path}")), run);
        assert_eq!(bare("POST", path), submit);
        for host in ["fal.run", "fal.run:443", "FAL.RUN", "falrun.com"] {
            assert_eq!(resolve_at("POST", host, path, None), run, "{host}");
        }
        for host in ["queue.fal.run", "queue.fal.run:8080", "queue.falrun.com"] {
            assert_eq!(resolve_at("POST", host, path, None), submit, "{host}");
        }
    }

    #[test]
    fn hosts_that_only_look_like_fals_are_ours() {
        for host in [
            "evilfal.run",
            "fal.run.evil.com",
            "queue.fal.run.",
            "fal.run@evil.com",
            "[::1]:80",
            "",
            "x.fal.run",
        ] {
            let got = resolve_at("POST", host, "/run/fal-ai/ltx23-trainer-v2/av2av", None);
            assert_eq!(got, Ok(Target::Run(endpoint("av2av"))), "{host}");
        }
    }

    #[test]
    fn under_fals_names_prefixes_are_ordinary_segments() {
        let got = resolve_at("POST", "queue.fal.run", "/run/fal-ai/ltx23-trainer-v2/av2av", None);
        let expected =
            Endpoint { owner: "run".into(), alias: "fal-ai".into(), path: "ltx23-trainer-v2/av2av".into() };
        assert_eq!(got, Ok(Target::Submit(expected)));
    }

    #[test]
    fn the_proxy_route_goes_by_its_header() {
        let submit = Ok(Target::Submit(endpoint("av2av")));
        for (method, url, target) in [
            ("POST", "https://queue.fal.run/fal-ai/ltx23-trainer-v2/av2av?fal_webhook=x", submit.clone()),
            ("POST", "http://queue.fal.run/fal-ai/ltx23-trainer-v2/av2av", submit.clone()),
            ("POST", "https://queue.fal.run:443/fal-ai/ltx23-trainer-v2/av2av", submit),
            ("POST", "https://fal.run/fal-ai/ltx23-trainer-v2/av2av", Ok(Target::Run(endpoint("av2av")))),
            ("POST", "https://rest.fal.ai/tokens/", Ok(Target::Token)),
            ("POST", "https://rest.alpha.fal.ai/tokens/", Ok(Target::Token)),
            ("GET", "https://api.fal.ai/v1/models", Ok(Target::Models)),
        ] {
            for path in ["/api/fal/proxy", "/api/fal/proxy/", "/api/fal/proxy?x=1"] {
                assert_eq!(resolve_at(method, "localhost", path, Some(url)), target, "{url}");
            }
            // Also when the server itself is reached under one of fal's names.
            assert_eq!(resolve_at(method, "queue.fal.run", "/api/fal/proxy", Some(url)), target, "{url}");
        }
    }

    #[test]
    fn the_proxy_route_keeps_the_targets_query() {
        let mut headers = HeaderMap::new();
        let url = "https://queue.fal.run/fal-ai/ltx23-trainer-v2/av2av?fal_webhook=https%3A%2F%2Fe.com";
        headers.insert(PROXY_HEADER, url.parse().unwrap());
        let route =
            resolve(&Method::POST, PROXY_ROUTE, "fal_webhook=wrong", Some("localhost"), &headers).unwrap();
        assert_eq!(route.query, "fal_webhook=https%3A%2F%2Fe.com");
    }

    #[test]
    fn the_proxy_route_refuses_anything_but_fals_hosts() {
        for url in [
            None,
            Some(""),
            Some("queue.fal.run/fal-ai/x"),
            Some("https://evil.com/fal-ai/x"),
            Some("https://queue.fal.run.evil.com/fal-ai/x"),
            Some("https://queue.fal.run@evil.com/fal-ai/x"),
            Some("ftp://queue.fal.run/fal-ai/x"),
            Some("file:///etc/passwd"),
            Some("https://"),
        ] {
            assert_eq!(
                resolve_at("POST", "localhost", "/api/fal/proxy", url),
                Err(Refusal::InvalidTarget),
                "{url:?}"
            );
        }
    }

    #[test]
    fn the_target_header_means_nothing_elsewhere() {
        let got = resolve_at(
            "GET",
            "localhost",
            "/health",
            Some("https://queue.fal.run/fal-ai/ltx23-trainer-v2/av2av"),
        );
        assert_eq!(got, Ok(Target::Health));
    }

    #[test]
    fn bare_paths_find_their_service() {
        for (method, path, target) in [
            ("POST", "/tokens/", Target::Token),
            ("POST", "/rest/tokens/", Target::Token),
            ("POST", "/rest/tokens", Target::Token),
            ("GET", "/v1/models", Target::Models),
            ("GET", "/v1/models/requests/by-endpoint", Target::History),
            ("DELETE", "/v1/models/requests/ID/payloads", Target::DeletePayloads(id())),
            ("DELETE", "/v1/models/requests/x/payloads", Target::DeletePayloads(None)),
            ("GET", "/v1/meta", Target::Meta),
            ("GET", "/api/openapi/queue/openapi.json", Target::OpenApi),
            ("GET", "/health", Target::Health),
            ("GET", "/ready", Target::Ready),
            ("GET", "/metrics", Target::Metrics),
        ] {
            assert_eq!(bare(method, path), Ok(target), "{method} {path}");
        }
    }

    #[test]
    fn storage_routes() {
        let slot = |secret: Option<&str>| Slot { upload: id(), secret: secret.map(str::to_owned) };
        for (method, path, target) in [
            ("POST", "/rest/storage/upload/initiate", Target::Initiate),
            ("POST", "/storage/upload/initiate-multipart", Target::Initiate),
            ("POST", "/rest/storage/auth/token", Target::UploadToken),
            ("POST", "/cdn/files/upload", Target::Upload),
            ("POST", "/files/upload/multipart", Target::UploadParts),
            ("PUT", "/cdn/files/put/ID", Target::Put(slot(None), None)),
            ("PUT", "/cdn/files/put/ID/3", Target::Put(slot(None), Some("3".into()))),
            ("POST", "/cdn/files/put/ID/3", Target::Put(slot(None), Some("3".into()))),
            ("POST", "/cdn/files/put/ID/complete", Target::Complete(slot(None))),
            (
                "PUT",
                "/cdn/files/b/ID/a.zip/multipart/s3cr3t/7",
                Target::Put(slot(Some("s3cr3t")), Some("7".into())),
            ),
            ("POST", "/files/b/ID/a.zip/multipart/s3cr3t/complete", Target::Complete(slot(Some("s3cr3t")))),
            (
                "GET",
                "/cdn/files/b/ID/a%20b.zip",
                Target::File(files::Address::Upload { id: id().unwrap(), name: "a b.zip".into() }),
            ),
            (
                "HEAD",
                "/files/jobs/ID/2/x.safetensors",
                Target::File(files::Address::output(id().unwrap(), 2, "x.safetensors")),
            ),
            ("GET", "/rest/.well-known/jwks.json", Target::Jwks),
            ("GET", "/.well-known/jwks.json", Target::Jwks),
        ] {
            assert_eq!(bare(method, path), Ok(target), "{method} {path}");
        }
        assert_eq!(resolve_at("POST", "v3.fal.media", "/files/upload", None), Ok(Target::Upload), "by host");
        assert_eq!(bare("GET", "/cdn/files/put/ID"), Err(Refusal::MethodNotAllowed("PUT, POST, OPTIONS")));
        assert_eq!(
            bare("PUT", "/cdn/files/put/ID/complete"),
            Err(Refusal::MethodNotAllowed("POST, OPTIONS"))
        );
    }

    #[test]
    fn unknown_paths_are_named_as_the_service_sees_them() {
        for (path, seen) in [
            ("/", "/"),
            ("/nothing", "/nothing"),
            ("/queue", "/"),
            ("/queue/fal-ai", "/fal-ai"),
            ("/rest/storage/nothing", "/storage/nothing"),
            ("/storage/nothing", "/storage/nothing"),
            ("/cdn/files/b/x", "/files/b/x"),
            ("/files/b/x", "/files/b/x"),
            ("/files/b/x/clips.zip", "/files/b/x/clips.zip"),
            ("/cdn/files", "/files"),
            ("/v1/nothing", "/v1/nothing"),
            ("/api/nothing", "/api/nothing"),
            (
                "/queue/fal-ai/ltx23-trainer-v2/requests/ID/nothing",
                "/fal-ai/ltx23-trainer-v2/requests/ID/nothing",
            ),
        ] {
            assert_eq!(bare("GET", path), Err(Refusal::NotFound(seen.replace("ID", ID))), "{path}");
        }
    }

    #[test]
    fn a_wrong_method_is_told_the_right_ones() {
        for (method, path, allow) in [
            ("GET", "/queue/fal-ai/ltx23-trainer-v2/av2av", "POST, OPTIONS"),
            ("PUT", "/run/fal-ai/ltx23-trainer-v2/av2av", "POST, OPTIONS"),
            ("POST", "/queue/fal-ai/ltx23-trainer-v2/requests/ID/status", "GET, HEAD, OPTIONS"),
            ("DELETE", "/queue/fal-ai/ltx23-trainer-v2/requests/ID", "GET, HEAD, OPTIONS"),
            ("GET", "/queue/fal-ai/ltx23-trainer-v2/requests/ID/cancel", "PUT, OPTIONS"),
            ("GET", "/tokens/", "POST, OPTIONS"),
            ("POST", "/health", "GET, HEAD, OPTIONS"),
            ("POST", "/v1/models", "GET, HEAD, OPTIONS"),
            ("GET", "/v1/models/requests/ID/payloads", "DELETE, OPTIONS"),
        ] {
            assert_eq!(bare(method, path), Err(Refusal::MethodNotAllowed(allow)), "{method} {path}");
        }
    }

    #[test]
    fn preflights_are_answered_everywhere() {
        for path in ["/", "/nothing", "/api/fal/proxy", "/queue/fal-ai/x/y", "/rest/tokens/", "/v1/nothing"] {
            assert_eq!(bare("OPTIONS", path), Ok(Target::Preflight), "{path}");
        }
    }

    #[test]
    fn namespaced_ids_shift_by_one() {
        let expected = Endpoint { owner: "workflows/me".into(), alias: "flow".into(), path: "a/b".into() };
        assert_eq!(bare("POST", "/queue/workflows/me/flow/a/b"), Ok(Target::Submit(expected)));
        assert!(matches!(bare("POST", "/queue/comfy/me"), Err(Refusal::NotFound(_))));
    }

    #[test]
    fn only_the_platform_has_its_own_error_shape() {
        let shape =
            |path: &str| resolve(&Method::PATCH, path, "", None, &HeaderMap::new()).unwrap_err().platform;
        assert!(shape("/v1/nothing") && shape("/v1/models"));
        assert!(!shape("/health") && !shape("/api/nothing") && !shape("/queue/v1/nothing/x/requests/1"));
    }

    proptest! {
        #[test]
        fn any_request_line_resolves_or_is_refused(
            method in "[A-Z]{1,7}", host in "\\PC{0,20}", query in "\\PC{0,20}",
            segments in proptest::collection::vec(prop_oneof![
                Just("queue".to_owned()), Just("run".to_owned()), Just("rest".to_owned()), Just("fal-ai".to_owned()),
                Just("ltx23-trainer-v2".to_owned()), Just("requests".to_owned()), Just("status".to_owned()),
                Just("workflows".to_owned()), Just(ID.to_owned()), Just(String::new()), "[ -~é]{0,8}"], 0..8),
            target in proptest::option::of("\\PC{0,60}"),
        ) {
            let mut headers = HeaderMap::new();
            if let Some(value) = target.and_then(|target| http::HeaderValue::from_str(&target).ok()) {
                headers.insert(PROXY_HEADER, value);
            }
            let path = format!("/{}", segments.join("/"));
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            if let Ok(Route { target: Target::Submit(e) | Target::Run(e) | Target::Request { endpoint: e, .. }, .. }) =
                resolve(&method, &path, &query, Some(&host), &headers)
            {
                prop_assert!(!e.owner.is_empty() && !e.alias.is_empty() && !e.alias.contains('/'));
            }
            let _ = resolve(&method, PROXY_ROUTE, &query, Some(&host), &headers);
        }
    }
}
