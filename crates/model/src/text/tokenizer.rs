//! Captions to token ids, as Gemma's own `tokenizer.json` says.

use std::path::Path;

use tokenizers::Tokenizer as Inner;

use crate::{Error, Result};

/// Tokens a caption is padded to, which is also the length of the contexts. Source: `model-text.md` §1.
pub const PADDED_TOKENS: usize = 1024;

/// Id of the padding token. Source: `model-text.md` §1.
const PAD: u32 = 0;

/// Largest `tokenizer.json` accepted. Gemma's has 33 MB.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Cuts captions into tokens.
pub struct Tokenizer {
    inner: Inner,
    padded_tokens: usize,
}

impl Tokenizer {
    /// Opens `tokenizer.json` in Gemma's folder (or the file itself). Captions are cut and padded to `padded_tokens`.
    ///
    /// # Errors
    /// `Io` when it cannot be read, `Format` when it is no tokenizer or one that does not put one token (`<bos>`) in
    /// front, `Input` when `padded_tokens` is 0.
    pub fn open(path: impl AsRef<Path>, padded_tokens: usize) -> Result<Self> {
        let path = path.as_ref();
        let path = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
        if padded_tokens == 0 {
            return Err(Error::input("padded_tokens", "must be at least 1"));
        }
        let bytes = std::fs::metadata(&path).map_err(Error::io(&path))?.len();
        if bytes > MAX_FILE_BYTES {
            return Err(Error::format(path, format!("{bytes} bytes; at most {MAX_FILE_BYTES} are accepted")));
        }
        let text = std::fs::read(&path).map_err(Error::io(&path))?;
        let mut inner = Inner::from_bytes(text)
            .map_err(|e| Error::format(&path, format!("not a tokenizer this program can read: {e}")))?;
        // Cutting and padding are done here: the file's own settings would cut twice or pad on the other side.
        let cleared = inner.with_truncation(None);
        cleared.map_err(|e| Error::format(&path, e.to_string()))?;
        inner.with_padding(None);
        let this = Self { inner, padded_tokens };
        match this.encode("")?.len() {
            1 => Ok(this),
            n => {
                let problem =
                    format!("an empty caption gives {n} tokens instead of the single <bos> the model needs");
                Err(Error::format(path, problem))
            }
        }
    }

    /// Tokens a caption is cut and padded to.
    pub fn padded_tokens(&self) -> usize {
        self.padded_tokens
    }

    /// The ids of `caption`, `<bos>` first, at most the padded length. White space at both ends does not count.
    ///
    /// # Errors
    /// `Input` when the tokenizer refuses the text.
    pub fn encode(&self, caption: &str) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode(strip(caption), true)
            .map_err(|e| Error::input("caption", format!("cannot be tokenized: {e}")))?;
        let ids = encoding.get_ids();
        Ok(ids[..ids.len().min(self.padded_tokens)].to_vec())
    }

    /// `ids` padded on the left, and the mask that is 1 on the tokens and 0 on the padding.
    ///
    /// # Panics
    /// When `ids` are more than the padded length, which [`Self::encode`] never gives.
    pub fn pad_left(&self, ids: &[u32]) -> (Vec<u32>, Vec<u32>) {
        let padding = self.padded_tokens.checked_sub(ids.len()).expect("invariant: ids were cut by encode");
        let mut padded = vec![PAD; padding];
        padded.extend_from_slice(ids);
        let mut mask = vec![0; padding];
        mask.resize(self.padded_tokens, 1);
        (padded, mask)
    }
}

/// Takes off white space as Python's `strip` does: Unicode's, and the four ASCII separators Unicode leaves out.
fn strip(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}

#[cfg(test)]
mod tests {
    use super::strip;

    #[test]
    fn white_space_is_what_python_takes_it_for() {
        assert_eq!(strip(" \u{a0}\u{3000}\u{1c}\u{85}a b\n\t\u{2029}\u{1f}"), "a b");
        // no white space in either: zero width space, Mongolian vowel separator
        assert_eq!(strip("\u{200b}a\u{180e}"), "\u{200b}a\u{180e}");
    }
}
