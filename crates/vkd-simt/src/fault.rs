//! What a kernel did wrong, or what of its PTX isn't known here.

use std::fmt;

/// A fault of a kernel or of its text: one sentence that names kernel, line and thread where they are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    words: String,
    kind: Kind,
}

/// What a fault is, as far as a driver has different errors for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An access of memory that isn't there.
    Address,
    /// An access that isn't aligned.
    Alignment,
    /// An assertion of the kernel's that fails.
    Assertion,
    /// A launch that never begins.
    Launch,
    /// Anything else.
    Other,
}

impl Fault {
    /// A fault in these words.
    pub fn new(words: impl Into<String>) -> Self {
        Self { words: words.into(), kind: Kind::Other }
    }

    /// An access of memory that isn't there, in these words.
    pub fn of_address(words: impl Into<String>) -> Self {
        Self { words: words.into(), kind: Kind::Address }
    }

    /// An access that isn't aligned, in these words.
    pub fn of_alignment(words: impl Into<String>) -> Self {
        Self { words: words.into(), kind: Kind::Alignment }
    }

    /// An assertion of a kernel that fails, in these words.
    pub fn of_assertion(words: impl Into<String>) -> Self {
        Self { words: words.into(), kind: Kind::Assertion }
    }

    /// A launch that is refused before a thread runs, in these words.
    pub fn of_launch(words: impl Into<String>) -> Self {
        Self { words: words.into(), kind: Kind::Launch }
    }

    /// The same fault after where it was.
    pub fn at(self, place: impl fmt::Display) -> Self {
        Self { words: format!("{place}: {}", self.words), ..self }
    }

    /// Whether it was an access of memory that isn't there.
    pub fn is_of_address(&self) -> bool {
        self.kind == Kind::Address
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl std::error::Error for Fault {}
