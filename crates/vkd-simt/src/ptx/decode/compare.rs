//! Comparisons, choices by a predicate, and logic.

use half::{bf16, f16};

use super::super::lanes::{Joined, Run, Value, compare, logic, map1, map2, select};
use super::super::rounding::flush;
use super::super::types::{Class, Type};
use super::Decoder;
use super::opcode::Opcode;
use crate::Fault;

const COMPARISONS: [&str; 18] = [
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu",
    "geu", "num", "nan",
];

/// What is compared, as an integer or a number.
trait Comparable: Value + PartialOrd {
    fn flushed(self) -> Self;
}

macro_rules! comparable {
    ($($kind:ty),*) => {$(
        impl Comparable for $kind {
            #[inline(always)]
            fn flushed(self) -> Self { self }
        }
    )*};
}

comparable!(u16, i16, u32, i32, u64, i64, f64, f16, bf16);

impl Comparable for f32 {
    #[inline(always)]
    fn flushed(self) -> Self {
        flush(self)
    }
}

type Outputs = [Option<u32>; 2];

/// The comparison of this name. Only a NaN is unordered, and it isn't equal to itself.
fn comparison<T: Comparable>(
    name: &str,
    out: Outputs,
    ab: [u32; 2],
    joined: Joined,
) -> Option<Run> {
    #[inline(always)]
    #[allow(clippy::eq_op, reason = "a NaN is what isn't equal to itself")]
    fn unordered<T: PartialEq + Copy>(a: T, b: T) -> bool {
        a != a || b != b
    }
    Some(match name {
        "eq" => compare(out, ab, joined, |a: T, b| a == b),
        "ne" => compare(out, ab, joined, |a: T, b| !unordered(a, b) && a != b),
        "lt" | "lo" => compare(out, ab, joined, |a: T, b| a < b),
        "le" | "ls" => compare(out, ab, joined, |a: T, b| a <= b),
        "gt" | "hi" => compare(out, ab, joined, |a: T, b| a > b),
        "ge" | "hs" => compare(out, ab, joined, |a: T, b| a >= b),
        "equ" => compare(out, ab, joined, |a: T, b| unordered(a, b) || a == b),
        "neu" => compare(out, ab, joined, |a: T, b| a != b),
        "ltu" => compare(out, ab, joined, |a: T, b| !(a >= b)),
        "leu" => compare(out, ab, joined, |a: T, b| !(a > b)),
        "gtu" => compare(out, ab, joined, |a: T, b| !(a <= b)),
        "geu" => compare(out, ab, joined, |a: T, b| !(a < b)),
        "num" => compare(out, ab, joined, |a: T, b| !unordered(a, b)),
        "nan" => compare(out, ab, joined, |a: T, b| unordered(a, b)),
        _ => return None,
    })
}

