//! Numbers of 16 bits, alone or two in a word.

use half::{bf16, f16};

use super::super::lanes::{Run, Value, map1, map2, map3};
use super::super::rounding::Half;
use super::super::types::{Class, Type};
use super::Decoder;
use super::float::{extremum, greater, is_nan, lesser};
use super::opcode::Opcode;
use crate::Fault;

impl<'a> Decoder<'a> {
    pub(super) fn half(
        &mut self,
        op: &mut Opcode<'a>,
        args: &[&'a str],
        kind: Type,
    ) -> Result<(), Fault> {
        let [d, ref sources @ ..] = *args else { return Err(op.unknown()) };
        let _ = op.take("rn");
        let nan = op.take("NaN");
        let d = self.dst(d, Class::Narrow)?;
        let mut slots = Vec::new();
        for text in sources {
            slots.push(self.src(text, kind)?);
        }
        let run = match kind {
            Type::F16 => one::<f16>(op.name, d, &slots, nan, sign_f16, f16::NAN),
            Type::Bf16 => one::<bf16>(op.name, d, &slots, nan, sign_bf16, bf16::NAN),
            Type::F16x2 => two::<f16>(op.name, d, &slots, nan, sign_f16, f16::NAN),
            _ => two::<bf16>(op.name, d, &slots, nan, sign_bf16, bf16::NAN),
        };
        self.run(run.ok_or_else(|| op.unknown())?);
        Ok(())
    }

    /// `ex2` and `tanh`, rounded correctly.
    pub(super) fn half_function(
        &mut self,
        op: &mut Opcode<'a>,
        args: &[&'a str],
        kind: Type,
    ) -> Result<(), Fault> {
        let [d, a] = *args else { return Err(op.unknown()) };
        let (d, a) = (self.dst(d, Class::Narrow)?, self.src(a, kind)?);
        let known = op.take("approx");
        // Of bf16 alone, whose subnormals it makes zeros: they're below what the results of `ex2` near one tell apart.
        let _ = kind == Type::Bf16 && op.take("ftz");
        let run = match (op.name, kind) {
            ("ex2", Type::F16) => map1(d, a, |a: f16| f16::of_f64(a.wide().exp2())),
            ("ex2", _) => map1(d, a, |a: bf16| bf16::of_f64(a.wide().exp2())),
            ("tanh", Type::F16) => map1(d, a, |a: f16| f16::of_f64(a.wide().tanh())),
            ("tanh", _) => map1(d, a, |a: bf16| bf16::of_f64(a.wide().tanh())),
            _ => return Err(op.unknown()),
        };
        if !known {
            return Err(op.unknown());
        }
        self.run(run);
        Ok(())
    }
}

fn sign_f16(x: f16) -> bool {
    x.is_sign_negative()
}

fn sign_bf16(x: bf16) -> bool {
    x.is_sign_negative()
}

fn one<H: Half + PartialOrd + std::ops::Neg<Output = H>>(
    name: &str,
    d: u32,
    slots: &[u32],
    nan: bool,
    negative: fn(H) -> bool,
    none: H,
) -> Option<Run> {
    Some(match (name, slots) {
        ("neg", [a]) => map1(d, *a, |a: H| -a),
        ("abs", [a]) => map1(d, *a, move |a: H| if negative(a) { -a } else { a }),
        ("add", [a, b]) => map2(d, [*a, *b], H::sum),
        ("sub", [a, b]) => map2(d, [*a, *b], |a, b: H| H::sum(a, -b)),
        ("mul", [a, b]) => map2(d, [*a, *b], H::product),
        ("fma", [a, b, c]) => map3(d, [*a, *b, *c], H::fused),
        _ => return extremum(name, d, slots, nan, negative, none),
    })
}

fn two<H: Half + PartialOrd + std::ops::Neg<Output = H>>(
    name: &str,
    d: u32,
    slots: &[u32],
    nan: bool,
    negative: fn(H) -> bool,
    none: H,
) -> Option<Run>
where
    [H; 2]: Value,
{
    let both = |f: fn(H, H) -> H| move |a: [H; 2], b: [H; 2]| [f(a[0], b[0]), f(a[1], b[1])];
    let either = move |a, b| nan && (is_nan(a) || is_nan(b));
    Some(match (name, slots) {
        ("neg", [a]) => map1(d, *a, |a: [H; 2]| a.map(|a| -a)),
        ("abs", [a]) => map1(d, *a, move |a: [H; 2]| a.map(|a| if negative(a) { -a } else { a })),
        ("add", [a, b]) => map2(d, [*a, *b], both(H::sum)),
        ("sub", [a, b]) => map2(d, [*a, *b], both(|a, b| H::sum(a, -b))),
        ("mul", [a, b]) => map2(d, [*a, *b], both(H::product)),
        ("min", [a, b]) => map2(d, [*a, *b], move |a: [H; 2], b: [H; 2]| {
            [0, 1].map(|i| if either(a[i], b[i]) { none } else { lesser(a[i], b[i], negative) })
        }),
        ("max", [a, b]) => map2(d, [*a, *b], move |a: [H; 2], b: [H; 2]| {
            [0, 1].map(|i| if either(a[i], b[i]) { none } else { greater(a[i], b[i], negative) })
        }),
        ("fma", [a, b, c]) => map3(d, [*a, *b, *c], |a: [H; 2], b: [H; 2], c: [H; 2]| {
            [0, 1].map(|i| H::fused(a[i], b[i], c[i]))
        }),
        _ => return None,
    })
}
