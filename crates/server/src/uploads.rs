//! Takes files in, the way each official client brings them.
//!
//! | client | begins with | bytes | ends with |
//! |---|---|---|---|
//! | JS up to 90 MiB, Python's fallback | `rest/storage/upload/initiate` | `PUT upload_url` | |
//! | JS above | `rest/storage/upload/initiate-multipart` | `PUT {path}/{n}{query}` | `POST {path}/complete{query}` |
//! | Python up to 100 MiB | `rest/storage/auth/token` | `POST cdn/files/upload` | |
//! | Python above | and `POST cdn/files/upload/multipart` | `PUT {access_url}/multipart/{id}/{n}` | `POST …/complete` |
//!
//! All end in the same two things: an object per body, and a row that names it. What answered 2xx is durable.
//!
//! Source: `@fal-ai/client` 1.10.1 and `fal-client` 1.0.3.

use axum::body::{Body, HttpBody as _};
use axum::response::Response;
use chrono::{DateTime, TimeDelta, Utc};
use files::{Address, Files, NewFile, Taken};
use http::header::{CONTENT_TYPE, ETAG};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use objects::names;
use serde_json::{Value, json};
use store::{Completed, Lifecycle, MAX_PARTS, Recorded};
use uuid::Uuid;

use crate::auth::{Claims, UPLOADS};
use crate::error::Error;
use crate::route::Slot;
use crate::{Call, body, params, wire};

/// The body of an initiation holds a name and a type.
const INITIATE_LIMIT: u64 = 64 << 10;
/// Room for the longest list of parts.
const COMPLETE_LIMIT: u64 = 4 << 20;
/// The type of a file whose client says none.
const UNKNOWN_TYPE: &str = "application/octet-stream";
const LONGEST_TYPE_BYTES: usize = 200;
/// The query parameter that carries an upload's secret.
const SECRET: &str = "secret";

const FILE_NAME: HeaderName = HeaderName::from_static("x-fal-file-name");
const LIFECYCLE: HeaderName = HeaderName::from_static("x-fal-object-lifecycle");
const LIFECYCLE_PREFERENCE: HeaderName = HeaderName::from_static("x-fal-object-lifecycle-preference");

/// `POST rest/storage/upload/initiate[-multipart]`: an address to read the file at, and one to write it to.
pub(crate) async fn initiate(call: &Call<'_>, body: &mut Body) -> Result<Response, Error> {
    let body = body::read(body, INITIATE_LIMIT).await?;
    let body: Value = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&body).map_err(|_| Error::Upload("The body is not JSON".into()))?
    };
    let text = |field: &'static str| match body.get(field) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(_) => Err(Error::Field(field, "Input should be a valid string")),
    };
    let file = new_file(call, text("file_name")?, text("content_type")?);
    let (address, secret) = begin(call, file).await?;
    let Address::Upload { id, .. } = &address else { return Err(no_upload_address()) };
    let base = call.files_url();
    Ok(wire::json(
        StatusCode::OK,
        &json!({
            "file_url": format!("{base}{address}"),
            "upload_url": format!("{base}/files/put/{id}?{SECRET}={secret}"),
        }),
    ))
}

/// `POST rest/storage/auth/token`: a token for [`upload`] and [`begin_parts`].
pub(crate) async fn token(call: &Call<'_>) -> Result<Response, Error> {
    let now = call.app.options.clock.now();
    let expires_at = now + TimeDelta::from_std(call.app.options.upload_token_lifetime).unwrap_or_default();
    let claims = Claims {
        sub: call.caller.key_id().map(str::to_owned),
        apps: vec![UPLOADS.to_owned()],
        exp: expires_at.timestamp(),
    };
    Ok(wire::json(
        StatusCode::OK,
        &json!({
            "token": claims.sign(&call.app.token_secret().await?),
            "token_type": "Bearer",
            "base_url": call.files_url(),
            "expires_at": expiry(expires_at),
        }),
    ))
}

