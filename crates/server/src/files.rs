//! Hands files out: uploads and what jobs made.
//!
//! A file comes from a stranger and is served under this server's name, so nothing in it may act in that name: it is
//! never sniffed for a type, runs no script (`sandbox`), and is shown in place only when it is a picture, a sound, a
//! video or plain text.

use axum::body::Body;
use axum::response::Response;
use chrono::{DateTime, Utc};
use files::{Address, File};
use futures_util::StreamExt as _;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED,
    RANGE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use objects::{ByteStream, names};
use serde_json::{Value, json};

use crate::error::Error;
use crate::range::{self, Wanted};
use crate::{Call, auth, uploads, wire};

const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
/// No script, no form, no origin; what browsers put around a picture or a video still works.
const SANDBOX: HeaderValue = HeaderValue::from_static(
    "sandbox; default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'",
);
/// How long a copy may be kept without asking: a file never changes under its address, but it may be deleted.
const FRESH_SECONDS: i64 = 300;
/// Pieces read ahead of the connection.
const READ_AHEAD: usize = 2;

/// `GET` and `HEAD` of a file.
pub(crate) async fn file(call: &Call<'_>, method: &Method, address: &Address) -> Result<Response, Error> {
    let file = call.files().find(address).await?.ok_or(Error::NoFile)?;
    check_reader(call, &file).await?;
    let header = |name| call.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    if range::is_known(header(IF_NONE_MATCH), header(IF_MODIFIED_SINCE), &file.etag, file.modified) {
        return Ok(answer(
            &file,
            StatusCode::NOT_MODIFIED,
            None,
            Body::empty(),
            call.app.options.clock.now(),
        ));
    }
    let asked = header(RANGE).filter(|_| range::still_holds(header(IF_RANGE), &file.etag, file.modified));
    let (status, part) = match range::wanted(asked, file.bytes) {
        Wanted::Whole => (StatusCode::OK, 0..file.bytes),
        Wanted::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        Wanted::Beyond => return Ok(beyond(&file)),
    };
    let body = if *method == Method::HEAD || part.is_empty() {
        Body::empty()
    } else {
        let mut bytes = call.files().read(&file, part.clone());
        // The first piece is read before anything is promised.
        let first = bytes.next().await.transpose()?;
        Body::from_stream(ahead(first, bytes))
    };
    Ok(answer(&file, status, Some(part), body, call.app.options.clock.now()))
}

/// Reads on while the connection sends: the disk and the network work at the same time.
fn ahead(
    first: Option<bytes::Bytes>,
    mut rest: ByteStream,
) -> impl futures_util::Stream<Item = Result<bytes::Bytes, objects::Error>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(READ_AHEAD);
    tokio::spawn(async move {
        if let Some(first) = first
            && sender.send(Ok(first)).await.is_err()
        {
            return;
        }
        while let Some(piece) = rest.next().await {
            let failed = piece.is_err();
            if sender.send(piece).await.is_err() || failed {
                return;
            }
        }
    });
    futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    })
}

fn answer(
    file: &File,
    status: StatusCode,
    part: Option<std::ops::Range<u64>>,
    body: Body,
    now: DateTime<Utc>,
) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let mut put = |name: HeaderName, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    };
    put(ETAG, format!("\"{}\"", file.etag));
    put(LAST_MODIFIED, httpdate::fmt_http_date(file.modified.into()));
    let left = file.expires_at.map_or(FRESH_SECONDS, |at| (at - now).num_seconds().clamp(0, FRESH_SECONDS));
    let visibility = if file.acl.is_some() { "private" } else { "public" };
    put(CACHE_CONTROL, format!("{visibility}, max-age={left}"));
    if let Some(part) = part {
        let content_type = uploads::media_type(file.content_type.as_deref().unwrap_or_default());
        put(CONTENT_DISPOSITION, disposition(&content_type, file.address.name()));
        put(CONTENT_TYPE, content_type);
        put(CONTENT_LENGTH, (part.end - part.start).to_string());
        if status == StatusCode::PARTIAL_CONTENT {
            put(CONTENT_RANGE, format!("bytes {}-{}/{}", part.start, part.end - 1, file.bytes));
        }
    }
    harmless(headers);
    response
}

fn harmless(headers: &mut HeaderMap) {
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, SANDBOX);
    headers.insert(RESOURCE_POLICY, HeaderValue::from_static("cross-origin"));
}

fn beyond(file: &File) -> Response {
    let mut response =
        wire::json(StatusCode::RANGE_NOT_SATISFIABLE, &json!({"detail": "Range not satisfiable"}));
    if let Ok(value) = HeaderValue::from_str(&format!("bytes */{}", file.bytes)) {
        response.headers_mut().insert(CONTENT_RANGE, value);
    }
    harmless(response.headers_mut());
    response
}

