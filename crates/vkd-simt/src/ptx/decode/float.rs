//! Numbers of 32 and 64 bits. What the device makes approximately is rounded correctly here (but for the low half of f64's reciprocals): a
//! device's own results differ by a few units in the last place.

use super::super::lanes::{Run, Value, map1, map2, map3};
use super::super::rounding::{
    Rounding, add_f32, add_f64, div_f32, flush, fma_f32, mul_f32, mul_f64,
};
use super::super::types::{Class, Type};
use super::Decoder;
use super::opcode::Opcode;
use crate::Fault;

/// The smaller of two: of zeros the negative one, of a number and a NaN the number.
#[inline(always)]
pub(super) fn lesser<T: PartialOrd + Copy>(a: T, b: T, negative: impl Fn(T) -> bool) -> T {
    let least = if a < b || a == b && negative(a) { a } else { b };
    if is_nan(a) {
        b
    } else if is_nan(b) {
        a
    } else {
        least
    }
}

/// The larger of two, likewise.
#[inline(always)]
pub(super) fn greater<T: PartialOrd + Copy>(a: T, b: T, negative: impl Fn(T) -> bool) -> T {
    let most = if a > b || a == b && !negative(a) { a } else { b };
    if is_nan(a) {
        b
    } else if is_nan(b) {
        a
    } else {
        most
    }
}

#[inline(always)]
#[allow(clippy::eq_op, reason = "a NaN is what isn't equal to itself")]
pub(super) fn is_nan<T: PartialEq + Copy>(a: T) -> bool {
    a != a
}

/// Between zero and one; a NaN is zero.
#[inline(always)]
pub(super) fn saturate_f32(x: f32) -> f32 {
    if x > 0. { if x < 1. { x } else { 1. } } else { 0. }
}

#[inline(always)]
pub(super) fn saturate_f64(x: f64) -> f64 {
    if x > 0. { if x < 1. { x } else { 1. } } else { 0. }
}

