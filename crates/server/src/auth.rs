//! Who is asking: API keys, and the short-lived tokens that pages get instead of a key.
//!
//! A token is a JWT signed with a secret that all servers of one database share, so any of them accepts it
//! without a query. It names the applications that it opens and is useless elsewhere.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::header::AUTHORIZATION;
use http::{HeaderMap, Method};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::error::Error;
use crate::params;
use crate::route::Target;

/// The query parameter that carries a token where no header can be set.
pub(crate) const TOKEN_PARAMETER: &str = "fal_jwt_token";
/// The name under which the store keeps the signing secret.
pub(crate) const TOKEN_SECRET: &str = "token-signing";
/// What a token for uploads opens. No application has such an alias.
pub(crate) const UPLOADS: &str = "storage:upload";
/// The header part of every token: `{"alg":"HS256","typ":"JWT"}`.
const TOKEN_HEADER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9";
/// Longer tokens are not worth decoding.
const LONGEST_TOKEN_BYTES: usize = 8 * 1024;

const MISSING: &str = "Authorization header is required";
const INVALID: &str = "invalid key credentials";
const MALFORMED: &str = "Invalid Key Authorization header format. Expected '<key_id>:<key_secret>'.";
const BAD_TOKEN: &str = "Invalid or expired token";
const OTHER_APP: &str = "The token is not valid for this application";
const KEY_NEEDED: &str = "This route needs a key, not a token";

/// Whether callers must show a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// Always, except on the public routes.
    Required,
    /// Never. For a loopback address only, which whoever starts the server has to check.
    InsecureNoAuth,
}

/// Who is asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// The holder of this key, or of a token made with it.
    Key(String),
    /// Anyone: a public route, or a server without authentication.
    Anyone,
}

impl Caller {
    /// The id of the key, which is no secret.
    #[must_use]
    pub fn key_id(&self) -> Option<&str> {
        match self {
            Self::Key(id) => Some(id),
            Self::Anyone => None,
        }
    }
}

/// Whether a route answers anyone. An upload address with its secret in the query is its own permission: the JS client
/// sends no key along, and the one that Python's fallback sends is not looked at.
fn is_public(target: &Target) -> bool {
    match target {
        Target::Preflight | Target::OpenApi | Target::Health | Target::Ready | Target::Jwks => true,
        Target::File(_) => true,
        Target::Put(slot, _) | Target::Complete(slot) => slot.secret.is_none(),
        _ => false,
    }
}

/// The application that a token must open for this route; `None` where only a key will do.
fn application(target: &Target) -> Option<&str> {
    match target {
        Target::Submit(endpoint) | Target::Run(endpoint) | Target::Request { endpoint, .. } => {
            Some(&endpoint.alias)
        }
        Target::Upload | Target::UploadParts | Target::Put(..) | Target::Complete(_) => Some(UPLOADS),
        _ => None,
    }
}

/// What a caller shows.
pub(crate) enum Shown<'a> {
    Key(&'a str),
    Token(std::borrow::Cow<'a, str>),
}

/// Finds the key or token, wherever the route allows one to be.
///
/// # Errors
/// [`Error::Unauthorized`] when there is none, or none that can be read.
pub(crate) fn shown<'a>(
    target: &Target,
    method: &Method,
    headers: &'a HeaderMap,
    query: &'a str,
) -> Result<Shown<'a>, Error> {
    let Some(header) = headers.get(AUTHORIZATION) else {
        let by_query =
            matches!(target, Target::Request { .. }) && (method == Method::GET || method == Method::HEAD);
        return match params::value(query, TOKEN_PARAMETER) {
            Some(token) if by_query => Ok(Shown::Token(token)),
            _ => Err(Error::Unauthorized(MISSING)),
        };
    };
    let header = header.to_str().map_err(|_| Error::Unauthorized(MALFORMED))?.trim();
    let (scheme, text) = header.split_once(char::is_whitespace).unwrap_or((header, ""));
    if scheme.eq_ignore_ascii_case("key") {
        Ok(Shown::Key(text.trim()))
    } else if scheme.eq_ignore_ascii_case("bearer") {
        Ok(Shown::Token(text.trim().into()))
    } else {
        Err(Error::Unauthorized(MALFORMED))
    }
}

