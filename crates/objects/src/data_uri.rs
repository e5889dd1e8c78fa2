//! `data:` addresses: a file inside a request. Source: RFC 2397, and the forms that fal's clients and users send
//! (`protocol.md` §5.4).

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use percent_encoding::percent_decode_str;

/// Characters decoded at a time; a multiple of 4, so that every chunk but the last is whole.
const CHUNK_CHARS: usize = 1 << 20;

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// A parsed `data:` address that still borrows the request's text.
#[derive(Clone, Copy, Debug)]
pub struct DataUri<'a> {
    media_type: &'a str,
    base64: bool,
    data: &'a str,
}

/// What is wrong with a `data:` address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// There is no comma between the head and the data.
    #[error("the data URI has no comma between its type and its data")]
    NoComma,
    /// The data are not base64.
    #[error("the data URI is not valid base64 near character {at} of its data")]
    Base64 {
        /// Where, counted from the comma.
        at: usize,
    },
}

impl<'a> DataUri<'a> {
    /// Whether an address is a `data:` one (its scheme in any case).
    #[must_use]
    pub fn is_one(address: &str) -> bool {
        address.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
    }

    /// Reads the head; the data are looked at by [`DataUri::chunks`] only.
    ///
    /// # Errors
    /// [`Invalid::NoComma`]. Call it only when [`DataUri::is_one`] says so.
    pub fn parse(address: &'a str) -> Result<DataUri<'a>, Invalid> {
        let rest = address.get(5..).unwrap_or_default();
        let (head, data) = rest.split_once(',').ok_or(Invalid::NoComma)?;
        let (media_type, base64) = match head.rsplit_once(';') {
            Some((media_type, last)) if last.trim().eq_ignore_ascii_case("base64") => (media_type, true),
            _ if head.trim().eq_ignore_ascii_case("base64") => ("", true),
            _ => (head, false),
        };
        Ok(DataUri { media_type: media_type.trim(), base64, data })
    }

    /// The media type without parameters; `text/plain` when there is none, as RFC 2397 says.
    #[must_use]
    pub fn content_type(&self) -> &'a str {
        let plain = self.media_type.split(';').next().unwrap_or_default().trim();
        if plain.is_empty() { "text/plain" } else { plain }
    }

    /// The decoded bytes in chunks of under 1 MiB; ends after the first error.
    pub fn chunks(&self) -> impl Iterator<Item = Result<Bytes, Invalid>> + Send + use<'a> {
        Chunks { rest: self.data, base64: self.base64, consumed: 0, carry: Vec::new(), failed: false }
    }

    /// An upper bound of the decoded length, for a check before anything is decoded.
    #[must_use]
    pub fn max_bytes(&self) -> u64 {
        let chars = self.data.len() as u64;
        if self.base64 { chars / 4 * 3 + 3 } else { chars }
    }
}

struct Chunks<'a> {
    rest: &'a str,
    base64: bool,
    consumed: usize,
    /// Characters of an unfinished group of four.
    carry: Vec<u8>,
    failed: bool,
}

impl Iterator for Chunks<'_> {
    type Item = Result<Bytes, Invalid>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || (self.rest.is_empty() && self.carry.is_empty()) {
            return None;
        }
        let piece = self.take_piece();
        let out =
            if self.base64 { self.decode(piece) } else { Ok(percent_decode_str(piece).collect::<Vec<u8>>()) };
        self.failed = out.is_err();
        Some(out.map(Bytes::from))
    }
}

