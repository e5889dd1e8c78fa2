//! What a request's addresses hold, settled before the request becomes a row.
//!
//! A data URI goes to the object store, a file of kiln's own is looked up, and both are named by reference in what the
//! worker reads; an address that can never be fetched fails the request now. So rows hold no files, and a worker never
//! reads over the network what lies in the next room.

use files::{NewFile, Resolved};
use objects::data_uri::DataUri;
use objects::outbound;
use serde_json::Value;
use spec::{FalError, Loc, Problem, Problems, TrainSpec};
use uuid::Uuid;

use crate::Call;
use crate::error::Error;
use crate::files::{Decision, decision};

/// A data URI that is no address, or of a request that failed, is kept up to this length.
const KEPT_BYTES: usize = 1024;

/// What was stored for a request that may yet be refused.
#[derive(Debug, Default)]
pub(super) struct Stored(Vec<Uuid>);

impl Stored {
    /// Lets go of it.
    pub(super) async fn forget(self, call: &Call<'_>) {
        for upload in self.0 {
            if let Err(error) = call.files().forget(upload).await {
                tracing::debug!(%error, "a file of a refused request stays for a day");
            }
        }
    }
}

/// Settles every address of a request. The `input` is changed along with the request.
///
/// # Errors
/// The outer one: rows or objects cannot be written, nothing is known about the request. The inner one: what is wrong
/// with it.
pub(super) async fn settle(
    call: &Call<'_>,
    train: &mut TrainSpec,
    input: &mut Option<Value>,
    stored: &mut Stored,
) -> Result<Result<(), Problems>, Error> {
    let mut problems = Problems::default();
    for (loc, address) in train.addresses_mut() {
        if !DataUri::is_one(address)
            && let Err(problem) = look_up(call, loc, address).await?
        {
            problems.0.push(problem);
        }
    }
    if !problems.is_empty() {
        return Ok(Err(problems));
    }
    let base = call.files_url();
    for (loc, address) in train.addresses_mut() {
        if !DataUri::is_one(address) {
            continue;
        }
        match keep(call, address).await? {
            Ok(own) => {
                if let files::Address::Upload { id, .. } = &own {
                    stored.0.push(*id);
                }
                *address = own.reference();
                if let Some(value) = input.as_mut().and_then(|input| at(input, &loc)) {
                    *value = Value::String(format!("{base}{own}"));
                }
            }
            Err((error, message)) => return Ok(Err(Problem::fal(&error, loc, message).into())),
        }
    }
    Ok(Ok(()))
}

/// An http(s) address: one of ours becomes a reference, any other must be one that may be reached.
async fn look_up(call: &Call<'_>, loc: Vec<Loc>, address: &mut String) -> Result<Result<(), Problem>, Error> {
    let failed = |loc, address: &str, message: String| {
        let problem = Problem::fal(&FalError::FileDownloadError, loc, message);
        Ok(Err(problem.with_input(&Value::from(address))))
    };
    match call.files().resolve(address).await? {
        Resolved::Own(file) => {
            let allowed = file.acl.as_ref().is_none_or(|acl| {
                decision(acl, call.caller.key_id(), file.key_id.as_deref()) == Decision::Allow
            });
            if !allowed {
                return failed(loc, address, "Failed to download the file: you may not read it".into());
            }
            *address = file.address.reference();
            Ok(Ok(()))
        }
        Resolved::Gone | Resolved::Remote if call.is_own(address) => failed(
            loc,
            address,
            "Failed to download the file: it was never uploaded here, or has expired".into(),
        ),
        Resolved::Gone | Resolved::Remote => match call.app.outbound.check(address) {
            Ok(_) => Ok(Ok(())),
            Err(error @ (outbound::Error::NotAUrl { .. } | outbound::Error::Refused { .. })) => {
                failed(loc, address, format!("Failed to download the file: {error}"))
            }
            // Nothing else is asked before the worker fetches it.
            Err(_) => Ok(Ok(())),
        },
    }
}

