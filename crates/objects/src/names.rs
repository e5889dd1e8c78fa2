//! File names from strangers: made safe for a path, and written into a URL.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// Longest name kept, in bytes: file systems allow 255, and object keys carry a prefix.
pub const MAX_NAME_BYTES: usize = 180;

/// RFC 3986 unreserved characters stay as they are in a path segment; everything else is escaped.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Makes a name that is one harmless path segment: the part behind the last slash or backslash, without control and
/// reserved characters, not hidden, not empty, at most [`MAX_NAME_BYTES`] long with its extension kept.
#[must_use]
pub fn sanitise(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let clean: String = last
        .chars()
        .map(|c| if c.is_control() || "<>:\"|?*%#\u{2028}\u{2029}\u{feff}".contains(c) { '_' } else { c })
        .filter(|c| !is_bidi_control(*c))
        .collect();
    let clean = clean.trim().trim_start_matches('.').trim();
    if clean.is_empty() {
        return "file".to_owned();
    }
    shorten(clean)
}

/// Marks that reverse the reading direction can dress `gpj.exe` up as `exe.jpg`.
fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn shorten(name: &str) -> String {
    if name.len() <= MAX_NAME_BYTES {
        return name.to_owned();
    }
    let extension = name.rfind('.').map_or("", |dot| &name[dot..]);
    let extension = if extension.len() <= 20 { extension } else { "" };
    let mut end = MAX_NAME_BYTES - extension.len();
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{extension}", &name[..end])
}

/// Escapes a name as one segment of a URL's path.
#[must_use]
pub fn encode_segment(name: &str) -> String {
    utf8_percent_encode(name, SEGMENT).to_string()
}

/// Reads a path segment back; `None` when the escapes are no UTF-8.
#[must_use]
pub fn decode_segment(segment: &str) -> Option<String> {
    percent_decode_str(segment).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ordinary_names_stay() {
        for name in ["clips.zip", "Mein Lauf (2).mp4", "データ.zip", "a+b&c=d.txt"] {
            assert_eq!(sanitise(name), name);
        }
    }

    #[test]
    fn dangerous_names_are_made_safe() {
        for (name, safe) in [
            ("../../etc/passwd", "passwd"),
            ("C:\\temp\\a.zip", "a.zip"),
            ("..", "file"),
            (".ssh", "ssh"),
            ("", "file"),
            ("a\0b\n.zip", "a_b_.zip"),
            ("\u{202e}gpj.exe", "gpj.exe"),
            ("100%.zip", "100_.zip"),
        ] {
            assert_eq!(sanitise(name), safe, "{name:?}");
        }
    }

    #[test]
    fn a_long_name_keeps_its_extension() {
        let name = format!("{}.safetensors", "ä".repeat(300));
        let short = sanitise(&name);
        assert!(short.len() <= MAX_NAME_BYTES && short.ends_with(".safetensors"), "{short}");
    }

    proptest! {
        #[test]
        fn any_name_becomes_one_segment(name in ".*") {
            let safe = sanitise(&name);
            prop_assert!(!safe.is_empty() && safe.len() <= MAX_NAME_BYTES);
            prop_assert!(!safe.contains(['/', '\\', '\0']) && !safe.starts_with('.'));
            prop_assert_eq!(&sanitise(&safe), &safe, "stable");
            let encoded = encode_segment(&safe);
            prop_assert!(encoded.is_ascii());
            prop_assert_eq!(decode_segment(&encoded), Some(safe));
        }
    }
}
