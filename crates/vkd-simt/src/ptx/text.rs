//! The text of a module as statements: comments gone, lines counted.

use crate::Fault;

/// The same text with spaces for comments, so that lines and places stay what they are.
pub(super) fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['/', '"']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let (length, kept) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), false)
        } else if let Some(inside) = rest.strip_prefix("/*") {
            (inside.find("*/").map_or(rest.len(), |end| end + 4), false)
        } else if let Some(inside) = rest.strip_prefix('"') {
            (inside.find('"').map_or(rest.len(), |end| end + 2), true)
        } else {
            (1, true)
        };
        let part = &rest[..length];
        if kept {
            out.push_str(part);
        } else {
            out.extend(part.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        }
        rest = &rest[length..];
    }
    out.push_str(rest);
    out
}

/// Where reading is, and on which line.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    rest: &'a str,
    pub(super) line: u32,
}

/// A piece of a function's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Statement<'a> {
    Open,
    Close,
    Label(&'a str),
    /// A declaration, without its semicolon.
    Directive(&'a str),
    Instruction(&'a str),
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str, line: u32) -> Self {
        Self { rest: text, line }
    }

    /// The next `bytes`, and past them.
    fn take(&mut self, bytes: usize) -> &'a str {
        let (part, rest) = self.rest.split_at(bytes);
        self.rest = rest;
        self.line += part.bytes().filter(|b| *b == b'\n').count() as u32;
        part
    }

    pub(super) fn skip_space(&mut self) {
        let space = self.rest.len() - self.rest.trim_start().len();
        self.take(space);
    }

    pub(super) fn peek(&self) -> &'a str {
        self.rest
    }

    /// Up to one of these characters, which isn't taken; `None` if there's none.
    pub(super) fn until(&mut self, stops: &[char]) -> Option<&'a str> {
        let at = self.rest.find(stops)?;
        Some(self.take(at))
    }

    /// What a pair of braces holds, from the opening one on.
    pub(super) fn braced(&mut self) -> Option<&'a str> {
        let mut depth = 0usize;
        for (at, byte) in self.rest.bytes().enumerate() {
            match byte {
                b'{' => depth += 1,
                b'}' => {
                    depth = depth.checked_sub(1)?;
                    if depth == 0 {
                        return self.take(at + 1).get(1..at);
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// To the end of the line.
    pub(super) fn line_end(&mut self) -> &'a str {
        self.take(self.rest.find('\n').unwrap_or(self.rest.len()))
    }

    pub(super) fn skip(&mut self, bytes: usize) {
        self.take(bytes.min(self.rest.len()));
    }

    /// The next statement and its line; `None` at the end.
    pub(super) fn statement(&mut self) -> Result<Option<(u32, Statement<'a>)>, Fault> {
        loop {
            self.skip_space();
            let line = self.line;
            let found = match self.rest.as_bytes().first() {
                None => return Ok(None),
                Some(b';') => {
                    self.take(1);
                    continue;
                }
                Some(b'{') => {
                    self.take(1);
                    Statement::Open
                }
                Some(b'}') => {
                    self.take(1);
                    Statement::Close
                }
                Some(b'.') if says_where(self.rest) => {
                    self.line_end();
                    continue;
                }
                Some(first) => {
                    let first = *first;
                    let Some(at) = self.rest.find([';', ':']) else {
                        let words = format!("line {line}: a statement without its semicolon");
                        return Err(Fault::new(words));
                    };
                    let text = self.take(at).trim();
                    if self.rest.starts_with(':') && name_end(text) == text.len() {
                        self.take(1);
                        Statement::Label(text)
                    } else if self.rest.starts_with(':') {
                        let words = format!("line {line}: `{text}:` is no label");
                        return Err(Fault::new(words));
                    } else {
                        self.take(1);
                        if first == b'.' {
                            Statement::Directive(text)
                        } else {
                            Statement::Instruction(text)
                        }
                    }
                }
            };
            return Ok(Some((line, found)));
        }
    }
}

/// Whether a line begins here that says of which source the code is, and nothing else.
pub(super) fn says_where(text: &str) -> bool {
    [".loc", ".file"].iter().any(|word| {
        let rest = text.strip_prefix(word);
        rest.is_some_and(|rest| rest.starts_with(char::is_whitespace))
    })
}

/// Where the name at the beginning of `text` ends.
pub(super) fn name_end(text: &str) -> usize {
    text.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%')))
        .unwrap_or(text.len())
}

/// Parts between the commas that no bracket encloses, trimmed.
pub(super) fn operands(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut begin) = (Vec::new(), 0i32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[begin..at].trim());
                begin = at + 1;
            }
            _ => {}
        }
    }
    let last = text[begin..].trim();
    if !last.is_empty() {
        parts.push(last);
    }
    parts
}

/// An integer as PTX writes it, modulo 2^64: decimal, hexadecimal, octal or binary, with or without `U`.
pub(super) fn integer(text: &str) -> Option<u64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest.trim_start()),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let digits = digits.strip_suffix(['U', 'u']).unwrap_or(digits);
    let lower = digits.to_ascii_lowercase();
    let value = if let Some(hex) = lower.strip_prefix("0x") {
        u64::from_str_radix(hex, 16)
    } else if let Some(binary) = lower.strip_prefix("0b") {
        u64::from_str_radix(binary, 2)
    } else if lower.len() > 1 && lower.starts_with('0') {
        u64::from_str_radix(&lower[1..], 8)
    } else {
        lower.parse()
    };
    value.ok().map(|v| if negative { v.wrapping_neg() } else { v })
}