/// Stores the file inside a data URI.
async fn keep(call: &Call<'_>, address: &str) -> Result<Result<files::Address, (FalError, String)>, Error> {
    let limit = call.app.options.upload_limit;
    let too_large =
        || (FalError::FileTooLarge { max_size: limit }, format!("The file is larger than {limit} bytes"));
    let broken = |error: objects::data_uri::Invalid| {
        (FalError::FileDownloadError, format!("Failed to download the file: {error}"))
    };
    let uri = match DataUri::parse(address) {
        Ok(uri) => uri,
        Err(error) => return Ok(Err(broken(error))),
    };
    let file = NewFile {
        name: format!("data.{}", extension(uri.content_type())),
        content_type: crate::uploads::media_type(uri.content_type()),
        key_id: call.caller.key_id().map(str::to_owned),
        job: Some(call.request_id),
        ..NewFile::default()
    };
    match call.files().keep(&uri, file, limit).await {
        Ok(own) => Ok(Ok(own)),
        Err(files::Error::DataUri(error)) => Ok(Err(broken(error))),
        Err(files::Error::Objects(objects::Error::TooLarge { .. })) => Ok(Err(too_large())),
        Err(error) => Err(error.into()),
    }
}

/// Programs look at the end of a name, so it gets the usual one.
fn extension(content_type: &str) -> &'static str {
    match content_type.to_ascii_lowercase().as_str() {
        "application/zip" | "application/x-zip-compressed" => "zip",
        "video/mp4" => "mp4",
        "video/quicktime" => "mov",
        "video/webm" => "webm",
        "video/x-matroska" => "mkv",
        "image/png" => "png",
        "image/jpeg" => "jpg",
        "image/webp" => "webp",
        "image/gif" => "gif",
        "audio/wav" | "audio/x-wav" | "audio/wave" => "wav",
        "audio/mpeg" => "mp3",
        "audio/flac" => "flac",
        "audio/ogg" => "ogg",
        "audio/mp4" => "m4a",
        "text/plain" => "txt",
        _ => "bin",
    }
}

/// The value at a place of the body.
fn at<'v>(input: &'v mut Value, loc: &[Loc]) -> Option<&'v mut Value> {
    let mut value = input;
    for step in loc.iter().skip(1) {
        value = match step {
            Loc::Key(key) => value.get_mut(key.as_ref())?,
            Loc::Index(index) => value.get_mut(index)?,
        };
    }
    Some(value)
}

/// Cuts the data URIs that are left in an input: those of a request that failed, and those in fields that nobody
/// reads. The row keeps what was meant, not megabytes of it.
pub(super) fn cut_data_uris(value: &mut Value) {
    match value {
        Value::String(text) if text.len() > KEPT_BYTES && DataUri::is_one(text) => {
            let head = text.split(',').next().unwrap_or_default();
            let head: String = head.chars().take(100).collect();
            *value = Value::String(format!("{head},… ({} bytes left out)", text.len()));
        }
        Value::Array(items) => items.iter_mut().for_each(cut_data_uris),
        Value::Object(map) => map.values_mut().for_each(cut_data_uris),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn long_data_uris_are_cut_and_all_else_stays() {
        let long = format!("data:application/zip;base64,{}", "A".repeat(5000));
        let plain = "x".repeat(5000);
        let mut input = json!({ "a": [long, { "b": long }], "c": plain, "d": "data:,short", "e": 5 });
        cut_data_uris(&mut input);
        let cut = "data:application/zip;base64,… (5028 bytes left out)";
        assert_eq!(input, json!({ "a": [cut, { "b": cut }], "c": plain, "d": "data:,short", "e": 5 }));
    }

    #[test]
    fn a_place_is_found_by_its_loc() {
        let mut input = json!({ "validation": [{}, { "image_url": "x" }] });
        let loc = [Loc::from("body"), Loc::from("validation"), Loc::from(1), Loc::from("image_url")];
        assert_eq!(at(&mut input, &loc), Some(&mut json!("x")));
        assert_eq!(at(&mut json!([]), &loc), None);
    }
}
