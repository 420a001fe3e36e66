use half::{bf16, f16};
use proptest::prelude::{ProptestConfig, any};
use proptest::proptest;

use crate::support::{apply, check, random, triples};

fn floats() -> Vec<f32> {
    let mut all = vec![
        0.,
        1.,
        1.5,
        2.,
        0.1,
        3.,
        1e-3,
        1e30,
        1e-30,
        f32::MIN_POSITIVE,
        f32::MIN_POSITIVE / 4.,
        f32::from_bits(1),
        f32::MAX,
        f32::INFINITY,
        f32::NAN,
        1. + f32::EPSILON,
        1. - f32::EPSILON / 2.,
        16_777_217.,
        0.5,
    ];
    let negative: Vec<f32> = all.iter().map(|x| -x).collect();
    all.extend(negative);
    all.extend(random(3, 8).iter().map(|bits| f32::from_bits(*bits as u32)));
    all
}

fn words32() -> Vec<[u64; 3]> {
    triples(&floats().iter().map(|x| u64::from(x.to_bits())).collect::<Vec<_>>())
}

fn words64() -> Vec<[u64; 3]> {
    let mut all: Vec<u64> = floats().iter().map(|x| f64::from(*x).to_bits()).collect();
    all.extend(random(5, 8));
    triples(&all)
}

/// Equal bits, or both no number.
fn same32(a: u64, b: u64) -> bool {
    a == b || f32::from_bits(a as u32).is_nan() && f32::from_bits(b as u32).is_nan()
}

fn same64(a: u64, b: u64) -> bool {
    a == b || f64::from_bits(a).is_nan() && f64::from_bits(b).is_nan()
}

fn f32s(operation: &str, wanted: impl Fn(f32, f32, f32) -> f32) {
    let of = |bits: u64| f32::from_bits(bits as u32);
    check(operation, "w0", &words32(), same32, |a, b, c| {
        u64::from(wanted(of(a), of(b), of(c)).to_bits())
    });
}

fn f64s(operation: &str, wanted: impl Fn(f64, f64, f64) -> f64) {
    let of = f64::from_bits;
    check(operation, "d0", &words64(), same64, |a, b, c| wanted(of(a), of(b), of(c)).to_bits());
}

fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

#[test]
fn f32_rounds_as_rust_does() {
    f32s("add.f32 w0, w1, w2;", |a, b, _| a + b);
    f32s("sub.rn.f32 w0, w1, w2;", |a, b, _| a - b);
    f32s("mul.f32 w0, w1, w2;", |a, b, _| a * b);
    f32s("div.rn.f32 w0, w1, w2;", |a, b, _| a / b);
    f32s("fma.rn.f32 w0, w1, w2, w3;", f32::mul_add);
    f32s("fma.rn.f32 w0, w1, 0f3FC00000, w3;", |a, _, c| a.mul_add(1.5, c));
    f32s("sqrt.rn.f32 w0, w1;", |a, _, _| a.sqrt());
    f32s("rcp.rn.f32 w0, w1;", |a, _, _| 1. / a);
    f32s("neg.f32 w0, w1;", |a, _, _| -a);
    f32s("abs.f32 w0, w1;", |a, _, _| a.abs());
    f32s("copysign.f32 w0, w1, w2;", |a, b, _| b.copysign(a));
    f32s("add.ftz.f32 w0, w1, w2;", |a, b, _| flush(flush(a) + flush(b)));
    f32s("mul.sat.f32 w0, w1, w2;", |a, b, _| {
        let product = a * b;
        if product.is_nan() { 0. } else { product.clamp(0., 1.) + 0. }
    });
    f32s("ex2.approx.ftz.f32 w0, w1;", |a, _, _| flush(f64::from(flush(a)).exp2() as f32));
    f32s("lg2.approx.f32 w0, w1;", |a, _, _| f64::from(a).log2() as f32);
    f32s("rsqrt.approx.f32 w0, w1;", |a, _, _| (1. / f64::from(a).sqrt()) as f32);
    f32s("tanh.approx.f32 w0, w1;", |a, _, _| f64::from(a).tanh() as f32);
}

#[test]
fn f64_rounds_as_rust_does() {
    f64s("add.f64 d0, d1, d2;", |a, b, _| a + b);
    f64s("sub.f64 d0, d1, d2;", |a, b, _| a - b);
    f64s("mul.rn.f64 d0, d1, d2;", |a, b, _| a * b);
    f64s("div.rn.f64 d0, d1, d2;", |a, b, _| a / b);
    f64s("fma.rn.f64 d0, d1, d2, d3;", f64::mul_add);
    f64s("fma.rn.f64 d0, d1, d2, 0d3FE0000000000000;", |a, b, _| a.mul_add(b, 0.5));
    f64s("sqrt.rn.f64 d0, d1;", |a, _, _| a.sqrt());
    f64s("neg.f64 d0, d1;", |a, _, _| -a);
    f64s("copysign.f64 d0, d1, d2;", |a, b, _| b.copysign(a));
}