impl<'a> Decoder<'a> {
    pub(super) fn setp(&mut self, op: &mut Opcode<'a>, args: &[&'a str]) -> Result<(), Fault> {
        let kind = op.one_type()?;
        let [d, a, b, ref rest @ ..] = *args else { return Err(op.unknown()) };
        let (p, q) = match d.split_once('|') {
            Some((p, q)) => (p.trim(), Some(q.trim())),
            None => (d, None),
        };
        let p = if p == "_" { None } else { Some(self.dst(p, Class::Pred)?) };
        let q = match q {
            None | Some("_") => None,
            Some(q) => Some(self.dst(q, Class::Pred)?),
        };
        let joined = self.joined(op, rest)?;
        self.comparison(op, [p, q], [a, b], kind, joined)
    }

    fn joined(&mut self, op: &mut Opcode<'a>, rest: &[&'a str]) -> Result<Joined, Fault> {
        let join: fn(u32, u32) -> u32 = match op.one_of(&["and", "or", "xor"]) {
            None if rest.is_empty() => return Ok(None),
            Some("and") => |a, b| a & b,
            Some("or") => |a, b| a | b,
            Some("xor") => |a, b| a ^ b,
            _ => return Err(op.unknown()),
        };
        let [c] = *rest else { return Err(op.unknown()) };
        let (c, negated) = self.pred(c)?;
        Ok(Some((c, negated, join)))
    }

    fn comparison(
        &mut self,
        op: &mut Opcode<'a>,
        out: Outputs,
        [a, b]: [&'a str; 2],
        kind: Type,
        joined: Joined,
    ) -> Result<(), Fault> {
        let name = op.one_of(&COMPARISONS).ok_or_else(|| op.unknown())?;
        let flushed = op.take("ftz");
        if !kind.float() && !COMPARISONS[..10].contains(&name) {
            return Err(op.unknown());
        }
        let mut ab = [self.src(a, kind)?, self.src(b, kind)?];
        if flushed {
            if kind != Type::F32 {
                return Err(op.unknown());
            }
            for slot in &mut ab {
                let to = self.fresh(Class::Narrow)?;
                self.run(map1(to, *slot, f32::flushed));
                *slot = to;
            }
        }
        let run = match kind {
            Type::S16 => comparison::<i16>(name, out, ab, joined),
            Type::U16 | Type::B16 => comparison::<u16>(name, out, ab, joined),
            Type::S32 => comparison::<i32>(name, out, ab, joined),
            Type::U32 | Type::B32 => comparison::<u32>(name, out, ab, joined),
            Type::S64 => comparison::<i64>(name, out, ab, joined),
            Type::U64 | Type::B64 => comparison::<u64>(name, out, ab, joined),
            Type::F32 => comparison::<f32>(name, out, ab, joined),
            Type::F64 => comparison::<f64>(name, out, ab, joined),
            Type::F16 => comparison::<f16>(name, out, ab, joined),
            Type::Bf16 => comparison::<bf16>(name, out, ab, joined),
            _ => None,
        };
        self.run(run.ok_or_else(|| op.unknown())?);
        Ok(())
    }

    /// `set.gt.f32.f32`: one or zero as a number, all bits or none as an integer.
    pub(super) fn set(&mut self, op: &mut Opcode<'a>, args: &[&'a str]) -> Result<(), Fault> {
        let [to, from] = op.types()[..] else { return Err(op.unknown()) };
        let [d, a, b, ref rest @ ..] = *args else { return Err(op.unknown()) };
        let joined = self.joined(op, rest)?;
        let pred = self.fresh(Class::Pred)?;
        self.comparison(op, [Some(pred), None], [a, b], from, joined)?;
        let one = match to {
            Type::F32 => u64::from(1f32.to_bits()),
            Type::F16 => u64::from(f16::ONE.to_bits()),
            Type::Bf16 => u64::from(bf16::ONE.to_bits()),
            Type::U32 | Type::S32 => u64::from(u32::MAX),
            Type::U16 | Type::S16 => u64::from(u16::MAX),
            _ => return Err(op.unknown()),
        };
        let (yes, no) = (self.constant(Class::Narrow, one)?, self.constant(Class::Narrow, 0)?);
        let d = self.dst(d, Class::Narrow)?;
        self.run(select::<u32>(d, [yes, no], pred));
        Ok(())
    }

    pub(super) fn selp(&mut self, op: &mut Opcode<'a>, args: &[&'a str]) -> Result<(), Fault> {
        let kind = op.one_type()?;
        let [d, a, b, c] = *args else { return Err(op.unknown()) };
        let d = self.dst(d, kind.class())?;
        let mut ab = [self.src(a, kind)?, self.src(b, kind)?];
        let (c, negated) = self.pred(c)?;
        if negated {
            ab.reverse();
        }
        match kind.class() {
            Class::Narrow => self.run(select::<u32>(d, ab, c)),
            Class::Wide => self.run(select::<u64>(d, ab, c)),
            Class::Pred => return Err(op.unknown()),
        }
        Ok(())
    }

    pub(super) fn logic(&mut self, op: &mut Opcode<'a>, args: &[&'a str]) -> Result<(), Fault> {
        let kind = op.one_type()?;
        let (d, ab) = match (op.name, args) {
            ("not" | "cnot", [d, a]) => {
                let (d, a) = (self.dst(d, kind.class())?, self.src(a, kind)?);
                (d, [a, a])
            }
            ("and" | "or" | "xor", [d, a, b]) => {
                let d = self.dst(d, kind.class())?;
                (d, [self.src(a, kind)?, self.src(b, kind)?])
            }
            _ => return Err(op.unknown()),
        };
        let run = match (op.name, kind) {
            ("and", Type::Pred) => logic(d, ab, |a, b| a & b),
            ("or", Type::Pred) => logic(d, ab, |a, b| a | b),
            ("xor", Type::Pred) => logic(d, ab, |a, b| a ^ b),
            ("not", Type::Pred) => logic(d, ab, |a, _| !a),
            ("and", Type::B16 | Type::B32) => map2(d, ab, |a: u32, b: u32| a & b),
            ("or", Type::B16 | Type::B32) => map2(d, ab, |a: u32, b: u32| a | b),
            ("xor", Type::B16 | Type::B32) => map2(d, ab, |a: u32, b: u32| a ^ b),
            ("not", Type::B16) => map1(d, ab[0], |a: u16| !a),
            ("not", Type::B32) => map1(d, ab[0], |a: u32| !a),
            ("cnot", Type::B32) => map1(d, ab[0], |a: u32| u32::from(a == 0)),
            ("and", Type::B64) => map2(d, ab, |a: u64, b: u64| a & b),
            ("or", Type::B64) => map2(d, ab, |a: u64, b: u64| a | b),
            ("xor", Type::B64) => map2(d, ab, |a: u64, b: u64| a ^ b),
            ("not", Type::B64) => map1(d, ab[0], |a: u64| !a),
            ("cnot", Type::B64) => map1(d, ab[0], |a: u64| u64::from(a == 0)),
            _ => return Err(op.unknown()),
        };
        self.run(run);
        Ok(())
    }
}
