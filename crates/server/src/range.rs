//! Which bytes of a file a request asks for. Source: RFC 9110, sections 13 and 14.

use std::ops::Range;

use chrono::{DateTime, Utc};

/// What is answered to a request for a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// All of it, with 200.
    Whole,
    /// These bytes, with 206.
    Part(Range<u64>),
    /// Nothing of it exists: 416.
    Beyond,
}

/// Reads a `Range` header. Several ranges, other units and what cannot be read are answered with the whole file.
pub(crate) fn wanted(range: Option<&str>, bytes: u64) -> Wanted {
    range.and_then(|range| single(range, bytes)).unwrap_or(Wanted::Whole)
}

fn single(range: &str, bytes: u64) -> Option<Wanted> {
    let (unit, range) = range.trim().split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = range.trim().split_once('-')?;
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        // The last so many bytes.
        let suffix = number(last)?;
        return Some(match suffix.min(bytes) {
            0 => Wanted::Beyond,
            suffix => Wanted::Part(bytes - suffix..bytes),
        });
    }
    let first = number(first)?;
    let last = if last.is_empty() { u64::MAX } else { number(last)? };
    if last < first {
        return None;
    }
    Some(if first >= bytes { Wanted::Beyond } else { Wanted::Part(first..last.saturating_add(1).min(bytes)) })
}

/// Digits only; a number beyond all files is the largest there is.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// Whether `If-Range` still holds, so that a range may be answered: the same strong ETag, or the very date.
pub(crate) fn still_holds(if_range: Option<&str>, etag: &str, modified: DateTime<Utc>) -> bool {
    let Some(condition) = if_range.map(str::trim) else { return true };
    if let Some(date) = date(condition) {
        return date == modified.timestamp();
    }
    condition.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')) == Some(etag)
}

/// Whether the client has this file already.
pub(crate) fn is_known(
    if_none_match: Option<&str>,
    if_modified_since: Option<&str>,
    etag: &str,
    modified: DateTime<Utc>,
) -> bool {
    match if_none_match {
        Some(tags) => tags
            .split(',')
            .map(str::trim)
            .any(|tag| tag == "*" || tag.trim_start_matches("W/").trim_matches('"') == etag),
        None => if_modified_since.and_then(date).is_some_and(|since| modified.timestamp() <= since),
    }
}

/// Seconds since 1970 of an HTTP date.
fn date(text: &str) -> Option<i64> {
    let time = httpdate::parse_http_date(text).ok()?;
    i64::try_from(time.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn single_ranges() {
        for (range, expected) in [
            ("bytes=0-0", Wanted::Part(0..1)),
            ("bytes=2-5", Wanted::Part(2..6)),
            ("Bytes = 2 - 5", Wanted::Part(2..6)),
            ("bytes=5-", Wanted::Part(5..10)),
            ("bytes=5-99", Wanted::Part(5..10)),
            ("bytes=-3", Wanted::Part(7..10)),
            ("bytes=-99", Wanted::Part(0..10)),
            ("bytes=0-99999999999999999999999", Wanted::Part(0..10)),
            ("bytes=10-", Wanted::Beyond),
            ("bytes=99999999999999999999999-", Wanted::Beyond),
            ("bytes=-0", Wanted::Beyond),
            ("bytes=5-2", Wanted::Whole),
            ("bytes=0-1,3-4", Wanted::Whole),
            ("items=0-1", Wanted::Whole),
            ("bytes=+1-2", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes", Wanted::Whole),
            ("", Wanted::Whole),
        ] {
            assert_eq!(wanted(Some(range), 10), expected, "{range}");
        }
        assert_eq!(wanted(None, 10), Wanted::Whole);
        assert_eq!(wanted(Some("bytes=0-"), 0), Wanted::Beyond, "an empty file has no bytes");
    }

    #[test]
    fn conditions() {
        let at = DateTime::from_timestamp(1_767_322_205, 500_000_000).unwrap();
        let same = httpdate::fmt_http_date(at.into());
        let before = "Thu, 01 Jan 2026 00:00:00 GMT";
        for (condition, holds) in [
            (None, true),
            (Some("\"a\""), true),
            (Some("\"b\""), false),
            (Some("W/\"a\""), false),
            (Some(same.as_str()), true),
            (Some(before), false),
            (Some("x"), false),
        ] {
            assert_eq!(still_holds(condition, "a", at), holds, "{condition:?}");
        }
        for (tags, since, known) in [
            (None, None, false),
            (Some("\"a\""), None, true),
            (Some("W/\"x\", W/\"a\""), None, true),
            (Some("*"), None, true),
            (Some("\"b\""), Some(same.as_str()), false),
            (None, Some(same.as_str()), true),
            (None, Some(before), false),
        ] {
            assert_eq!(is_known(tags, since, "a", at), known, "{tags:?} {since:?}");
        }
    }

    proptest! {
        #[test]
        fn a_part_lies_inside_the_file(range in "(bytes)?=?[0-9,\\- ]{0,12}", bytes in 0u64..1000) {
            if let Wanted::Part(part) = wanted(Some(&range), bytes) {
                prop_assert!(part.start < part.end && part.end <= bytes);
            }
        }

        #[test]
        fn any_header_is_read(text in "\\PC*", bytes in any::<u64>()) {
            let at = DateTime::UNIX_EPOCH;
            let _ = (wanted(Some(&text), bytes), still_holds(Some(&text), "a", at), is_known(Some(&text), Some(&text), "a", at));
        }
    }
}
