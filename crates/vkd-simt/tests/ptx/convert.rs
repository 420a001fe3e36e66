use half::{bf16, f16};

use crate::support::{apply, check, random, triples};

fn one(operation: &str, result: &str, a: u64) -> u64 {
    apply(operation, result, &[[a, 0, 0]])[0]
}

fn of32(x: f32) -> u64 {
    x.to_bits().into()
}

#[test]
fn integers_are_cut_extended_and_saturated() {
    let values = [
        0,
        1,
        0x7F,
        0x80,
        0xFF,
        0x7FFF,
        0x8000,
        0xFFFF,
        0x8000_0000,
        u64::from(u32::MAX),
        1 << 63,
        u64::MAX,
    ];
    let all = triples(&values);
    let equal = |operation: &str, result: &str, wanted: fn(u64) -> u64| {
        check(operation, result, &all, |a, b| a == b, |a, _, _| wanted(a));
    };
    equal("cvt.u64.u32 d0, w1;", "d0", |a| a & 0xFFFF_FFFF);
    equal("cvt.s64.s32 d0, w1;", "d0", |a| i64::from(a as i32) as u64);
    equal("cvt.u32.u64 w0, d1;", "w0", |a| a & 0xFFFF_FFFF);
    equal("cvt.u16.u32 h0, w1;", "h0", |a| a & 0xFFFF);
    equal("cvt.u32.u16 w0, h1;", "w0", |a| a & 0xFFFF);
    equal("cvt.s32.s16 w0, h1;", "w0", |a| u64::from(i32::from(a as i16) as u32));
    equal("cvt.s32.s8 w0, w1;", "w0", |a| u64::from(i32::from(a as i8) as u32));
    equal("cvt.s16.s8 h0, h1;", "h0", |a| u64::from(i16::from(a as i8) as u16));
    equal("cvt.u32.u8 w0, w1;", "w0", |a| a & 0xFF);
    equal("cvt.u8.u32 w0, w1;", "w0", |a| a & 0xFF);
    equal("cvt.sat.s16.s32 h0, w1;", "h0", |a| (a as i32).clamp(-32768, 32767) as u16 as u64);
    equal("cvt.sat.u8.s32 w0, w1;", "w0", |a| (a as i32).clamp(0, 255) as u64);
    equal("cvt.sat.s32.u64 w0, d1;", "w0", |a| a.min(0x7FFF_FFFF));
}

#[test]
fn numbers_become_integers() {
    let inputs = [
        0.,
        -0.5,
        0.5,
        1.5,
        2.5,
        -1.5,
        -2.5,
        3.99,
        1e10,
        -1e10,
        1e20,
        -1e20,
        f32::INFINITY,
        f32::NEG_INFINITY,
    ];
    for x in inputs {
        let f = |operation: &str, result: &str| one(operation, result, of32(x));
        assert_eq!(f("cvt.rzi.s32.f32 w0, w1;", "w0"), u64::from(x as i32 as u32), "{x}");
        assert_eq!(f("cvt.rzi.u32.f32 w0, w1;", "w0"), u64::from(x as u32), "{x}");
        assert_eq!(
            f("cvt.rni.s32.f32 w0, w1;", "w0"),
            u64::from(x.round_ties_even() as i32 as u32)
        );
        assert_eq!(f("cvt.rmi.s64.f32 d0, w1;", "d0"), x.floor() as i64 as u64, "{x}");
        assert_eq!(f("cvt.rpi.u64.f32 d0, w1;", "d0"), x.ceil() as u64, "{x}");
        assert_eq!(f("cvt.rzi.s8.f32 w0, w1;", "w0"), u64::from(i32::from(x as i8) as u32), "{x}");
        assert_eq!(f("cvt.rzi.u8.f32 h0, w1;", "h0"), u64::from(x as u8), "{x}");
        let d = |operation: &str, result: &str| one(operation, result, f64::from(x).to_bits());
        assert_eq!(d("cvt.rzi.s32.f64 w0, d1;", "w0"), u64::from(x as i32 as u32), "{x}");
        assert_eq!(d("cvt.rzi.u64.f64 d0, d1;", "d0"), x as u64, "{x}");
    }
    // No number: zero, but the highest bit where 64 bits are read or written.
    assert_eq!(one("cvt.rzi.s32.f32 w0, w1;", "w0", of32(f32::NAN)), 0);
    assert_eq!(one("cvt.rzi.u64.f32 d0, w1;", "d0", of32(f32::NAN)), 1 << 63);
    assert_eq!(one("cvt.rzi.s32.f64 w0, d1;", "w0", f64::NAN.to_bits()), 1 << 31);
    assert_eq!(one("cvt.rzi.s64.f64 d0, d1;", "d0", f64::NAN.to_bits()), 1 << 63);
    assert_eq!(one("cvt.rzi.u32.f16 w0, h1;", "w0", f16::from_f32(7.9).to_bits().into()), 7);
}

