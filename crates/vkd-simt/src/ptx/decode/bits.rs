//! Shifts, fields of bits and counts of bits.

use super::super::lanes::{Run, map1, map2, map3, map4};
use super::super::types::{Class, Type};
use super::Decoder;
use super::opcode::Opcode;
use crate::Fault;

impl<'a> Decoder<'a> {
    pub(super) fn bits(&mut self, op: &mut Opcode<'a>, args: &[&'a str]) -> Result<(), Fault> {
        let kinds = op.types();
        let kind = *kinds.first().ok_or_else(|| op.unknown())?;
        if kinds.len() != if op.name == "dp4a" { 2 } else { 1 } {
            return Err(op.unknown());
        }
        let [d, ref sources @ ..] = *args else { return Err(op.unknown()) };
        let counts = matches!(op.name, "clz" | "popc" | "bfind");
        let d = self.dst(d, if counts { Class::Narrow } else { kind.class() })?;
        let mut slots = Vec::new();
        for (at, text) in sources.iter().enumerate() {
            // How far, from where and how many are 32 bits.
            let amount = match op.name {
                "shl" | "shr" => at == 1,
                "bfe" => at >= 1,
                "bfi" => at >= 2,
                "lop3" => at == 3,
                _ => false,
            };
            slots.push(self.src(text, if amount { Type::U32 } else { kind })?);
        }
        let run = match (op.name, &slots[..]) {
            ("shl" | "shr", [a, b]) => shift(op.name, d, [*a, *b], kind),
            ("shf", [a, b, c]) => funnel(op, d, [*a, *b, *c]),
            ("bfe", [a, b, c]) => extract(d, [*a, *b, *c], kind),
            ("bfi", [a, b, c, e]) => insert(d, [*a, *b, *c, *e], kind),
            ("bfind", [a]) => {
                let amount = op.take("shiftamt");
                find(d, *a, kind, amount)
            }
            ("prmt", [a, b, c]) => Some(map3(d, [*a, *b, *c], permute)),
            ("lop3", [a, b, c, e]) => Some(map4(d, [*a, *b, *c, *e], logic_of_three)),
            ("dp4a", [a, b, c]) => dot(d, [*a, *b, *c], &kinds),
            (name, [a]) => count(name, d, *a, kind),
            _ => None,
        };
        self.run(run.ok_or_else(|| op.unknown())?);
        Ok(())
    }
}

/// By as many bits as there are, or more, nothing but the sign is left.
fn shift(name: &str, d: u32, ab: [u32; 2], kind: Type) -> Option<Run> {
    macro_rules! left {
        ($t:ty) => {
            map2(d, ab, |a: $t, by: u32| if by < <$t>::BITS { a << by } else { 0 })
        };
    }
    macro_rules! right {
        ($t:ty, $past:expr) => {
            map2(d, ab, |a: $t, by: u32| a >> by.min($past))
        };
    }
    macro_rules! logical {
        ($t:ty) => {
            map2(d, ab, |a: $t, by: u32| if by < <$t>::BITS { a >> by } else { 0 })
        };
    }
    Some(match (name, kind) {
        ("shl", Type::B16) => left!(u16),
        ("shl", Type::B32) => left!(u32),
        ("shl", Type::B64) => left!(u64),
        ("shr", Type::B16 | Type::U16) => logical!(u16),
        ("shr", Type::B32 | Type::U32) => logical!(u32),
        ("shr", Type::B64 | Type::U64) => logical!(u64),
        ("shr", Type::S16) => right!(i16, 15),
        ("shr", Type::S32) => right!(i32, 31),
        ("shr", Type::S64) => right!(i64, 63),
        _ => return None,
    })
}

fn funnel(op: &mut Opcode<'_>, d: u32, abc: [u32; 3]) -> Option<Run> {
    let left = op.one_of(&["l", "r"])? == "l";
    let wraps = op.one_of(&["wrap", "clamp"])? == "wrap";
    Some(map3(d, abc, move |low: u32, high: u32, by: u32| {
        let by = if wraps { by & 31 } else { by.min(32) };
        let both = u64::from(high) << 32 | u64::from(low);
        if left { ((both << by) >> 32) as u32 } else { (both >> by) as u32 }
    }))
}

