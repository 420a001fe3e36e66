//! `mov`, with its packing and unpacking, and `cvta`.

use super::super::lanes::{logic, map1, map2};
use super::super::space::{LOCAL_WINDOW, SHARED_WINDOW};
use super::super::types::{Class, Type};
use super::Decoder;
use super::opcode::Opcode;
use crate::Fault;

impl<'a> Decoder<'a> {
    pub(super) fn mov(&mut self, op: &mut Opcode<'a>, args: &[&'a str]) -> Result<(), Fault> {
        let kind = op.one_type()?;
        let [d, a] = *args else { return Err(op.unknown()) };
        if let Some(parts) = self.elements(d) {
            return self.unpack(op, &parts, a, kind);
        }
        if let Some(parts) = self.elements(a) {
            return self.pack(op, d, &parts, kind);
        }
        let d = self.dst(d, kind.class())?;
        self.copy(d, a, kind)
    }

    /// `d = a`
    pub(super) fn copy(&mut self, d: u32, a: &str, kind: Type) -> Result<(), Fault> {
        let a = self.src(a, kind)?;
        self.run(match kind.class() {
            Class::Pred => logic(d, [a, a], |a, _| a),
            Class::Narrow if kind.bytes() == 2 => map1(d, a, |a: u16| a),
            Class::Narrow => map1(d, a, |a: u32| a),
            Class::Wide => map1(d, a, |a: u64| a),
        });
        Ok(())
    }

    fn part(op: &Opcode<'a>, kind: Type, count: usize) -> Result<Type, Fault> {
        match (kind.bytes(), count) {
            (8, 2) => Ok(Type::B32),
            (8, 4) | (4, 2) => Ok(Type::B16),
            (4, 4) | (2, 2) => Ok(Type::B8),
            _ => Err(op.unknown()),
        }
    }

    fn pack(&mut self, op: &Opcode<'a>, d: &str, parts: &[&str], kind: Type) -> Result<(), Fault> {
        let part = Self::part(op, kind, parts.len())?;
        let d = self.dst(d, kind.class())?;
        let mut slots = Vec::new();
        for text in parts {
            slots.push(self.src(text, part)?);
        }
        match (slots[..].as_ref(), part) {
            ([a, b], Type::B32) => self.run(map2(d, [*a, *b], join_32)),
            ([a, b], Type::B16) => self.run(map2(d, [*a, *b], join_16)),
            ([a, b], _) => self.run(map2(d, [*a, *b], join_8)),
            ([a, b, c, e], Type::B16) => {
                let (low, high) = (self.fresh(Class::Narrow)?, self.fresh(Class::Narrow)?);
                self.run(map2(low, [*a, *b], join_16));
                self.run(map2(high, [*c, *e], join_16));
                self.run(map2(d, [low, high], join_32));
            }
            ([a, b, c, e], _) => {
                let (low, high) = (self.fresh(Class::Narrow)?, self.fresh(Class::Narrow)?);
                self.run(map2(low, [*a, *b], join_8));
                self.run(map2(high, [*c, *e], join_8));
                self.run(map2(d, [low, high], join_16));
            }
            _ => return Err(op.unknown()),
        }
        Ok(())
    }

    fn unpack(
        &mut self,
        op: &Opcode<'a>,
        parts: &[&str],
        a: &str,
        kind: Type,
    ) -> Result<(), Fault> {
        let part = Self::part(op, kind, parts.len())?;
        let mut a = self.src(a, kind)?;
        // A part may be the register that is unpacked.
        if kind.class() == Class::Narrow {
            let copy = self.fresh(Class::Narrow)?;
            self.run(map1(copy, a, |a: u32| a));
            a = copy;
        }
        for (at, text) in parts.iter().enumerate() {
            if *text == "_" {
                continue;
            }
            let d = self.dst(text, Class::Narrow)?;
            let shift = (at * part.bytes() * 8) as u32;
            self.run(match (kind.class(), part) {
                (Class::Wide, Type::B32) => map1(d, a, move |a: u64| (a >> shift) as u32),
                (Class::Wide, _) => map1(d, a, move |a: u64| (a >> shift) as u16),
                (_, Type::B16) => map1(d, a, move |a: u32| (a >> shift) as u16),
                _ => map1(d, a, move |a: u32| (a >> shift) as u8),
            });
        }
        Ok(())
    }

    /// Between a space's own addresses and generic ones.
    pub(super) fn cvta(&mut self, op: &mut Opcode<'a>, args: &[&'a str]) -> Result<(), Fault> {
        let kind = op.one_type()?;
        let _ = op.take("to");
        let window = match op.one_of(&["global", "const", "shared", "local"]) {
            Some("shared") => SHARED_WINDOW,
            Some("local") => LOCAL_WINDOW,
            Some(_) => 0,
            None => return Err(op.unknown()),
        };
        let (_, of_cta) = (op.take("shared::cta"), op.take("cta"));
        let [d, a] = *args else { return Err(op.unknown()) };
        if kind.class() != Class::Wide || of_cta {
            return Err(op.unknown());
        }
        let (d, a) = (self.dst(d, Class::Wide)?, self.src(a, kind)?);
        self.run(map1(d, a, move |a: u64| a ^ window));
        Ok(())
    }
}

fn join_8(a: u8, b: u8) -> u16 {
    u16::from(a) | u16::from(b) << 8
}

fn join_16(a: u16, b: u16) -> u32 {
    u32::from(a) | u32::from(b) << 16
}

fn join_32(a: u32, b: u32) -> u64 {
    u64::from(a) | u64::from(b) << 32
}
