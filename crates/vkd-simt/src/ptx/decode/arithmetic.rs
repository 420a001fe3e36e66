//! Sums, products and quotients of integers; those of numbers are in their own files.

use super::super::lanes::{Run, carried, map1, map2, map3};
use super::super::types::{Class, Type};
use super::Decoder;
use super::opcode::Opcode;
use crate::Fault;

/// Which part of a product.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Low,
    High,
    Wide,
}

/// `$make!` with Rust's type for an integer type of PTX.
macro_rules! by_integer {
    ($kind:expr, $run:ident) => {
        match $kind {
            Type::U16 | Type::B16 => $run!(u16),
            Type::S16 => $run!(i16),
            Type::U32 | Type::B32 => $run!(u32),
            Type::S32 => $run!(i32),
            Type::U64 | Type::B64 => $run!(u64),
            Type::S64 => $run!(i64),
            _ => None,
        }
    };
}

impl<'a> Decoder<'a> {
    pub(super) fn arithmetic(
        &mut self,
        op: &mut Opcode<'a>,
        args: &[&'a str],
    ) -> Result<(), Fault> {
        let kind = op.one_type()?;
        match kind {
            Type::F32 | Type::F64 => return self.float(op, args, kind),
            _ if kind.float() => return self.half(op, args, kind),
            _ => {}
        }
        let part = match op.one_of(&["lo", "hi", "wide"]) {
            Some("hi") => Part::High,
            Some("wide") => Part::Wide,
            _ => Part::Low,
        };
        let (keep, saturated) = (op.take("cc"), op.take("sat"));
        let [d, ref sources @ ..] = *args else { return Err(op.unknown()) };
        let wide = part == Part::Wide;
        let d = self.dst(d, if wide { wider(op, kind)? } else { kind.class() })?;
        let mut slots = Vec::new();
        for (at, text) in sources.iter().enumerate() {
            // What is added to a wide product is as wide.
            let kind = if wide && at == 2 { double(op, kind)? } else { kind };
            slots.push(self.src(text, kind)?);
        }
        let carry = keep || op.name.ends_with('c');
        let run = match slots[..] {
            _ if saturated && (carry || kind != Type::S32) => None,
            [a, b] if saturated && op.name == "add" => {
                Some(map2(d, [a, b], |a: i32, b: i32| a.saturating_add(b)))
            }
            [a, b] if saturated && op.name == "sub" => {
                Some(map2(d, [a, b], |a: i32, b: i32| a.saturating_sub(b)))
            }
            _ if saturated => None,
            [a, b] if carry => with_carry(op.name, d, [a, b, b], kind, part, keep),
            [a, b, c] if carry => with_carry(op.name, d, [a, b, c], kind, part, keep),
            [a] => one(op.name, d, a, kind),
            [a, b] if op.name == "mul" => product(d, [a, b], kind, part),
            [a, b] => two(op.name, d, [a, b], kind),
            [a, b, c] if op.name == "mad" => mad(d, [a, b, c], kind, part),
            _ => None,
        };
        self.run(run.ok_or_else(|| op.unknown())?);
        Ok(())
    }
}

fn double(op: &Opcode<'_>, kind: Type) -> Result<Type, Fault> {
    match kind {
        Type::U16 => Ok(Type::U32),
        Type::S16 => Ok(Type::S32),
        Type::U32 => Ok(Type::U64),
        Type::S32 => Ok(Type::S64),
        _ => Err(op.unknown()),
    }
}

fn wider(op: &Opcode<'_>, kind: Type) -> Result<Class, Fault> {
    Ok(double(op, kind)?.class())
}

fn one(name: &str, d: u32, a: u32, kind: Type) -> Option<Run> {
    macro_rules! neg {
        ($t:ty) => {
            Some(map1(d, a, |a: $t| a.wrapping_neg()))
        };
    }
    match (name, kind) {
        ("neg", _) => by_integer!(kind, neg),
        ("abs", Type::S16) => Some(map1(d, a, i16::wrapping_abs)),
        ("abs", Type::S32) => Some(map1(d, a, i32::wrapping_abs)),
        ("abs", Type::S64) => Some(map1(d, a, i64::wrapping_abs)),
        _ => None,
    }
}

/// A quotient by zero has every bit set, and the rest is the dividend; the device doesn't say.
fn two(name: &str, d: u32, ab: [u32; 2], kind: Type) -> Option<Run> {
    macro_rules! run {
        ($t:ty) => {
            match name {
                "add" => Some(map2(d, ab, |a: $t, b: $t| a.wrapping_add(b))),
                "sub" => Some(map2(d, ab, |a: $t, b: $t| a.wrapping_sub(b))),
                "min" => Some(map2(d, ab, |a: $t, b: $t| a.min(b))),
                "max" => Some(map2(d, ab, |a: $t, b: $t| a.max(b))),
                "div" => {
                    Some(map2(d, ab, |a: $t, b: $t| if b == 0 { !0 } else { a.wrapping_div(b) }))
                }
                "rem" => {
                    Some(map2(d, ab, |a: $t, b: $t| if b == 0 { a } else { a.wrapping_rem(b) }))
                }
                _ => None,
            }
        };
    }
    by_integer!(kind, run)
}

/// The upper half of a product.
trait High: Sized {
    fn high(self, other: Self) -> Self;
}

macro_rules! high {
    ($($t:ty, $wide:ty;)*) => {$(
        impl High for $t {
            #[inline(always)]
            fn high(self, other: Self) -> Self {
                ((<$wide>::from(self) * <$wide>::from(other)) >> <$t>::BITS) as $t
            }
        }
    )*};
}

high! { u16, u32; i16, i32; u32, u64; i32, i64; u64, u128; i64, i128; }

fn product(d: u32, ab: [u32; 2], kind: Type, part: Part) -> Option<Run> {
    macro_rules! run {
        ($t:ty) => {
            match part {
                Part::High => Some(map2(d, ab, |a: $t, b: $t| a.high(b))),
                _ => Some(map2(d, ab, |a: $t, b: $t| a.wrapping_mul(b))),
            }
        };
    }
    match (part, kind) {
        (Part::Wide, Type::U16) => Some(map2(d, ab, |a: u16, b: u16| u32::from(a) * u32::from(b))),
        (Part::Wide, Type::S16) => Some(map2(d, ab, |a: i16, b: i16| i32::from(a) * i32::from(b))),
        (Part::Wide, Type::U32) => Some(map2(d, ab, |a: u32, b: u32| u64::from(a) * u64::from(b))),
        (Part::Wide, Type::S32) => Some(map2(d, ab, |a: i32, b: i32| i64::from(a) * i64::from(b))),
        (Part::Wide, _) => None,
        _ => by_integer!(kind, run),
    }
}

fn mad(d: u32, abc: [u32; 3], kind: Type, part: Part) -> Option<Run> {
    macro_rules! run {
        ($t:ty) => {
            match part {
                Part::High => Some(map3(d, abc, |a: $t, b: $t, c: $t| a.high(b).wrapping_add(c))),
                _ => Some(map3(d, abc, |a: $t, b: $t, c: $t| a.wrapping_mul(b).wrapping_add(c))),
            }
        };
    }
    macro_rules! wide {
        ($t:ty, $w:ty) => {
            Some(map3(d, abc, |a: $t, b: $t, c: $w| {
                (<$w>::from(a) * <$w>::from(b)).wrapping_add(c)
            }))
        };
    }
    match (part, kind) {
        (Part::Wide, Type::U16) => wide!(u16, u32),
        (Part::Wide, Type::S16) => wide!(i16, i32),
        (Part::Wide, Type::U32) => wide!(u32, u64),
        (Part::Wide, Type::S32) => wide!(i32, i64),
        (Part::Wide, _) => None,
        _ => by_integer!(kind, run),
    }
}

/// `add.cc`, `subc`, `madc.hi.cc` and the like: the sum's carry is kept in the lane's flag, and read by those that end in `c`.
fn with_carry(
    name: &str,
    d: u32,
    abc: [u32; 3],
    kind: Type,
    part: Part,
    keep: bool,
) -> Option<Run> {
    let flags = [name.ends_with('c'), keep];
    // A product's upper half knows signs; a sum's carry is that of the bits.
    macro_rules! run {
        ($t:ty, $u:ty) => {
            match (name, part) {
                ("add" | "addc", Part::Low) => {
                    Some(carried(d, abc, flags, |a: $u, b: $u, _: $u, carry| {
                        let (sum, first) = a.overflowing_add(b);
                        let (sum, second) = sum.overflowing_add(<$u>::from(carry));
                        (sum, first | second)
                    }))
                }
                ("sub" | "subc", Part::Low) => {
                    Some(carried(d, abc, flags, |a: $u, b: $u, _: $u, borrow| {
                        let (rest, first) = a.overflowing_sub(b);
                        let (rest, second) = rest.overflowing_sub(<$u>::from(borrow));
                        (rest, first | second)
                    }))
                }
                ("mad" | "madc", Part::Low | Part::High) => {
                    let high = part == Part::High;
                    Some(carried(d, abc, flags, move |a: $u, b: $u, c: $u, carry| {
                        let product =
                            if high { (a as $t).high(b as $t) as $u } else { a.wrapping_mul(b) };
                        let (sum, first) = product.overflowing_add(c);
                        let (sum, second) = sum.overflowing_add(<$u>::from(carry));
                        (sum, first | second)
                    }))
                }
                _ => None,
            }
        };
    }
    match kind {
        Type::U32 | Type::B32 => run!(u32, u32),
        Type::S32 => run!(i32, u32),
        Type::U64 | Type::B64 => run!(u64, u64),
        Type::S64 => run!(i64, u64),
        _ => None,
    }
}
