//! `cvt`: between integers, numbers and half types, each rounded once.

use half::{bf16, f16};

use super::super::lanes::{Run, Value, map1, map2};
use super::super::rounding::{Half, Rounding, flush, int_to_f32, int_to_f64, narrow, whole};
use super::super::types::{Class, Type};
use super::Decoder;
use super::float::{saturate_f32, saturate_f64};
use super::opcode::Opcode;
use crate::Fault;

/// An integer as it's read: the low bits of a register's word, with their sign or without.
#[inline(always)]
fn extend(word: u64, bits: u32, signed: bool) -> i64 {
    let shift = 64 - bits;
    if signed { ((word << shift) as i64) >> shift } else { ((word << shift) >> shift) as i64 }
}

/// The integer that `extend` made, whole.
fn exact(value: i64, signed: bool) -> i128 {
    if signed { i128::from(value) } else { i128::from(value as u64) }
}

/// The least and the greatest of an integer type.
fn range(kind: Type) -> (i128, i128) {
    let bits = kind.bytes() as u32 * 8;
    if kind.signed() { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

/// A number as it's read.
trait Number: Value {
    const BITS_64: bool;
    fn double(self) -> f64;
}

impl Number for f32 {
    const BITS_64: bool = false;
    fn double(self) -> f64 {
        f64::from(self)
    }
}

impl Number for f64 {
    const BITS_64: bool = true;
    fn double(self) -> f64 {
        self
    }
}

impl Number for f16 {
    const BITS_64: bool = false;
    fn double(self) -> f64 {
        self.wide()
    }
}

impl Number for bf16 {
    const BITS_64: bool = false;
    fn double(self) -> f64 {
        self.wide()
    }
}

impl<'a> Decoder<'a> {
    pub(super) fn cvt(&mut self, op: &mut Opcode<'a>, args: &[&'a str]) -> Result<(), Fault> {
        let [to, from] = op.types()[..] else { return Err(op.unknown()) };
        if let [d, a, b] = *args {
            return self.cvt_pair(op, [d, a, b], to, from);
        }
        let [d, a] = *args else { return Err(op.unknown()) };
        let saturated = op.take("sat");
        let run = match (to.float(), from.float()) {
            (false, false) => self.integers(d, a, to, from, saturated)?,
            (true, false) => {
                let rounding = op.rounding().ok_or_else(|| op.unknown())?;
                if saturated {
                    return Err(op.unknown());
                }
                self.integer_to_number(op, d, a, [to, from], rounding)?
            }
            (false, true) => {
                let rounding = op.whole_rounding().ok_or_else(|| op.unknown())?;
                let flushed = op.take("ftz");
                self.number_to_integer(op, d, a, [to, from], rounding, flushed)?
            }
            (true, true) => return self.numbers_cvt(op, d, a, [to, from], saturated),
        };
        self.run(run);
        Ok(())
    }

    fn integers(
        &mut self,
        d: &str,
        a: &str,
        to: Type,
        from: Type,
        saturated: bool,
    ) -> Result<Run, Fault> {
        let (a, a_wide) = self.loose_src(a, from)?;
        let register = self.register(d)?;
        let d = register.slot;
        if !saturated {
            match (to.bytes(), from, a_wide, register.class) {
                (8, Type::U32, false, Class::Wide) => return Ok(map1(d, a, |a: u32| u64::from(a))),
                (8, Type::S32, false, Class::Wide) => return Ok(map1(d, a, |a: i32| i64::from(a))),
                (4, _, true, Class::Narrow) if from.bytes() == 8 && register.bytes == 4 => {
                    return Ok(map1(d, a, |a: u64| a as u32));
                }
                (4, Type::U16, false, Class::Narrow) => {
                    return Ok(map1(d, a, |a: u16| u32::from(a)));
                }
                _ => {}
            }
        }
        let (bits, signed) = (from.bytes() as u32 * 8, from.signed());
        let (least, most) = range(to);
        // Cut to its type, then with its sign to the register's width.
        let (kept, held) = (to.bytes() as u32 * 8, register.bytes as u32 * 8);
        let to_signed = to.signed();
        let f = move |word: u64| {
            let mut value = extend(word, bits, signed);
            if saturated {
                value = exact(value, signed).clamp(least, most) as i64;
            }
            extend(extend(value as u64, kept, to_signed) as u64, held, false) as u64
        };
        Ok(match (a_wide, register.class) {
            (false, Class::Narrow) => map1(d, a, move |a: u32| f(a.into()) as u32),
            (false, _) => map1(d, a, move |a: u32| f(a.into())),
            (true, Class::Narrow) => map1(d, a, move |a: u64| f(a) as u32),
            (true, _) => map1(d, a, f),
        })
    }

    fn integer_to_number(
        &mut self,
        op: &Opcode<'a>,
        d: &str,
        a: &str,
        [to, from]: [Type; 2],
        rounding: Rounding,
    ) -> Result<Run, Fault> {
        let (a, wide) = self.loose_src(a, from)?;
        let d = self.dst(d, to.class())?;
        let (bits, signed) = (from.bytes() as u32 * 8, from.signed());
        let nearest = rounding == Rounding::Nearest;
        let read = move |word: u64| exact(extend(word, bits, signed), signed);
        Ok(match (to, from, wide) {
            (Type::F32, Type::S32, false) if nearest => map1(d, a, |a: i32| a as f32),
            (Type::F32, Type::U32, false) if nearest => map1(d, a, |a: u32| a as f32),
            (Type::F64, Type::S32, false) => map1(d, a, |a: i32| f64::from(a)),
            (Type::F64, Type::U32, false) => map1(d, a, |a: u32| f64::from(a)),
            (Type::F64, Type::S64, true) if nearest => map1(d, a, |a: i64| a as f64),
            (Type::F64, Type::U64, true) if nearest => map1(d, a, |a: u64| a as f64),
            (Type::F32, _, false) => map1(d, a, move |a: u32| int_to_f32(read(a.into()), rounding)),
            (Type::F32, _, true) => map1(d, a, move |a: u64| int_to_f32(read(a), rounding)),
            (Type::F64, _, false) => map1(d, a, move |a: u32| int_to_f64(read(a.into()), rounding)),
            (Type::F64, _, true) => map1(d, a, move |a: u64| int_to_f64(read(a), rounding)),
            (Type::F16, _, false) if nearest => {
                map1(d, a, move |a: u32| f16::of_f64(odd_int(read(a.into()))))
            }
            (Type::F16, _, true) if nearest => map1(d, a, move |a| f16::of_f64(odd_int(read(a)))),
            (Type::Bf16, _, false) if nearest => {
                map1(d, a, move |a: u32| bf16::of_f64(odd_int(read(a.into()))))
            }
            (Type::Bf16, _, true) if nearest => map1(d, a, move |a| bf16::of_f64(odd_int(read(a)))),
            _ => return Err(op.unknown()),
        })
    }

    fn number_to_integer(
        &mut self,
        op: &Opcode<'a>,
        d: &str,
        a: &str,
        [to, from]: [Type; 2],
        rounding: Rounding,
        flushed: bool,
    ) -> Result<Run, Fault> {
        let a = self.src(a, from)?;
        let register = self.register(d)?;
        let d = register.slot;
        let wide = register.class == Class::Wide;
        Ok(match from {
            Type::F32 if flushed => {
                let f = whole_number::<f32>(to, register.bytes, rounding);
                let f = move |a: f32| f(flush(a));
                if wide { map1(d, a, f) } else { map1(d, a, move |a| f(a) as u32) }
            }
            Type::F32 => to_register::<f32>(d, a, wide, whole_number(to, register.bytes, rounding)),
            Type::F64 => to_register::<f64>(d, a, wide, whole_number(to, register.bytes, rounding)),
            Type::F16 => to_register::<f16>(d, a, wide, whole_number(to, register.bytes, rounding)),
            Type::Bf16 => {
                to_register::<bf16>(d, a, wide, whole_number(to, register.bytes, rounding))
            }
            _ => return Err(op.unknown()),
        })
    }

    fn numbers_cvt(
        &mut self,
        op: &mut Opcode<'a>,
        d: &str,
        a: &str,
        [to, from]: [Type; 2],
        saturated: bool,
    ) -> Result<(), Fault> {
        let (to_whole, rounding) = (op.whole_rounding(), op.rounding());
        let flushed = op.take("ftz");
        let (mut a, d) = (self.src(a, from)?, self.dst(d, to.class())?);
        if flushed && from == Type::F32 {
            let copy = self.fresh(Class::Narrow)?;
            self.run(map1(copy, a, flush));
            a = copy;
        }
        let nearest = matches!(rounding, None | Some(Rounding::Nearest));
        let run = match (to, from) {
            (Type::F32, Type::F32) => match to_whole {
                Some(r) => map1(d, a, move |a: f32| whole(a.into(), r) as f32),
                None => map1(d, a, |a: f32| a),
            },
            (Type::F64, Type::F64) => match to_whole {
                Some(r) => map1(d, a, move |a: f64| whole(a, r)),
                None => map1(d, a, |a: f64| a),
            },
            _ if to_whole.is_some() => return Err(op.unknown()),
            (Type::F64, Type::F32) => map1(d, a, |a: f32| f64::from(a)),
            (Type::F32, Type::F64) => match rounding.ok_or_else(|| op.unknown())? {
                Rounding::Nearest => map1(d, a, |a: f64| a as f32),
                r => map1(d, a, move |a: f64| narrow(a, 0., r)),
            },
            (Type::F32, Type::F16) => map1(d, a, |a: f16| a.to_f32()),
            (Type::F32, Type::Bf16) => map1(d, a, |a: bf16| a.to_f32()),
            (Type::F64, Type::F16) => map1(d, a, |a: f16| a.wide()),
            (Type::F64, Type::Bf16) => map1(d, a, |a: bf16| a.wide()),
            (Type::F16, Type::F32) if nearest => map1(d, a, f16::from_f32),
            (Type::Bf16, Type::F32) if nearest => map1(d, a, bf16::from_f32),
            (Type::F16, Type::F64) if nearest => map1(d, a, f16::of_f64),
            (Type::Bf16, Type::F64) if nearest => map1(d, a, bf16::of_f64),
            (Type::F16, Type::Bf16) if nearest => map1(d, a, |a: bf16| f16::of_f64(a.wide())),
            (Type::Bf16, Type::F16) if nearest => map1(d, a, |a: f16| bf16::of_f64(a.wide())),
            _ => return Err(op.unknown()),
        };
        self.run(run);
        if flushed && to == Type::F32 {
            self.run(map1(d, d, flush));
        }
        match to {
            _ if !saturated => {}
            Type::F32 => self.run(map1(d, d, saturate_f32)),
            Type::F64 => self.run(map1(d, d, saturate_f64)),
            _ => return Err(op.unknown()),
        }
        Ok(())
    }

    /// Two numbers into one word, the first of them above.
    fn cvt_pair(
        &mut self,
        op: &mut Opcode<'a>,
        [d, a, b]: [&str; 3],
        to: Type,
        from: Type,
    ) -> Result<(), Fault> {
        if op.rounding() != Some(Rounding::Nearest) || from != Type::F32 {
            return Err(op.unknown());
        }
        let d = self.dst(d, Class::Narrow)?;
        let ab = [self.src(a, from)?, self.src(b, from)?];
        self.run(match to {
            Type::F16x2 => map2(d, ab, |a, b| [f16::from_f32(b), f16::from_f32(a)]),
            Type::Bf16x2 => map2(d, ab, |a, b| [bf16::from_f32(b), bf16::from_f32(a)]),
            _ => return Err(op.unknown()),
        });
        Ok(())
    }
}

/// An integer as f64 with its last bit set where it isn't exact, so that a second rounding to few bits is the only one.
fn odd_int(x: i128) -> f64 {
    let cut = int_to_f64(x, Rounding::Zero);
    if cut as i128 == x { cut } else { f64::from_bits(cut.to_bits() | 1) }
}

fn to_register<N: Number>(
    d: u32,
    a: u32,
    wide: bool,
    f: impl Fn(N) -> u64 + Copy + Send + Sync + 'static,
) -> Run {
    if wide { map1(d, a, f) } else { map1(d, a, move |a: N| f(a) as u32) }
}

/// A number as an integer's bits: rounded, then the nearest that the type has. No number is zero, or the highest bit alone where 64 bits
/// are read or written.
fn whole_number<N: Number>(
    to: Type,
    register_bytes: usize,
    rounding: Rounding,
) -> impl Fn(N) -> u64 + Copy + Send + Sync + 'static {
    let (least, most) = range(to);
    let bits = to.bytes() as u32 * 8;
    let none = if N::BITS_64 || bits == 64 { 1u64 << (bits - 1) } else { 0 };
    let (signed, held) = (to.signed(), register_bytes as u32 * 8);
    move |x: N| {
        let x = x.double();
        let value = if x.is_nan() {
            extend(none, bits, signed)
        } else {
            let x = whole(x, rounding);
            match (bits, signed) {
                (64, true) => x as i64,
                (64, false) => x as u64 as i64,
                _ => (x as i64).clamp(least as i64, most as i64),
            }
        };
        extend(value as u64, held, false) as u64
    }
}