#[test]
fn a_rough_reciprocal_has_an_empty_lower_half_and_twenty_good_bits() {
    let inputs = words64();
    let got = apply("rcp.approx.ftz.f64 d0, d1;", "d0", &inputs);
    for ([a, _, _], got) in inputs.iter().zip(got) {
        let (a, got) = (f64::from_bits(*a), f64::from_bits(got));
        if a.is_nan() {
            assert!(got.is_nan());
            continue;
        }
        assert_eq!(got.to_bits() & 0xFFFF_FFFF, 0, "1 / {a:e}");
        let wanted = 1. / a;
        if wanted.is_normal() && a.is_normal() {
            assert!((got / wanted - 1.).abs() < 1e-5, "1 / {a:e}: {got:e}");
        }
    }
}

#[test]
fn the_smaller_and_the_larger_know_zeros_and_nans() {
    let least = |a: f32, b: f32| match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == b => {
            if a.is_sign_negative() {
                a
            } else {
                b
            }
        }
        _ => {
            if a < b {
                a
            } else {
                b
            }
        }
    };
    f32s("min.f32 w0, w1, w2;", |a, b, _| least(a, b));
    f32s("max.f32 w0, w1, w2;", |a, b, _| -least(-a, -b));
    f32s("max.NaN.f32 w0, w1, w2;", |a, b, _| {
        if a.is_nan() || b.is_nan() { f32::NAN } else { -least(-a, -b) }
    });
    f64s("min.f64 d0, d1, d2;", |a, b, _| match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == b => {
            if a.is_sign_negative() {
                a
            } else {
                b
            }
        }
        _ => {
            if a < b {
                a
            } else {
                b
            }
        }
    });
}

#[test]
fn comparisons_with_no_number() {
    let of = |bits: u64| f32::from_bits(bits as u32);
    let test = |name: &str, wanted: fn(f32, f32) -> bool| {
        check(
            &format!("setp.{name}.f32 p0, w1, w2;"),
            "p0",
            &words32(),
            |a, b| a == b,
            |a, b, _| u64::from(wanted(of(a), of(b))),
        );
    };
    test("eq", |a, b| a == b);
    test("ne", |a, b| a.partial_cmp(&b).is_some_and(|order| order.is_ne()));
    test("lt", |a, b| a < b);
    test("le", |a, b| a <= b);
    test("gt", |a, b| a > b);
    test("ge", |a, b| a >= b);
    test("equ", |a, b| a == b || a.is_nan() || b.is_nan());
    test("neu", |a, b| a != b);
    test("ltu", |a, b| !(a >= b));
    test("leu", |a, b| !(a > b));
    test("gtu", |a, b| !(a <= b));
    test("geu", |a, b| !(a < b));
    test("num", |a, b| !a.is_nan() && !b.is_nan());
    test("nan", |a, b| a.is_nan() || b.is_nan());
    check(
        "set.gt.f32.f32 w0, w1, w2;",
        "w0",
        &words32(),
        |a, b| a == b,
        |a, b, _| {
            if of(a) > of(b) { u64::from(1f32.to_bits()) } else { 0 }
        },
    );
}

/// `m 2^e` with |m| below 2^24, in units of 2^-80.
fn units(x: f32) -> i128 {
    let (bits, sign) = (x.to_bits(), if x.is_sign_negative() { -1 } else { 1 });
    let exponent = (bits >> 23 & 0xFF) as i32;
    if exponent == 0 {
        assert_eq!(x, 0.);
        return 0;
    }
    let mantissa = i128::from(bits & 0x7F_FFFF | 0x80_0000);
    let shift = exponent - 150 + 80;
    sign * if shift < 0 { mantissa >> -shift } else { mantissa << shift }
}