/// With an explicit offset and without a fraction, which `datetime.fromisoformat` reads in every Python.
fn expiry(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%dT%H:%M:%S+00:00").to_string()
}

/// `POST cdn/files/upload`: the whole file in one request.
pub(crate) async fn upload(call: &Call<'_>, body: &mut Body) -> Result<Response, Error> {
    let limit = call.app.options.upload_limit;
    check_announced(body, limit)?;
    let (address, _) = begin(call, named_by_header(call)).await?;
    let Address::Upload { id, .. } = &address else { return Err(no_upload_address()) };
    let stored = match take(call, *id, body, limit).await {
        Ok(taken) => call.files().complete(*id, taken).await.map_err(Error::from),
        Err(error) => Err(error),
    };
    if let Err(error) = stored {
        // Nobody knows the address, so nobody could go on with it. Without a database it goes by its expiry.
        if let Err(error) = call.files().forget(*id).await {
            tracing::debug!(%error, "a failed upload stays until it expires");
        }
        return Err(error);
    }
    let base = call.files_url();
    Ok(wire::json(StatusCode::OK, &json!({"access_url": format!("{base}{address}")})))
}

/// `POST cdn/files/upload/multipart`: the parts follow, at addresses made from this answer.
pub(crate) async fn begin_parts(call: &Call<'_>) -> Result<Response, Error> {
    let (address, secret) = begin(call, named_by_header(call)).await?;
    let base = call.files_url();
    Ok(wire::json(StatusCode::OK, &json!({"access_url": format!("{base}{address}"), "uploadId": secret})))
}

/// `PUT upload_url`: the whole file, or with a number one part of it.
pub(crate) async fn put(
    call: &Call<'_>,
    slot: &Slot,
    number: Option<&str>,
    body: &mut Body,
) -> Result<Response, Error> {
    let number = number.map(part_number).transpose()?;
    let upload = open_upload(call, slot).await?;
    if number.is_some() && upload.content.is_some() {
        return Err(complete_already());
    }
    let limit = call.app.options.upload_limit;
    check_announced(body, limit)?;
    let taken = take(call, upload.id, body, limit).await?;
    let etag = taken.etag().to_owned();
    let Some(number) = number else {
        return match call.files().complete(upload.id, taken).await? {
            Completed::Done(_) => Ok(with_etag(&etag, &json!({"etag": quoted(&etag)}))),
            _ => Err(complete_already()),
        };
    };
    let open_for = call.app.options.upload_open_for;
    match call.files().record(upload.id, number, taken, limit, open_for).await? {
        Recorded::Done => Ok(with_etag(&etag, &json!({"partNumber": number, "etag": quoted(&etag)}))),
        Recorded::NotOpen => Err(complete_already()),
        Recorded::TooLarge => Err(Error::FileTooLarge(limit)),
    }
}

/// `POST {upload_url}/complete`: which parts the file consists of.
pub(crate) async fn complete(call: &Call<'_>, slot: &Slot, body: &mut Body) -> Result<Response, Error> {
    let body = body::read(body, COMPLETE_LIMIT).await?;
    let parts = listed_parts(&body)?;
    let upload = open_upload(call, slot).await?;
    let content = match call.store().complete_parts(upload.id, &parts).await? {
        Completed::Done(content) => content,
        Completed::NotOpen => return Err(complete_already()),
        Completed::NoPart(number) => {
            return Err(Error::Upload(format!(
                "Part {number} was not uploaded. Upload it, then complete again."
            )));
        }
        Completed::OtherEtag(number) => {
            return Err(Error::Upload(format!(
                "The etag of part {number} is not the one that its upload was answered with"
            )));
        }
    };
    let address = Address::Upload { id: upload.id, name: upload.file_name };
    let url = format!("{}{address}", call.files_url());
    Ok(with_etag(&content.etag, &json!({"access_url": url, "file_url": url, "etag": quoted(&content.etag)})))
}

