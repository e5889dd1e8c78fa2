//! Where and why a body is not JSON, in the words fal's servers use.
//!
//! FastAPI reports Python's `json` module: a character offset and a short phrase. `serde_json` counts and words
//! otherwise, so a body it refuses is walked once more here. Source: CPython 3.11, `json.decoder` and `json.scanner`.

/// An error of Python's `json` module.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct JsonError {
    /// Offset in bytes.
    byte: usize,
    /// Python's phrase.
    pub(crate) phrase: &'static str,
}

impl JsonError {
    /// Offset in characters, as Python counts.
    pub(crate) fn offset(&self, text: &str) -> usize {
        text.char_indices().take_while(|(at, _)| *at < self.byte).count()
    }
}

/// Finds the first error Python would report; none when Python would read the text (it takes `NaN`, for one).
pub(crate) fn find(text: &str) -> Option<JsonError> {
    let mut scan = Scan { text: text.as_bytes(), at: 0 };
    scan.document().err()
}

type Step<T = ()> = Result<T, JsonError>;

/// What a container waits for.
enum Open {
    List,
    Object,
}

struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn fail<T>(&self, byte: usize, phrase: &'static str) -> Step<T> {
        Err(JsonError { byte, phrase })
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// Walks a whole document with a stack of its own: depth costs no call frames.
    fn document(&mut self) -> Step {
        let mut open = Vec::new();
        self.space();
        loop {
            // a value starts here
            if self.eat(b'[') {
                self.space();
                if !self.eat(b']') {
                    open.push(Open::List);
                    continue;
                }
            } else if self.eat(b'{') {
                self.space();
                if !self.eat(b'}') {
                    self.key()?;
                    open.push(Open::Object);
                    continue;
                }
            } else {
                self.scalar()?;
            }
            // a value ended here: close what it ends
            loop {
                self.space();
                let Some(container) = open.last() else {
                    return if self.at == self.text.len() {
                        Ok(())
                    } else {
                        self.fail(self.at, "Extra data")
                    };
                };
                let close = match container {
                    Open::List => b']',
                    Open::Object => b'}',
                };
                if self.eat(close) {
                    open.pop();
                    continue;
                }
                if !self.eat(b',') {
                    return self.fail(self.at, "Expecting ',' delimiter");
                }
                self.space();
                if matches!(container, Open::Object) {
                    self.key()?;
                }
                break;
            }
        }
    }

    /// A key and its colon, up to the value.
    fn key(&mut self) -> Step {
        if self.peek() != Some(b'"') {
            return self.fail(self.at, "Expecting property name enclosed in double quotes");
        }
        self.string()?;
        self.space();
        if !self.eat(b':') {
            return self.fail(self.at, "Expecting ':' delimiter");
        }
        self.space();
        Ok(())
    }

    fn scalar(&mut self) -> Step {
        if self.peek() == Some(b'"') {
            return self.string();
        }
        for word in ["null", "true", "false", "NaN", "Infinity", "-Infinity"] {
            if self.text[self.at..].starts_with(word.as_bytes()) {
                self.at += word.len();
                return Ok(());
            }
        }
        self.number()
    }

    /// The longest number that starts here; a tail such as `.` without digits is left for the next step to stumble on.
    fn number(&mut self) -> Step {
        let start = self.at;
        self.eat(b'-');
        if !self.eat(b'0') && self.digits() == 0 {
            return self.fail(start, "Expecting value");
        }
        let whole = self.at;
        if self.eat(b'.') && self.digits() == 0 {
            self.at = whole;
            return Ok(());
        }
        let mantissa = self.at;
        if self.eat(b'e') || self.eat(b'E') {
            if !self.eat(b'+') {
                self.eat(b'-');
            }
            if self.digits() == 0 {
                self.at = mantissa;
            }
        }
        Ok(())
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        self.at - start
    }

    fn string(&mut self) -> Step {
        let begin = self.at;
        self.at += 1;
        loop {
            match self.peek() {
                None => return self.fail(begin, "Unterminated string starting at"),
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(0..=0x1f) => return self.fail(self.at, "Invalid control character at"),
                Some(b'\\') => {
                    let backslash = self.at;
                    self.at += 1;
                    match self.peek() {
                        None => return self.fail(begin, "Unterminated string starting at"),
                        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
                        Some(b'u') => {
                            let digits = self.text.get(self.at + 1..self.at + 5);
                            if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
                                return self.fail(self.at, "Invalid \\uXXXX escape");
                            }
                            self.at += 5;
                        }
                        Some(_) => return self.fail(backslash, "Invalid \\escape"),
                    }
                }
                Some(_) => self.at += 1,
            }
        }
    }
}