#[test]
fn integers_become_numbers() {
    for x in
        random(9, 200).into_iter().flat_map(|x| [x, x >> 20, x >> 40, x & 0xFFFF_FFFF_FF00_0000])
    {
        let f = |operation: &str, result: &str| one(operation, result, x);
        assert_eq!(f("cvt.rn.f32.s32 w0, w1;", "w0"), of32(x as i32 as f32));
        assert_eq!(f("cvt.rn.f32.u64 w0, d1;", "w0"), of32(x as f32));
        assert_eq!(f("cvt.rn.f64.s64 d0, d1;", "d0"), (x as i64 as f64).to_bits());
        assert_eq!(f("cvt.rn.f64.u16 d0, h1;", "d0"), f64::from(x as u16).to_bits());
        let small = i32::from(x as i16) as u32;
        let half = one("cvt.rn.f16.s32 h0, w1;", "h0", small.into());
        assert_eq!(half, f16::from_f32(f32::from(x as i16)).to_bits().into());
        for (name, below) in [("rm", true), ("rp", false)] {
            let got = f32::from_bits(f(&format!("cvt.{name}.f32.s32 w0, w1;"), "w0") as u32);
            let exact = f64::from(x as i32);
            let (got, other) =
                (f64::from(got), f64::from(if below { got.next_up() } else { got.next_down() }));
            assert!(
                got == exact || (got < exact) == below && (other > exact) == below,
                "{name} {exact}: {got}"
            );
        }
        let got = f64::from(f32::from_bits(f("cvt.rz.f32.u32 w0, w1;", "w0") as u32));
        assert!(got <= f64::from(x as u32));
    }
}

#[test]
fn numbers_become_others() {
    let mut values: Vec<f64> = vec![
        0.,
        -0.,
        1.,
        0.1,
        1e-40,
        3e38,
        1e39,
        65519.,
        65520.,
        65535.,
        f64::INFINITY,
        -2.5,
        2.5,
        0.5,
        1.5,
    ];
    values.extend(random(11, 64).into_iter().map(|bits| f64::from(f32::from_bits(bits as u32))));
    for x in values {
        let d = |operation: &str, result: &str| one(operation, result, x.to_bits());
        let f = |operation: &str, result: &str| one(operation, result, of32(x as f32));
        let same = |a: u64, b: f32| a == of32(b) || f32::from_bits(a as u32).is_nan() && b.is_nan();
        assert!(same(d("cvt.rn.f32.f64 w0, d1;", "w0"), x as f32), "{x}");
        if !x.is_nan() {
            assert_eq!(f("cvt.f64.f32 d0, w1;", "d0"), f64::from(x as f32).to_bits());
            assert_eq!(f("cvt.rn.f16.f32 h0, w1;", "h0"), f16::from_f32(x as f32).to_bits().into());
            assert_eq!(
                f("cvt.rn.bf16.f32 h0, w1;", "h0"),
                bf16::from_f32(x as f32).to_bits().into()
            );
            assert_eq!(d("cvt.rmi.f64.f64 d0, d1;", "d0"), x.floor().to_bits());
            assert_eq!(f("cvt.rni.f32.f32 w0, w1;", "w0"), of32((x as f32).round_ties_even()));
            assert_eq!(f("cvt.rpi.f32.f32 w0, w1;", "w0"), of32((x as f32).ceil()));
            let down = f64::from(f32::from_bits(d("cvt.rm.f32.f64 w0, d1;", "w0") as u32));
            assert!(down <= x);
        }
        let saturated = if x.is_nan() { 0. } else { (x as f32).clamp(0., 1.) + 0. };
        assert_eq!(f("cvt.sat.f32.f32 w0, w1;", "w0"), of32(saturated), "{x}");
    }
    // 1 + 2^-11 + 2^-40: a tie of f16 if it is rounded to f32 first.
    let x = 1. + 2f64.powi(-11) + 2f64.powi(-40);
    assert_eq!(one("cvt.rn.f16.f64 h0, d1;", "h0", x.to_bits()), 0x3C01);
    assert_eq!(one("cvt.f32.f16 w0, h1;", "w0", 0x0001), of32(2f32.powi(-24)));
    assert_eq!(one("cvt.f32.bf16 w0, h1;", "w0", 0x3FC0), of32(1.5));
}
