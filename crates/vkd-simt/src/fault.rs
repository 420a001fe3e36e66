//! What a kernel did wrong, or what of its PTX isn't known here.

use std::fmt;

/// A fault of a kernel or of its text: one sentence that names kernel, line and thread where they are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    words: String,
    of_address: bool,
}

impl Fault {
    /// A fault in these words.
    pub fn new(words: impl Into<String>) -> Self {
        Self { words: words.into(), of_address: false }
    }

    /// An access of memory that isn't there, in these words.
    pub fn of_address(words: impl Into<String>) -> Self {
        Self { words: words.into(), of_address: true }
    }

    /// The same fault after where it was.
    pub fn at(self, place: impl fmt::Display) -> Self {
        Self { words: format!("{place}: {}", self.words), ..self }
    }

    /// Whether it was an access of memory that isn't there.
    pub fn is_of_address(&self) -> bool {
        self.of_address
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl std::error::Error for Fault {}