/// Decides whether the caller may ask this.
///
/// # Errors
/// [`Error::Unauthorized`] or [`Error::Forbidden`] with fal's texts.
pub(crate) async fn authorize(
    app: &crate::App,
    target: &Target,
    method: &Method,
    headers: &HeaderMap,
    query: &str,
) -> Result<Caller, Error> {
    if app.options.auth == Auth::InsecureNoAuth || is_public(target) {
        return Ok(Caller::Anyone);
    }
    match shown(target, method, headers, query)? {
        Shown::Key(text) => match app.store.verify_key(text).await? {
            store::Verified::Key { id } => Ok(Caller::Key(id)),
            store::Verified::Malformed => Err(Error::Unauthorized(MALFORMED)),
            store::Verified::Unknown => Err(Error::Unauthorized(INVALID)),
        },
        Shown::Token(text) => {
            let claims = Claims::read(&text, &app.token_secret().await?, app.options.clock.now())
                .ok_or(Error::Unauthorized(BAD_TOKEN))?;
            let alias = application(target).ok_or(Error::Forbidden(KEY_NEEDED))?;
            if !claims.apps.iter().any(|app| app == alias) {
                return Err(Error::Forbidden(OTHER_APP));
            }
            Ok(claims.sub.map_or(Caller::Anyone, Caller::Key))
        }
    }
}

/// The key of a caller of a public route, when it shows a good one.
pub(crate) async fn shown_key(app: &crate::App, headers: &HeaderMap) -> Result<Option<String>, Error> {
    let header = headers.get(AUTHORIZATION).and_then(|header| header.to_str().ok()).unwrap_or_default();
    let (scheme, text) = header.trim().split_once(char::is_whitespace).unwrap_or_default();
    if !scheme.eq_ignore_ascii_case("key") {
        return Ok(None);
    }
    match app.store.verify_key(text.trim()).await? {
        store::Verified::Key { id } => Ok(Some(id)),
        store::Verified::Malformed | store::Verified::Unknown => Ok(None),
    }
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claims {
    /// The key that it was made with.
    pub(crate) sub: Option<String>,
    /// The aliases of the applications that it opens.
    pub(crate) apps: Vec<String>,
    /// Unix seconds from which on it is worthless.
    pub(crate) exp: i64,
}

impl Claims {
    /// Signs the claims.
    pub(crate) fn sign(&self, secret: &[u8; 32]) -> String {
        let claims = serde_json::to_vec(self).expect("invariant: claims are plain JSON");
        let signed = format!("{TOKEN_HEADER}.{}", URL_SAFE_NO_PAD.encode(claims));
        let signature = mac(secret, &signed).finalize().into_bytes();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// Reads a token; `None` when it is not one of ours, was changed, or is too old.
    pub(crate) fn read(token: &str, secret: &[u8; 32], now: DateTime<Utc>) -> Option<Self> {
        if token.len() > LONGEST_TOKEN_BYTES {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let claims = signed.strip_prefix(TOKEN_HEADER)?.strip_prefix('.')?;
        // Compares in constant time.
        mac(secret, signed).verify_slice(&URL_SAFE_NO_PAD.decode(signature).ok()?).ok()?;
        let claims: Self = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
        (now.timestamp() < claims.exp).then_some(claims)
    }
}

fn mac(secret: &[u8; 32], signed: &str) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("invariant: HMAC takes keys of any length");
    mac.update(signed.as_bytes());
    mac
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECRET: [u8; 32] = [7; 32];

    fn claims() -> Claims {
        Claims { sub: Some("key".into()), apps: vec!["ltx23-trainer-v2".into()], exp: 1000 }
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    #[test]
    fn the_constant_header_is_the_header_of_a_jwt() {
        assert_eq!(URL_SAFE_NO_PAD.decode(TOKEN_HEADER).unwrap(), br#"{"alg":"HS256","typ":"JWT"}"#);
    }

    #[test]
    fn a_token_reads_back_until_it_expires() {
        let token = claims().sign(&SECRET);
        assert_eq!(Claims::read(&token, &SECRET, at(999)), Some(claims()));
        assert_eq!(Claims::read(&token, &SECRET, at(1000)), None);
    }

    #[test]
    fn a_token_of_another_secret_is_refused() {
        assert_eq!(Claims::read(&claims().sign(&[8; 32]), &SECRET, at(0)), None);
    }

    #[test]
    fn an_unsigned_token_is_refused() {
        let body = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims()).unwrap());
        let none = URL_SAFE_NO_PAD.encode(br#"{"alg":"none","typ":"JWT"}"#);
        for token in
            [format!("{none}.{body}."), format!("{TOKEN_HEADER}.{body}."), format!("{TOKEN_HEADER}.{body}")]
        {
            assert_eq!(Claims::read(&token, &SECRET, at(0)), None, "{token}");
        }
    }

    proptest! {
        #[test]
        fn a_changed_token_is_refused(position in 0usize..120, replacement in "[A-Za-z0-9_.-]") {
            let token = claims().sign(&SECRET);
            let position = position % token.len();
            let mut changed = token.clone();
            changed.replace_range(position..=position, &replacement);
            // The last character of base64 has unused bits, which a strict decoder refuses as well.
            prop_assume!(changed != token);
            prop_assert_eq!(Claims::read(&changed, &SECRET, at(0)), None);
        }

        #[test]
        fn no_text_is_a_token(text in "\\PC*") {
            prop_assert_eq!(Claims::read(&text, &SECRET, at(0)), None);
        }
    }
}