/// The upload that an address names, if its secret is right.
async fn open_upload(call: &Call<'_>, slot: &Slot) -> Result<store::Upload, Error> {
    let id = slot.upload.ok_or(Error::NoUpload)?;
    let upload = call.store().upload(id).await?.ok_or(Error::NoUpload)?;
    let in_query = params::value(call.query, SECRET);
    let secret = slot.secret.as_deref().or(in_query.as_deref()).unwrap_or_default();
    if Files::opens(&upload, secret) { Ok(upload) } else { Err(Error::WrongSecret) }
}

async fn begin(call: &Call<'_>, file: NewFile) -> Result<(Address, String), Error> {
    Ok(call.files().begin(file, call.app.options.upload_open_for).await?)
}

/// Streams a body into an object.
async fn take(call: &Call<'_>, upload: Uuid, body: &mut Body, limit: u64) -> Result<Taken, Error> {
    let announced = body.size_hint().exact();
    let mut intake = call.files().intake(upload, limit);
    while let Some(bytes) = body::next(body).await? {
        intake.write(bytes).await?;
    }
    let taken = intake.finish().await?;
    // hyper sees to it for a length; other servers in front may not.
    if announced.is_some_and(|announced| announced != taken.bytes()) {
        return Err(Error::BrokenBody("The request body ended early"));
    }
    Ok(taken)
}

/// Refuses a body whose announced length is over the limit, before its first byte is read.
fn check_announced(body: &Body, limit: u64) -> Result<(), Error> {
    if body.size_hint().lower() > limit { Err(Error::FileTooLarge(limit)) } else { Ok(()) }
}

fn complete_already() -> Error {
    Error::Upload(
        "This upload is complete or has expired, nothing can be added to it. Begin a new one.".into(),
    )
}

fn no_upload_address() -> Error {
    Error::Bug("an upload got another address than an upload's".into())
}

fn part_number(text: &str) -> Result<u32, Error> {
    let number = text.parse().ok().filter(|number| (1..=MAX_PARTS).contains(number));
    number
        .ok_or_else(|| Error::Upload(format!("The part number is not a whole number from 1 to {MAX_PARTS}")))
}

/// `{"parts": [{"partNumber": 1, "etag": "…"}]}`, in any order; fal's own runners write `part_number`.
fn listed_parts(body: &[u8]) -> Result<Vec<(u32, String)>, Error> {
    const WANTED: &str = "Input should be a list of {\"partNumber\": number, \"etag\": text}";
    let body: Value =
        serde_json::from_slice(body).map_err(|_| Error::Upload("The body is not JSON".into()))?;
    let parts = body.get("parts").and_then(Value::as_array).ok_or(Error::Field("parts", WANTED))?;
    if parts.is_empty() || parts.len() > MAX_PARTS as usize {
        return Err(Error::Field("parts", "Input should be a list of 1 to 10000 parts"));
    }
    let part = |part: &Value| {
        let number = part.get("partNumber").or_else(|| part.get("part_number"))?;
        let etag = ["etag", "ETag", "eTag"].into_iter().find_map(|name| part.get(name))?.as_str()?;
        Some((u32::try_from(number.as_u64()?).ok()?, unquoted(etag).to_owned()))
    };
    parts.iter().map(part).collect::<Option<_>>().ok_or(Error::Field("parts", WANTED))
}

/// The file that Python's upload routes describe in their headers.
fn named_by_header(call: &Call<'_>) -> NewFile {
    let text =
        |name: &HeaderName| call.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let name = text(&FILE_NAME);
    // A name that is not ASCII may come percent-encoded.
    let name = names::decode_segment(name).unwrap_or_else(|| name.to_owned());
    new_file(call, &name, text(&CONTENT_TYPE))
}

fn new_file(call: &Call<'_>, name: &str, content_type: &str) -> NewFile {
    NewFile {
        name: name.to_owned(),
        content_type: media_type(content_type),
        key_id: call.caller.key_id().map(str::to_owned),
        lifecycle: lifecycle(call.headers),
        job: None,
    }
}