/// Each directed rounding of an exact number: the neighbour on its side, and no closer one.
fn directed(name: &str, got: f32, exact: i128) {
    let value = units(got);
    let ok = match name {
        _ if value == exact => true,
        "rm" => value <= exact && units(got.next_up()) > exact,
        "rp" => value >= exact && units(got.next_down()) < exact,
        _ if exact >= 0 => value <= exact && units(got.next_up()) > exact && value >= 0,
        _ => value >= exact && units(got.next_down()) < exact && value <= 0,
    };
    assert!(ok, "{name}: got {got:e} for {exact} units");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rounding_to_one_side(seed in any::<u64>()) {
        // Between 2^-12 and 2^12, with sums that cancel, so that a product is a whole number of units.
        let number = |bits: u64| {
            let exponent = 127 - 12 + (bits >> 40) as u32 % 24;
            f32::from_bits(bits as u32 & 0x807F_FFFF | exponent << 23)
        };
        let words: Vec<u64> = random(seed, 96).into_iter().map(|b| u64::from(number(b).to_bits())).collect();
        let mut inputs: Vec<[u64; 3]> = words.chunks_exact(3).map(|w| [w[0], w[1], w[2]]).collect();
        let of = |bits: u64| f32::from_bits(bits as u32);
        let near: Vec<_> = inputs.iter().map(|[a, b, _]| [*a, *b, u64::from((-of(*a) * of(*b)).to_bits())]).collect();
        inputs.extend(near);
        for name in ["rm", "rp", "rz"] {
            let sums = apply(&format!("add.{name}.f32 w0, w1, w3;"), "w0", &inputs);
            let products = apply(&format!("mul.{name}.f32 w0, w1, w2;"), "w0", &inputs);
            let fused = apply(&format!("fma.{name}.f32 w0, w1, w2, w3;"), "w0", &inputs);
            for (i, [a, b, c]) in inputs.iter().enumerate() {
                let [a, b, c] = [a, b, c].map(|bits| of(*bits));
                // A product of two numbers in units of 2^-80 each has units of 2^-160.
                let product = (units(a) >> 40) * (units(b) >> 40);
                directed(name, of(sums[i]), units(a) + units(c));
                directed(name, of(products[i]), product);
                let exact = product + units(c);
                if exact != 0 {
                    directed(name, of(fused[i]), exact);
                }
            }
        }
    }

    #[test]
    fn half_types_round_once(seed in any::<u64>()) {
        let inputs: Vec<[u64; 3]> = random(seed, 192).chunks_exact(3).map(|w| [w[0], w[1], w[2]]).collect();
        // In units of 2^-60: a product has 22 bits and is at least 2^-48, a sum has fewer.
        let exact = |a: f16, b: f16, c: f16| {
            let of = |x: f16, scale: i32| (f64::from(x.to_f32()) * 2f64.powi(scale)) as i128;
            of(a, 30) * of(b, 30) + of(c, 60)
        };
        let all = apply("fma.rn.f16 h0, h1, h2, h3;", "h0", &inputs);
        for ([a, b, c], got) in inputs.iter().zip(all) {
            let [x, y, z] = [a, b, c].map(|bits| f16::from_bits(*bits as u16));
            if !(x.is_finite() && y.is_finite() && z.is_finite()) {
                continue;
            }
            let got = f16::from_bits(got as u16);
            if !got.is_finite() {
                continue;
            }
            let exact = exact(x, y, z);
            let units = |x: f16| (f64::from(x.to_f32()) * 2f64.powi(60)) as i128;
            let distance = (units(got) - exact).abs();
            for bits in [got.to_bits().wrapping_add(1), got.to_bits().wrapping_sub(1)] {
                let other = f16::from_bits(bits);
                if other.is_finite() && other.is_sign_positive() == got.is_sign_positive() {
                    let further = (units(other) - exact).abs();
                    let even = got.to_bits().is_multiple_of(2);
                    assert!(distance < further || distance == further && even, "{x} {y} {z}: {got}");
                }
            }
        }
    }
}

#[test]
fn a_tie_with_a_small_rest_is_none() {
    // 6 x 87 = 522 is halfway between 520, which is even, and 524; what is added is far below what f64 keeps beside it.
    let bits = |x: f32| u64::from(bf16::from_f32(x).to_bits());
    let tiny = 2f32.powi(-100);
    let inputs = [
        [bits(6.), bits(87.), bits(tiny)],
        [bits(6.), bits(87.), bits(-tiny)],
        [bits(6.), bits(87.), 0],
    ];
    let got = apply("fma.rn.bf16 h0, h1, h2, h3;", "h0", &inputs);
    let got: Vec<f32> = got.iter().map(|bits| bf16::from_bits(*bits as u16).to_f32()).collect();
    assert_eq!(got, [524., 520., 520.]);
}

#[test]
fn two_halves_in_a_word() {
    let pair = |a: f32, b: f32| {
        u64::from(bf16::from_f32(a).to_bits()) | u64::from(bf16::from_f32(b).to_bits()) << 16
    };
    let got = apply(
        "fma.rn.bf16x2 w0, w1, w2, w3;",
        "w0",
        &[[pair(1.5, -2.), pair(2., 3.), pair(1., 0.5)]],
    );
    assert_eq!(got, [pair(4., -5.5)]);
    let got = apply(
        "cvt.rn.bf16x2.f32 w0, w1, w2;",
        "w0",
        &[[1.5f32.to_bits().into(), 7f32.to_bits().into(), 0]],
    );
    assert_eq!(got, [pair(7., 1.5)]);
    let half = |a: f32| u64::from(f16::from_f32(a).to_bits());
    let got = apply(
        "max.NaN.f16 h0, h1, h2;",
        "h0",
        &[[half(1.), half(2.), 0], [half(f32::NAN), half(2.), 0]],
    );
    assert_eq!(got[0], half(2.));
    assert!(f16::from_bits(got[1] as u16).is_nan());
    let got = apply(
        "set.eq.f16.f16 h0, h1, h2;",
        "h0",
        &[[half(1.), half(1.), 0], [half(3.), half(2.), 0]],
    );
    assert_eq!(got, [half(1.), 0]);
    let got = apply(
        "{.reg .b16 c; mov.b16 c, 0x8000U; fma.rn.bf16 h0, h1, h2, c;}",
        "h0",
        &[[pair(3., 0.), pair(-0.5, 0.), 0]],
    );
    assert_eq!(got, [pair(-1.5, 0.) & 0xFFFF]);
}