impl<'a> Decoder<'a> {
    /// Slots of these numbers; subnormals among them are zeros where `flushed`.
    fn numbers(
        &mut self,
        sources: &[&'a str],
        kind: Type,
        flushed: bool,
    ) -> Result<Vec<u32>, Fault> {
        let mut slots = Vec::new();
        for text in sources {
            let slot = self.src(text, kind)?;
            slots.push(if flushed {
                let to = self.fresh(Class::Narrow)?;
                self.run(map1(to, slot, flush));
                to
            } else {
                slot
            });
        }
        Ok(slots)
    }

    fn finish(&mut self, d: u32, kind: Type, flushed: bool, saturated: bool) {
        if flushed {
            self.run(map1(d, d, flush));
        }
        match (saturated, kind) {
            (true, Type::F32) => self.run(map1(d, d, saturate_f32)),
            (true, _) => self.run(map1(d, d, saturate_f64)),
            _ => {}
        }
    }

    pub(super) fn float(
        &mut self,
        op: &mut Opcode<'a>,
        args: &[&'a str],
        kind: Type,
    ) -> Result<(), Fault> {
        let [d, ref sources @ ..] = *args else { return Err(op.unknown()) };
        let flushed = op.take("ftz") && kind == Type::F32;
        let saturated = op.take("sat");
        let rounding = op.rounding().unwrap_or(Rounding::Nearest);
        let (approximate, nan) = (op.one_of(&["approx", "full"]), op.take("NaN"));
        let slots = self.numbers(sources, kind, flushed)?;
        let d = self.dst(d, kind.class())?;
        let run = match kind {
            Type::F32 => float32(op.name, d, &slots, rounding, approximate, nan),
            _ if approximate.is_some() => None,
            _ => float64(op.name, d, &slots, rounding, nan),
        };
        self.run(run.ok_or_else(|| op.unknown())?);
        self.finish(d, kind, flushed, saturated);
        Ok(())
    }

    /// Functions of one number, `copysign` and `testp`.
    pub(super) fn float_unary(
        &mut self,
        op: &mut Opcode<'a>,
        args: &[&'a str],
    ) -> Result<(), Fault> {
        let kind = op.one_type()?;
        if kind == Type::F16 || kind == Type::Bf16 {
            return self.half_function(op, args, kind);
        }
        let [d, ref sources @ ..] = *args else { return Err(op.unknown()) };
        if op.name == "testp" {
            return self.testp(op, args, kind);
        }
        let flushed = op.take("ftz");
        let approximate = op.take("approx");
        let rounding = op.rounding();
        if approximate == rounding.is_some() && op.name != "copysign"
            || rounding.is_some_and(|r| r != Rounding::Nearest && op.name != "rcp")
        {
            return Err(op.unknown());
        }
        let slots = self.numbers(sources, kind, flushed && kind == Type::F32)?;
        let d = self.dst(d, kind.class())?;
        let rounding = rounding.unwrap_or(Rounding::Nearest);
        let run = match (kind, &slots[..]) {
            (Type::F32, [a, b]) if op.name == "copysign" => {
                Some(map2(d, [*a, *b], |sign: f32, size: f32| size.copysign(sign)))
            }
            (Type::F64, [a, b]) if op.name == "copysign" => {
                Some(map2(d, [*a, *b], |sign: f64, size: f64| size.copysign(sign)))
            }
            (Type::F32, [a]) => function32(op.name, d, *a, rounding),
            (Type::F64, [a]) => function64(op.name, d, *a, approximate, rounding),
            _ => None,
        };
        self.run(run.ok_or_else(|| op.unknown())?);
        self.finish(d, kind, flushed && kind == Type::F32, false);
        Ok(())
    }

    fn testp(&mut self, op: &mut Opcode<'a>, args: &[&'a str], kind: Type) -> Result<(), Fault> {
        use std::num::FpCategory::{Infinite, Nan, Normal, Subnormal};
        let [p, a] = *args else { return Err(op.unknown()) };
        let test = ["finite", "infinite", "number", "notanumber", "normal", "subnormal"];
        let test = op.one_of(&test).ok_or_else(|| op.unknown())?;
        let (p, a) = (self.dst(p, Class::Pred)?, self.src(a, kind)?);
        let holds = move |class: std::num::FpCategory| match test {
            "finite" => !matches!(class, Infinite | Nan),
            "infinite" => class == Infinite,
            "number" => class != Nan,
            "notanumber" => class == Nan,
            "normal" => class == Normal,
            _ => class == Subnormal,
        };
        let out = [Some(p), None];
        self.run(match kind {
            Type::F32 => super::super::lanes::compare(out, [a, a], None, move |a: f32, _| {
                holds(a.classify())
            }),
            _ => super::super::lanes::compare(out, [a, a], None, move |a: f64, _| {
                holds(a.classify())
            }),
        });
        Ok(())
    }
}

fn float32(
    name: &str,
    d: u32,
    slots: &[u32],
    rounding: Rounding,
    approximate: Option<&str>,
    nan: bool,
) -> Option<Run> {
    use Rounding::Nearest;
    Some(match (name, slots) {
        ("neg", [a]) => map1(d, *a, |a: f32| -a),
        ("abs", [a]) => map1(d, *a, f32::abs),
        ("add", [a, b]) if rounding == Nearest => map2(d, [*a, *b], |a: f32, b: f32| a + b),
        ("add", [a, b]) => map2(d, [*a, *b], move |a, b| add_f32(a, b, rounding)),
        ("sub", [a, b]) if rounding == Nearest => map2(d, [*a, *b], |a: f32, b: f32| a - b),
        ("sub", [a, b]) => map2(d, [*a, *b], move |a, b: f32| add_f32(a, -b, rounding)),
        ("mul", [a, b]) if rounding == Nearest => map2(d, [*a, *b], |a: f32, b: f32| a * b),
        ("mul", [a, b]) => map2(d, [*a, *b], move |a, b| mul_f32(a, b, rounding)),
        ("fma" | "mad", [a, b, c]) if rounding == Nearest => {
            map3(d, [*a, *b, *c], |a: f32, b: f32, c: f32| a.mul_add(b, c))
        }
        ("fma" | "mad", [a, b, c]) => {
            map3(d, [*a, *b, *c], move |a, b, c| fma_f32(a, b, c, rounding))
        }
        ("div", [a, b]) if approximate == Some("approx") => map2(d, [*a, *b], divided),
        ("div", [a, b]) if rounding == Nearest => map2(d, [*a, *b], |a: f32, b: f32| a / b),
        ("div", [a, b]) => map2(d, [*a, *b], move |a, b| div_f32(a, b, rounding)),
        _ => return extremum(name, d, slots, nan, f32::is_sign_negative, f32::NAN),
    })
}

/// The fast quotient makes a reciprocal first, which is zero for the largest divisors.
fn divided(a: f32, b: f32) -> f32 {
    if b.abs() > f32::from_bits(0x7E80_0000) && b.is_finite() {
        if a.is_infinite() { f32::NAN } else { 0. * a * b.signum() }
    } else {
        a / b
    }
}

fn float64(name: &str, d: u32, slots: &[u32], rounding: Rounding, nan: bool) -> Option<Run> {
    use Rounding::Nearest;
    Some(match (name, slots) {
        ("neg", [a]) => map1(d, *a, |a: f64| -a),
        ("abs", [a]) => map1(d, *a, f64::abs),
        ("add", [a, b]) if rounding == Nearest => map2(d, [*a, *b], |a: f64, b: f64| a + b),
        ("add", [a, b]) => map2(d, [*a, *b], move |a, b| add_f64(a, b, rounding)),
        ("sub", [a, b]) if rounding == Nearest => map2(d, [*a, *b], |a: f64, b: f64| a - b),
        ("sub", [a, b]) => map2(d, [*a, *b], move |a, b: f64| add_f64(a, -b, rounding)),
        ("mul", [a, b]) if rounding == Nearest => map2(d, [*a, *b], |a: f64, b: f64| a * b),
        ("mul", [a, b]) => map2(d, [*a, *b], move |a, b| mul_f64(a, b, rounding)),
        ("fma" | "mad", [a, b, c]) if rounding == Nearest => {
            map3(d, [*a, *b, *c], |a: f64, b: f64, c: f64| a.mul_add(b, c))
        }
        ("div", [a, b]) if rounding == Nearest => map2(d, [*a, *b], |a: f64, b: f64| a / b),
        ("min" | "max", _) => {
            return extremum(name, d, slots, nan, f64::is_sign_negative, f64::NAN);
        }
        _ => return None,
    })
}

/// `min` and `max`. `nan`: the result is `none` if one of the two is no number.
pub(super) fn extremum<T: Value + PartialOrd>(
    name: &str,
    d: u32,
    slots: &[u32],
    nan: bool,
    negative: fn(T) -> bool,
    none: T,
) -> Option<Run> {
    let [a, b] = *slots else { return None };
    let any = |a: T, b: T| is_nan(a) || is_nan(b);
    Some(match (name, nan) {
        ("min", false) => map2(d, [a, b], move |a: T, b| lesser(a, b, negative)),
        ("max", false) => map2(d, [a, b], move |a: T, b| greater(a, b, negative)),
        ("min", true) => {
            map2(d, [a, b], move |a: T, b| if any(a, b) { none } else { lesser(a, b, negative) })
        }
        ("max", true) => {
            map2(d, [a, b], move |a: T, b| if any(a, b) { none } else { greater(a, b, negative) })
        }
        _ => return None,
    })
}

fn function32(name: &str, d: u32, a: u32, rounding: Rounding) -> Option<Run> {
    let nearest = rounding == Rounding::Nearest;
    Some(match name {
        "rcp" if nearest => map1(d, a, |a: f32| 1. / a),
        "rcp" => map1(d, a, move |a| div_f32(1., a, rounding)),
        "sqrt" => map1(d, a, f32::sqrt),
        "rsqrt" => map1(d, a, |a: f32| (1. / f64::from(a).sqrt()) as f32),
        "ex2" => map1(d, a, |a: f32| f64::from(a).exp2() as f32),
        "lg2" => map1(d, a, |a: f32| f64::from(a).log2() as f32),
        "sin" => map1(d, a, |a: f32| f64::from(a).sin() as f32),
        "cos" => map1(d, a, |a: f32| f64::from(a).cos() as f32),
        "tanh" => map1(d, a, |a: f32| f64::from(a).tanh() as f32),
        _ => return None,
    })
}

/// The upper half of a number, as a rough function reads it and writes it.
fn upper(x: f64) -> f64 {
    let kept = f64::from_bits(x.to_bits() & !0xFFFF_FFFF);
    if x.is_nan() {
        f64::NAN
    } else if kept.abs() < f64::MIN_POSITIVE {
        0f64.copysign(x)
    } else {
        kept
    }
}

fn function64(name: &str, d: u32, a: u32, approximate: bool, rounding: Rounding) -> Option<Run> {
    if rounding != Rounding::Nearest {
        return None;
    }
    Some(match (name, approximate) {
        ("rcp", true) => map1(d, a, |a: f64| upper(1. / upper(a))),
        ("rsqrt", true) => map1(d, a, |a: f64| upper(1. / upper(a).sqrt())),
        ("rcp", false) => map1(d, a, |a: f64| 1. / a),
        ("sqrt", false) => map1(d, a, f64::sqrt),
        _ => return None,
    })
}