/// The older header wins when both are there; Python sends the same in both.
fn lifecycle(headers: &HeaderMap) -> Lifecycle {
    [LIFECYCLE, LIFECYCLE_PREFERENCE]
        .iter()
        .filter_map(|name| serde_json::from_slice::<Value>(headers.get(name)?.as_bytes()).ok())
        .find(Value::is_object)
        .map(|value| Lifecycle::read(&value))
        .unwrap_or_default()
}

/// The type as sent, when it can be a header of the answer and is a type at all.
pub(crate) fn media_type(text: &str) -> String {
    let text = text.trim();
    let token = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b))
    };
    let essence = text.split(';').next().unwrap_or_default().trim();
    let is_type = essence.split_once('/').is_some_and(|(kind, subtype)| token(kind) && token(subtype));
    let printable = text.bytes().all(|b| (0x20..0x7f).contains(&b));
    if is_type && printable && text.len() <= LONGEST_TYPE_BYTES {
        text.to_owned()
    } else {
        UNKNOWN_TYPE.to_owned()
    }
}

fn quoted(etag: &str) -> String {
    format!("\"{etag}\"")
}

fn unquoted(etag: &str) -> &str {
    let etag = etag.trim();
    let etag = etag.strip_prefix("W/").unwrap_or(etag);
    etag.strip_prefix('"').and_then(|etag| etag.strip_suffix('"')).unwrap_or(etag)
}

/// JS reads the body, Python the header.
fn with_etag(etag: &str, body: &Value) -> Response {
    let mut response = wire::json(StatusCode::OK, body);
    if let Ok(etag) = HeaderValue::from_str(&quoted(etag)) {
        response.headers_mut().insert(ETAG, etag);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_type_is_kept_or_unknown() {
        for (sent, kept) in [
            ("video/mp4", "video/mp4"),
            (" text/plain; charset=utf-8 ", "text/plain; charset=utf-8"),
            ("application/vnd.x+json", "application/vnd.x+json"),
            ("", UNKNOWN_TYPE),
            ("zip", UNKNOWN_TYPE),
            ("a/b/c", UNKNOWN_TYPE),
            ("text/html\r\nx: y", UNKNOWN_TYPE),
            ("text/ä", UNKNOWN_TYPE),
            ("text/", UNKNOWN_TYPE),
        ] {
            assert_eq!(media_type(sent), kept, "{sent:?}");
        }
    }

    #[test]
    fn parts_are_read_as_every_client_writes_them() {
        let body = br#"{"parts":[{"partNumber":2,"etag":"\"b\""},{"part_number":1,"ETag":"a"},{"partNumber":3,"etag":"W/\"c\""}]}"#;
        let parts = listed_parts(body).unwrap();
        assert_eq!(parts, [(2, "b".into()), (1, "a".into()), (3, "c".into())]);
        for bad in [
            "",
            "x",
            "[]",
            "{}",
            r#"{"parts":[]}"#,
            r#"{"parts":[{}]}"#,
            r#"{"parts":[{"partNumber":-1,"etag":"a"}]}"#,
            r#"{"parts":[{"partNumber":1,"etag":2}]}"#,
            r#"{"parts":{}}"#,
        ] {
            assert!(listed_parts(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn part_numbers_are_1_to_10000() {
        assert_eq!((part_number("1").unwrap(), part_number("10000").unwrap()), (1, 10_000));
        for bad in ["0", "10001", "-1", "1.5", "", "x", "99999999999"] {
            assert!(part_number(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_expires_with_an_offset_and_no_fraction() {
        let at = DateTime::from_timestamp(1_767_322_205, 123_456_789).unwrap();
        assert_eq!(expiry(at), "2026-01-02T02:50:05+00:00");
    }

    proptest! {
        #[test]
        fn any_list_is_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = listed_parts(&body);
        }

        #[test]
        fn any_type_can_be_a_header(text in ".*") {
            prop_assert!(HeaderValue::from_str(&media_type(&text)).is_ok());
        }
    }
}
