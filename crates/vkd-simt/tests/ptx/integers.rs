use crate::support::{apply, check, random, triples};

fn values() -> Vec<u64> {
    let mut all = vec![
        0,
        1,
        2,
        7,
        31,
        32,
        33,
        63,
        64,
        65,
        0x7FFF,
        0x8000,
        0xFFFF,
        0x7FFF_FFFF,
        0x8000_0000,
        0xFFFF_FFFF,
        0x7FFF_FFFF_FFFF_FFFF,
        0x8000_0000_0000_0000,
        u64::MAX,
        0x0123_4567_89AB_CDEF,
    ];
    all.extend(random(1, 12));
    all
}

fn equal(operation: &str, result: &str, wanted: impl Fn(u64, u64, u64) -> u64) {
    check(operation, result, &triples(&values()), |a, b| a == b, wanted);
}

/// In the types of Rust that PTX's are.
macro_rules! op {
    ($text:literal, $result:literal, $t:ty => $u:ty, |$a:ident, $b:ident, $c:ident| $f:expr) => {
        equal($text, $result, |a, b, c| {
            let ($a, $b, $c) = (a as $t, b as $t, c as $t);
            let _ = ($a, $b, $c);
            ($f) as $u as u64
        })
    };
}

#[test]
fn sums_and_products_wrap() {
    op!("add.s16 h0, h1, h2;", "h0", u16 => u16, |a, b, c| a.wrapping_add(b));
    op!("sub.s16 h0, h1, h2;", "h0", u16 => u16, |a, b, c| a.wrapping_sub(b));
    op!("add.s32 w0, w1, w2;", "w0", u32 => u32, |a, b, c| a.wrapping_add(b));
    op!("add.s32 w0, w1, -1024;", "w0", u32 => u32, |a, b, c| a.wrapping_sub(1024));
    op!("sub.u64 d0, d1, d2;", "d0", u64 => u64, |a, b, c| a.wrapping_sub(b));
    op!("add.sat.s32 w0, w1, w2;", "w0", i32 => u32, |a, b, c| a.saturating_add(b));
    op!("mul.lo.s16 h0, h1, h2;", "h0", u16 => u16, |a, b, c| a.wrapping_mul(b));
    op!("mul.lo.s32 w0, w1, w2;", "w0", u32 => u32, |a, b, c| a.wrapping_mul(b));
    op!("mul.lo.s64 d0, d1, d2;", "d0", u64 => u64, |a, b, c| a.wrapping_mul(b));
    op!("mul.hi.u32 w0, w1, w2;", "w0", u32 => u32, |a, b, c| (u64::from(a) * u64::from(b)) >> 32);
    op!("mul.hi.s32 w0, w1, w2;", "w0", i32 => u32, |a, b, c| (i64::from(a) * i64::from(b)) >> 32);
    op!("mul.hi.u64 d0, d1, d2;", "d0", u64 => u64, |a, b, c| (u128::from(a) * u128::from(b)) >> 64);
    op!("mul.wide.u16 w0, h1, h2;", "w0", u16 => u32, |a, b, c| u32::from(a) * u32::from(b));
    op!("mul.wide.s32 d0, w1, w2;", "d0", i32 => u64, |a, b, c| i64::from(a) * i64::from(b));
    op!("mul.wide.u32 d0, w1, 24;", "d0", u32 => u64, |a, b, c| u64::from(a) * 24);
    op!("mad.lo.s32 w0, w1, w2, w3;", "w0", u32 => u32, |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    equal("mad.wide.u32 d0, w1, w2, d3;", "d0", |a, b, c| {
        (u64::from(a as u32) * u64::from(b as u32)).wrapping_add(c)
    });
    equal("mad.wide.s32 d0, w1, w2, d3;", "d0", |a, b, c| {
        (i64::from(a as i32) * i64::from(b as i32)).wrapping_add(c as i64) as u64
    });
}

#[test]
fn quotients_extremes_and_signs() {
    op!("div.u32 w0, w1, w2;", "w0", u32 => u32, |a, b, c| a.checked_div(b).unwrap_or(!0));
    op!("rem.u32 w0, w1, w2;", "w0", u32 => u32, |a, b, c| a.checked_rem(b).unwrap_or(a));
    op!("div.u16 h0, h1, h2;", "h0", u16 => u16, |a, b, c| a.checked_div(b).unwrap_or(!0));
    op!("div.u64 d0, d1, d2;", "d0", u64 => u64, |a, b, c| a.checked_div(b).unwrap_or(!0));
    op!("rem.u64 d0, d1, d2;", "d0", u64 => u64, |a, b, c| a.checked_rem(b).unwrap_or(a));
    op!("div.s64 d0, d1, d2;", "d0", i64 => u64, |a, b, c| if b == 0 { -1 } else { a.wrapping_div(b) });
    op!("min.u32 w0, w1, w2;", "w0", u32 => u32, |a, b, c| a.min(b));
    op!("max.s32 w0, w1, w2;", "w0", i32 => u32, |a, b, c| a.max(b));
    op!("min.s64 d0, d1, d2;", "d0", i64 => u64, |a, b, c| a.min(b));
    op!("max.u64 d0, d1, d2;", "d0", u64 => u64, |a, b, c| a.max(b));
    op!("neg.s32 w0, w1;", "w0", i32 => u32, |a, b, c| a.wrapping_neg());
    op!("neg.s64 d0, d1;", "d0", i64 => u64, |a, b, c| a.wrapping_neg());
    op!("abs.s32 w0, w1;", "w0", i32 => u32, |a, b, c| a.wrapping_abs());
}

#[test]
fn logic_shifts_and_fields() {
    op!("and.b32 w0, w1, w2;", "w0", u32 => u32, |a, b, c| a & b);
    op!("or.b16 h0, h1, h2;", "h0", u16 => u16, |a, b, c| a | b);
    op!("xor.b64 d0, d1, d2;", "d0", u64 => u64, |a, b, c| a ^ b);
    op!("not.b16 h0, h1;", "h0", u16 => u16, |a, b, c| !a);
    op!("not.b64 d0, d1;", "d0", u64 => u64, |a, b, c| !a);
    op!("shl.b32 w0, w1, w2;", "w0", u32 => u32, |a, b, c| a.checked_shl(b).unwrap_or(0));
    op!("shr.u32 w0, w1, w2;", "w0", u32 => u32, |a, b, c| a.checked_shr(b).unwrap_or(0));
    op!("shr.s32 w0, w1, w2;", "w0", i32 => u32, |a, b, c| a >> (b as u32).min(31));
    equal("shl.b64 d0, d1, w2;", "d0", |a, b, _| a.checked_shl(b as u32).unwrap_or(0));
    equal("shr.u64 d0, d1, w2;", "d0", |a, b, _| a.checked_shr(b as u32).unwrap_or(0));
    equal("shr.s64 d0, d1, w2;", "d0", |a, b, _| ((a as i64) >> (b as u32).min(63)) as u64);
    equal("shl.b16 h0, h1, w2;", "h0", |a, b, _| {
        u64::from((a as u16).checked_shl(b as u32).unwrap_or(0))
    });
    op!("brev.b32 w0, w1;", "w0", u32 => u32, |a, b, c| a.reverse_bits());
    op!("clz.b64 w0, d1;", "w0", u64 => u32, |a, b, c| a.leading_zeros());
    op!("popc.b32 w0, w1;", "w0", u32 => u32, |a, b, c| a.count_ones());
    op!("bfind.shiftamt.u32 w0, w1;", "w0", u32 => u32, |a, b, c| {
        if a == 0 { !0 } else { a.leading_zeros() }
    });
    op!("bfind.u32 w0, w1;", "w0", u32 => u32, |a, b, c| a.checked_ilog2().unwrap_or(!0));
    op!("bfi.b32 w0, w1, w2, 8, 4;", "w0", u32 => u32, |a, b, c| b & !0xF00 | (a & 15) << 8);
    op!("bfi.b64 d0, d1, d2, 60, 8;", "d0", u64 => u64, |a, b, c| b & !(15 << 60) | a << 60);
    op!("bfe.u32 w0, w1, 5, 9;", "w0", u32 => u32, |a, b, c| a >> 5 & 0x1FF);
    op!("bfe.s32 w0, w1, 5, 9;", "w0", i32 => u32, |a, b, c| a << 18 >> 23);
    op!("bfe.s32 w0, w1, 28, 9;", "w0", i32 => u32, |a, b, c| a >> 28);
    op!("shf.l.wrap.b32 w0, w1, w2, w3;", "w0", u32 => u32, |a, b, c| {
        ((u64::from(b) << 32 | u64::from(a)) << (c & 31)) >> 32
    });
    op!("shf.r.clamp.b32 w0, w1, w2, w3;", "w0", u32 => u32, |a, b, c| {
        (u64::from(b) << 32 | u64::from(a)) >> c.min(32)
    });
    op!("prmt.b32 w0, w1, w2, 0x9174;", "w0", u32 => u32, |a, b, c| {
        let byte = |word: u32, at: u32| word >> (8 * at) & 0xFF;
        let sign = if byte(a, 1) > 127 { 0xFF } else { 0 };
        byte(b, 0) | byte(b, 3) << 8 | byte(a, 1) << 16 | sign << 24
    });
    op!("lop3.b32 w0, w1, w2, w3, 0x96;", "w0", u32 => u32, |a, b, c| a ^ b ^ c);
    op!("lop3.b32 w0, w1, w2, w3, 0xEA;", "w0", u32 => u32, |a, b, c| a & b | c);
    op!("dp4a.s32.s32 w0, w1, w2, w3;", "w0", u32 => u32, |a, b, c| {
        let of = |word: u32| word.to_le_bytes().map(|byte| i32::from(byte as i8));
        of(a).iter().zip(of(b)).map(|(x, y)| x * y).fold(c as i32, i32::wrapping_add)
    });
}

#[test]
fn comparisons_and_choices() {
    op!("setp.lt.s32 p0, w1, w2;", "p0", i32 => u8, |a, b, c| a < b);
    op!("setp.lt.u32 p0, w1, w2;", "p0", u32 => u8, |a, b, c| a < b);
    op!("setp.ge.s16 p0, h1, h2;", "p0", i16 => u8, |a, b, c| a >= b);
    op!("setp.hi.u64 p0, d1, d2;", "p0", u64 => u8, |a, b, c| a > b);
    op!("setp.ne.b32 p0, w1, w2;", "p0", u32 => u8, |a, b, c| a != b);
    op!("setp.le.s64 p0, d1, 64;", "p0", i64 => u8, |a, b, c| a <= 64);
    op!("setp.lt.s32 p1|p0, w1, w2;", "p0", i32 => u8, |a, b, c| a >= b);
    op!("setp.eq.s32 p1, w1, w3; setp.lt.or.s32 p0, w1, w2, !p1;", "p0", i32 => u8, |a, b, c| a < b || a != c);
    op!("setp.eq.s32 p1, w1, w3; setp.lt.and.s32 p0, w1, w2, p1;", "p0", i32 => u8, |a, b, c| a < b && a == c);
    op!("setp.lt.u32 p1, w1, w2; not.pred p2, p1; selp.b32 w0, w1, w2, p2;", "w0", u32 => u32, |a, b, c| a.max(b));
    op!("setp.lt.u32 p1, w1, w2; setp.lt.u32 p2, w2, w3; xor.pred p0, p1, p2;", "p0", u32 => u8, |a, b, c| {
        (a < b) != (b < c)
    });
    op!("mov.pred p0, -1; setp.lt.u32 p1, w1, w2; @p1 mov.pred p0, 0;", "p0", u32 => u8, |a, b, c| a >= b);
    op!("mov.u32 w0, 7; setp.lt.u32 p1, w1, w2; @!p1 add.u32 w0, w1, w2;", "w0", u32 => u32, |a, b, c| {
        if a < b { 7 } else { a.wrapping_add(b) }
    });
    op!("set.lt.u32.u32 w0, w1, w2;", "w0", u32 => u32, |a, b, c| if a < b { !0 } else { 0 });
}

#[test]
fn packing() {
    op!("mov.b64 {w4, w5}, d1; mov.b64 d0, {w5, w4};", "d0", u64 => u64, |a, b, c| a.rotate_left(32));
    op!("mov.b32 {h4, h5}, w1; mov.b32 w0, {h5, h4};", "w0", u32 => u32, |a, b, c| a.rotate_left(16));
    op!("mov.b32 w0, {0, h1};", "w0", u16 => u32, |a, b, c| u32::from(a) << 16);
    op!("mov.b64 {_, w0}, d1;", "w0", u64 => u32, |a, b, c| a >> 32);
    op!("mov.b64 {h4, h5, h6, h7}, d1; mov.b64 d0, {h7, h6, h5, h4};", "d0", u64 => u64, |a, b, c| {
        (a << 48) | (a & 0xFFFF_0000) << 16 | (a >> 16 & 0xFFFF_0000) | a >> 48
    });
}

#[test]
fn chains_of_carries() {
    let inputs = triples(&values());
    let low = apply("mul.lo.u64 d0, d1, d2;", "d0", &inputs);
    let halves = "mov.b64 {w1, w2}, d1; mov.b64 {w3, w4}, d2; { .reg .u32 r0, r1, r2, r3;
        mad.lo.cc.u32 r0, w1, w3, 0; madc.hi.cc.u32 r1, w1, w3, 0; madc.hi.u32 r2, w1, w4, 0;
        mad.lo.cc.u32 r1, w1, w4, r1; madc.hi.cc.u32 r2, w2, w3, r2; madc.hi.u32 r3, w2, w4, 0;
        mad.lo.cc.u32 r1, w2, w3, r1; madc.lo.cc.u32 r2, w2, w4, r2; addc.u32 r3, r3, 0;";
    let by_parts = apply(&format!("{halves} mov.b64 d0, {{r0, r1}}; }}"), "d0", &inputs);
    assert_eq!(low, by_parts);
    let upper = apply(&format!("{halves} mov.b64 d0, {{r2, r3}}; }}"), "d0", &inputs);
    for ([a, b, _], upper) in inputs.iter().zip(upper) {
        assert_eq!(upper, ((u128::from(*a) * u128::from(*b)) >> 64) as u64, "{a:#x} by {b:#x}");
    }
    op!("mov.b64 {w1, w2}, d1; mov.b64 {w3, w4}, d2; sub.cc.u32 w5, w1, w3; subc.u32 w6, w2, w4; mov.b64 d0, {w5, w6};",
        "d0", u64 => u64, |a, b, c| a.wrapping_sub(b));
    op!("mov.b64 {w1, w2}, d1; mov.b64 {w3, w4}, d2; add.cc.u32 w5, w1, w3; addc.u32 w6, w2, w4; mov.b64 d0, {w5, w6};",
        "d0", u64 => u64, |a, b, c| a.wrapping_add(b));
}