/// Shown in place, or saved. The name is given in plain ASCII for old programs and in UTF-8 for the others.
fn disposition(content_type: &str, name: &str) -> String {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let shown = match essence.split_once('/') {
        Some(("image", subtype)) => !subtype.contains("svg"),
        Some(("video" | "audio", _)) => true,
        _ => essence == "text/plain" || essence == "application/json",
    };
    let plain: String =
        name.chars().map(|c| if c.is_ascii() && !"\"\\".contains(c) { c } else { '_' }).collect();
    let kind = if shown { "inline" } else { "attachment" };
    format!("{kind}; filename=\"{plain}\"; filename*=UTF-8''{}", names::encode_segment(name))
}

/// Lets the reader in, by the owner's wish: `{"default": "allow|forbid|hide", "rules": [{"user", "decision"}]}`. Users
/// are known by the id of their key; an owner always reads what is theirs.
async fn check_reader(call: &Call<'_>, file: &File) -> Result<(), Error> {
    let Some(acl) = &file.acl else { return Ok(()) };
    let restricted = |decision: &Value| decision != "allow";
    let rules = acl.get("rules").and_then(Value::as_array);
    let any = acl.get("default").is_some_and(restricted)
        || rules.is_some_and(|rules| rules.iter().filter_map(|rule| rule.get("decision")).any(restricted));
    if !any {
        return Ok(());
    }
    let reader = auth::shown_key(call.app, call.headers).await?;
    match decision(acl, reader.as_deref(), file.key_id.as_deref()) {
        Decision::Allow => Ok(()),
        Decision::Forbid => Err(Error::HiddenFile),
        Decision::Hide => Err(Error::NoFile),
    }
}

/// What an owner says about one reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    Allow,
    Forbid,
    Hide,
}

/// The rule for this reader, else the default. A word without meaning forbids.
pub(crate) fn decision(acl: &Value, reader: Option<&str>, owner: Option<&str>) -> Decision {
    if reader.is_some() && reader == owner {
        return Decision::Allow;
    }
    let rules = acl.get("rules").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let names = |rule: &Value, reader: &str| rule.get("user").and_then(Value::as_str) == Some(reader);
    let rule = reader.and_then(|reader| rules.iter().find(|rule| names(rule, reader)));
    let word = rule.and_then(|rule| rule.get("decision")).or_else(|| acl.get("default"));
    match word.map(|word| word.as_str().unwrap_or_default()) {
        None | Some("allow") => Decision::Allow,
        Some("hide") => Decision::Hide,
        Some(_) => Decision::Forbid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_harmless_types_are_shown_in_place() {
        for (content_type, kind) in [
            ("video/mp4", "inline"),
            ("image/png", "inline"),
            ("audio/wav", "inline"),
            ("text/plain; charset=utf-8", "inline"),
            ("application/json", "inline"),
            ("image/svg+xml", "attachment"),
            ("text/html", "attachment"),
            ("TEXT/HTML", "attachment"),
            ("application/pdf", "attachment"),
            ("application/octet-stream", "attachment"),
        ] {
            assert!(disposition(content_type, "a").starts_with(kind), "{content_type}");
        }
        assert_eq!(
            disposition("application/zip", "Läuf \"1\".zip"),
            "attachment; filename=\"L_uf _1_.zip\"; filename*=UTF-8''L%C3%A4uf%20%221%22.zip"
        );
    }

    #[test]
    fn an_owner_decides_who_reads() {
        let acl = json!({ "default": "forbid", "rules": [
            { "user": "friend", "decision": "allow" }, { "user": "foe", "decision": "hide" }, { "user": "odd", "decision": 7 }] });
        let decide = |reader| decision(&acl, reader, Some("owner"));
        assert_eq!(decide(Some("owner")), Decision::Allow);
        assert_eq!(decide(Some("friend")), Decision::Allow);
        assert_eq!(decide(Some("foe")), Decision::Hide);
        assert_eq!(decide(Some("odd")), Decision::Forbid);
        assert_eq!(decide(Some("stranger")), Decision::Forbid);
        assert_eq!(decide(None), Decision::Forbid);
        assert_eq!(decision(&json!({}), None, None), Decision::Allow);
        assert_eq!(decision(&json!({ "default": "hide" }), None, None), Decision::Hide);
    }

    proptest! {
        #[test]
        fn any_name_makes_a_header(name in ".*") {
            let name = names::sanitise(&name);
            prop_assert!(HeaderValue::from_str(&disposition("a/b", &name)).is_ok(), "{name}");
        }
    }
}