impl<'a> Chunks<'a> {
    /// The next piece of text; never cuts a character, nor (outside base64) an escape.
    fn take_piece(&mut self) -> &'a str {
        let mut end = CHUNK_CHARS.min(self.rest.len());
        while !self.rest.is_char_boundary(end) {
            end -= 1;
        }
        if end < self.rest.len()
            && let Some(escape) = self.rest[..end].rfind('%').filter(|at| end - at < 3)
        {
            end = escape.max(1);
        }
        let (piece, rest) = self.rest.split_at(end);
        self.rest = rest;
        piece
    }

    /// White space and percent escapes are dropped or undone first: both occur in pasted and form-encoded requests.
    fn decode(&mut self, piece: &str) -> Result<Vec<u8>, Invalid> {
        let mut chars = std::mem::take(&mut self.carry);
        chars.extend(percent_decode_str(piece).filter(|c| !c.is_ascii_whitespace()));
        if !self.rest.is_empty() {
            self.carry = chars.split_off(chars.len() / 4 * 4);
        }
        let engine = if chars.iter().any(|c| matches!(c, b'-' | b'_')) { &URL_SAFE } else { &STANDARD };
        let decoded = engine.decode(&chars).map_err(|error| {
            let at = match error {
                base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                _ => chars.len(),
            };
            Invalid::Base64 { at: self.consumed + at }
        })?;
        self.consumed += chars.len();
        Ok(decoded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(address: &str) -> Result<Vec<u8>, Invalid> {
        let mut all = Vec::new();
        for chunk in DataUri::parse(address)?.chunks() {
            all.extend_from_slice(&chunk?);
        }
        Ok(all)
    }

    #[test]
    fn the_usual_forms_decode() {
        for (address, want, media_type) in [
            ("data:application/zip;base64,UEsDBA==", b"PK\x03\x04".as_slice(), "application/zip"),
            ("DATA:application/zip;name=a.zip;BASE64,UEsDBA", b"PK\x03\x04", "application/zip"),
            ("data:;base64,-_-_", b"\xfb\xff\xbf", "text/plain"),
            ("data:base64,aGk=", b"hi", "text/plain"),
            ("data:,a%20b", b"a b", "text/plain"),
            ("data:text/plain;charset=utf-8,%C3%A4", "ä".as_bytes(), "text/plain"),
            ("data:application/zip;base64,UEsD%0A\n BA%3D%3D", b"PK\x03\x04", "application/zip"),
            ("data:application/zip;base64,", b"", "application/zip"),
        ] {
            assert!(DataUri::is_one(address));
            assert_eq!(bytes(address).as_deref(), Ok(want), "{address}");
            assert_eq!(DataUri::parse(address).unwrap().content_type(), media_type, "{address}");
        }
    }

    #[test]
    fn bad_ones_are_named() {
        assert_eq!(bytes("data:application/zip;base64"), Err(Invalid::NoComma));
        assert_eq!(bytes("data:;base64,UEs*BA=="), Err(Invalid::Base64 { at: 3 }));
        assert_eq!(bytes("data:;base64,UEs=UEs="), Err(Invalid::Base64 { at: 3 }));
        assert!(!DataUri::is_one("https://x/data:") && !DataUri::is_one("dät"));
    }

    proptest! {
        #[test]
        fn any_address_decodes_or_is_refused(rest in "(?s).{0,200}") {
            let _ = bytes(&format!("data:{rest}"));
        }

        #[test]
        fn bytes_come_back(data in proptest::collection::vec(any::<u8>(), 0..4000)) {
            let address = format!("data:application/zip;base64,{}", STANDARD.encode(&data));
            prop_assert!(DataUri::parse(&address).unwrap().max_bytes() >= data.len() as u64);
            prop_assert_eq!(bytes(&address).unwrap(), data);
        }
    }

    #[test]
    fn a_long_one_comes_in_chunks() {
        let data: Vec<u8> = (0..5_000_000u32).map(|i| (i * 7) as u8).collect();
        let mut text = STANDARD.encode(&data);
        text.insert(1_000_001, '\n');
        let address = format!("data:;base64,{text}");
        let chunks: Vec<Bytes> = DataUri::parse(&address).unwrap().chunks().map(Result::unwrap).collect();
        assert!(chunks.len() >= 5 && chunks.iter().all(|c| c.len() < 1 << 20));
        assert_eq!(chunks.concat(), data);
    }
}