fn extract(d: u32, abc: [u32; 3], kind: Type) -> Option<Run> {
    /// The field's bits; the sign is the field's highest bit, or the number's where the field reaches past it.
    fn field(a: u64, from: u32, count: u32, bits: u32, signed: bool) -> u64 {
        let (from, count) = (from & 0xFF, count & 0xFF);
        if count == 0 {
            return 0;
        }
        let top = (from + count - 1).min(bits - 1);
        let sign = signed && a >> top & 1 == 1;
        let have = if from >= bits { 0 } else { a >> from };
        let kept = if from >= bits { 0 } else { count.min(bits - from) };
        let mask = if kept >= 64 { u64::MAX } else { (1 << kept) - 1 };
        have & mask | if sign { !mask } else { 0 }
    }
    Some(match kind {
        Type::U32 => map3(d, abc, |a: u32, b: u32, c: u32| field(a.into(), b, c, 32, false) as u32),
        Type::S32 => map3(d, abc, |a: u32, b: u32, c: u32| field(a.into(), b, c, 32, true) as u32),
        Type::U64 => map3(d, abc, |a: u64, b: u32, c: u32| field(a, b, c, 64, false)),
        Type::S64 => map3(d, abc, |a: u64, b: u32, c: u32| field(a, b, c, 64, true)),
        _ => return None,
    })
}

/// `b` with the lowest bits of `a` in a field of its own.
fn insert(d: u32, abce: [u32; 4], kind: Type) -> Option<Run> {
    fn field(a: u64, b: u64, from: u32, count: u32) -> u64 {
        let (from, count) = (from & 0xFF, count & 0xFF);
        let ones = if count >= 64 { u64::MAX } else { (1 << count) - 1 };
        if from >= 64 { b } else { b & !(ones << from) | (a & ones) << from }
    }
    Some(match kind {
        Type::B32 => map4(d, abce, |a: u32, b: u32, from: u32, count: u32| {
            field(a.into(), b.into(), from, count) as u32
        }),
        Type::B64 => {
            map4(d, abce, |a: u64, b: u64, from: u32, count: u32| field(a, b, from, count))
        }
        _ => return None,
    })
}

/// The place of the highest bit that isn't the sign, or how far it's from the top; every bit set if there is none.
fn find(d: u32, a: u32, kind: Type, amount: bool) -> Option<Run> {
    macro_rules! find {
        ($t:ty, |$x:ident| $bits:expr) => {
            Some(map1(d, a, move |$x: $t| {
                let zeros = $bits.leading_zeros();
                let bits = <$t>::BITS;
                match (zeros == bits, amount) {
                    (true, _) => u32::MAX,
                    (_, true) => zeros,
                    _ => bits - 1 - zeros,
                }
            }))
        };
    }
    match kind {
        Type::U32 => find!(u32, |x| x),
        Type::S32 => find!(i32, |x| (if x < 0 { !x } else { x })),
        Type::U64 => find!(u64, |x| x),
        Type::S64 => find!(i64, |x| (if x < 0 { !x } else { x })),
        _ => None,
    }
}

/// Four bytes chosen out of eight, each perhaps as its sign only.
fn permute(a: u32, b: u32, choice: u32) -> u32 {
    let all = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
    let byte = |at: u32| {
        let nibble = choice >> (4 * at) & 15;
        let byte = all[(nibble & 7) as usize];
        if nibble & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 }
    };
    u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
}

/// For each bit, the table's bit of the number that the three make.
fn logic_of_three(a: u32, b: u32, c: u32, table: u32) -> u32 {
    (0..8).filter(|at| table >> at & 1 == 1).fold(0, |out, at| {
        let of = |word: u32, bit: u32| if at >> bit & 1 == 1 { word } else { !word };
        out | of(a, 2) & of(b, 1) & of(c, 0)
    })
}

/// Four products of bytes, summed.
fn dot(d: u32, abc: [u32; 3], kinds: &[Type]) -> Option<Run> {
    let signed = match kinds {
        [Type::S32, Type::S32] => [true, true],
        [Type::S32, Type::U32] => [true, false],
        [Type::U32, Type::S32] => [false, true],
        [Type::U32, Type::U32] => [false, false],
        _ => return None,
    };
    Some(map3(d, abc, move |a: u32, b: u32, c: u32| {
        let part = |word: u32, at: u32, signed: bool| {
            let byte = (word >> (8 * at)) as u8;
            if signed { i32::from(byte as i8) } else { i32::from(byte) }
        };
        (0..4).fold(c, |sum, at| {
            sum.wrapping_add((part(a, at, signed[0]) * part(b, at, signed[1])) as u32)
        })
    }))
}

fn count(name: &str, d: u32, a: u32, kind: Type) -> Option<Run> {
    Some(match (name, kind) {
        ("brev", Type::B32) => map1(d, a, |a: u32| a.reverse_bits()),
        ("brev", Type::B64) => map1(d, a, |a: u64| a.reverse_bits()),
        ("clz", Type::B32) => map1(d, a, |a: u32| a.leading_zeros()),
        ("clz", Type::B64) => map1(d, a, |a: u64| a.leading_zeros()),
        ("popc", Type::B32) => map1(d, a, |a: u32| a.count_ones()),
        ("popc", Type::B64) => map1(d, a, |a: u64| a.count_ones()),
        _ => return None,
    })
}
