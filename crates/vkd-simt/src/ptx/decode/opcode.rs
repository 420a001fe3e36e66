//! An instruction's name and modifiers. Each modifier is taken by what knows it; one that is left over is a fault.

use super::super::rounding::Rounding;
use super::super::types::Type;
use crate::Fault;

#[derive(Debug)]
pub(super) struct Opcode<'a> {
    pub(super) text: &'a str,
    pub(super) name: &'a str,
    rest: Vec<&'a str>,
}

impl<'a> Opcode<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let mut parts = text.split('.');
        let name = parts.next().unwrap_or_default();
        // `.L1::evict_last` and the like have two colons but no dot.
        Self { text, name, rest: parts.collect() }
    }

    /// Whether this modifier is there.
    pub(super) fn take(&mut self, word: &str) -> bool {
        match self.rest.iter().position(|have| *have == word) {
            Some(at) => {
                self.rest.remove(at);
                true
            }
            None => false,
        }
    }

    /// Which of these modifiers is there, the first of them that is.
    pub(super) fn one_of(&mut self, words: &[&'static str]) -> Option<&'static str> {
        words.iter().copied().find(|word| self.take(word))
    }

    /// Modifiers that say nothing of the result.
    pub(super) fn drop_all(&mut self, words: &[&str]) {
        self.rest.retain(|have| !words.contains(have));
    }

    /// Modifiers that begin so and say nothing of the result.
    pub(super) fn drop_prefixed(&mut self, prefixes: &[&str]) {
        self.rest.retain(|have| !prefixes.iter().any(|prefix| have.starts_with(prefix)));
    }

    /// All types, in order.
    pub(super) fn types(&mut self) -> Vec<Type> {
        let types = self.rest.iter().filter_map(|word| Type::parse(word)).collect();
        self.rest.retain(|word| Type::parse(word).is_none());
        types
    }

    /// The only type.
    pub(super) fn one_type(&mut self) -> Result<Type, Fault> {
        match self.types()[..] {
            [one] => Ok(one),
            _ => Err(self.unknown()),
        }
    }

    /// The type and how many are in its vector.
    pub(super) fn vector(&mut self) -> usize {
        match self.one_of(&["v2", "v4", "v8"]) {
            Some("v2") => 2,
            Some("v4") => 4,
            Some(_) => 8,
            None => 1,
        }
    }

    pub(super) fn rounding(&mut self) -> Option<Rounding> {
        Some(match self.one_of(&["rn", "rz", "rm", "rp"])? {
            "rn" => Rounding::Nearest,
            "rz" => Rounding::Zero,
            "rm" => Rounding::Down,
            _ => Rounding::Up,
        })
    }

    /// Rounding to a whole number.
    pub(super) fn whole_rounding(&mut self) -> Option<Rounding> {
        Some(match self.one_of(&["rni", "rzi", "rmi", "rpi"])? {
            "rni" => Rounding::Nearest,
            "rzi" => Rounding::Zero,
            "rmi" => Rounding::Down,
            _ => Rounding::Up,
        })
    }

    pub(super) fn unknown(&self) -> Fault {
        Fault::new(format!("the instruction `{}` isn't known", self.text))
    }

    /// A fault if a modifier is left that nobody took.
    pub(super) fn done(&self) -> Result<(), Fault> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.unknown()) }
    }
}
