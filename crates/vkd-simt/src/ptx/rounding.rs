//! Rounding that Rust's own operators don't offer: towards one side, once for two operations, and to half types.

use half::{bf16, f16};

/// How the last bit is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounding {
    Nearest,
    Zero,
    Down,
    Up,
}

/// `a + b` as its nearest number and the exact rest.
pub(super) fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let of_b = sum - a;
    let rest = (a - (sum - of_b)) + (b - of_b);
    (sum, if rest.is_finite() { rest } else { 0. })
}

/// The exact number `sum + rest`, where `sum` is the nearest to it, as f32.
pub(super) fn narrow(sum: f64, rest: f64, rounding: Rounding) -> f32 {
    let nearest = sum as f32;
    if !sum.is_finite() {
        return nearest;
    }
    // By how much the nearest is above the exact number.
    let above = f64::from(nearest) - sum;
    let (too_high, too_low) = (above > rest, above < rest);
    match rounding {
        Rounding::Nearest => {
            // Halfway between two numbers, as seen without the rest.
            let other = if above > 0. { nearest.next_down() } else { nearest.next_up() };
            let halfway = above != 0. && (f64::from(other) - sum).abs() == above.abs();
            if halfway && (rest > 0.) == (f64::from(other) > sum) && rest != 0. {
                other
            } else {
                nearest
            }
        }
        Rounding::Down if too_high => nearest.next_down(),
        Rounding::Up if too_low => nearest.next_up(),
        Rounding::Zero if too_high && (sum > 0. || sum == 0. && rest > 0.) => nearest.next_down(),
        Rounding::Zero if too_low && (sum < 0. || sum == 0. && rest < 0.) => nearest.next_up(),
        _ => nearest,
    }
}

/// The exact number `nearest + rest`, where `nearest` is the nearest to it, as f64.
pub(super) fn one_side(nearest: f64, rest: f64, rounding: Rounding) -> f64 {
    match rounding {
        _ if nearest.is_nan() || nearest.is_infinite() => nearest,
        Rounding::Down if rest < 0. => nearest.next_down(),
        Rounding::Up if rest > 0. => nearest.next_up(),
        Rounding::Zero if rest < 0. && nearest > 0. => nearest.next_down(),
        Rounding::Zero if rest > 0. && nearest < 0. => nearest.next_up(),
        _ => nearest,
    }
}

/// A sum of exactly `0 + 0` or of `x - x` has a negative sign when it's rounded down.
fn zero_sign(sum: f64, a: f64, b: f64, rounding: Rounding) -> f64 {
    let both_negative = a.is_sign_negative() && b.is_sign_negative();
    let both_positive = a.is_sign_positive() && b.is_sign_positive();
    if sum == 0. && rounding == Rounding::Down && !both_positive || sum == 0. && both_negative {
        -0.
    } else {
        sum
    }
}

pub(super) fn add_f32(a: f32, b: f32, rounding: Rounding) -> f32 {
    let (a, b) = (f64::from(a), f64::from(b));
    let (sum, rest) = two_sum(a, b);
    narrow(zero_sign(sum, a, b, rounding), rest, rounding)
}

pub(super) fn mul_f32(a: f32, b: f32, rounding: Rounding) -> f32 {
    narrow(f64::from(a) * f64::from(b), 0., rounding)
}

pub(super) fn fma_f32(a: f32, b: f32, c: f32, rounding: Rounding) -> f32 {
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let (sum, rest) = two_sum(product, c);
    narrow(zero_sign(sum, product, c, rounding), rest, rounding)
}

/// The quotient's rest has the sign of `a - q b`, made exactly with one fused operation in f64.
pub(super) fn div_f32(a: f32, b: f32, rounding: Rounding) -> f32 {
    let (a, b) = (f64::from(a), f64::from(b));
    let quotient = a / b;
    let rest = -quotient.mul_add(b, -a) * b.signum();
    narrow(
        quotient,
        if rest.is_finite() {
            rest.signum() * f64::from(rest != 0.) * f64::MIN_POSITIVE
        } else {
            0.
        },
        rounding,
    )
}

pub(super) fn add_f64(a: f64, b: f64, rounding: Rounding) -> f64 {
    let (sum, rest) = two_sum(a, b);
    one_side(zero_sign(sum, a, b, rounding), rest, rounding)
}

pub(super) fn mul_f64(a: f64, b: f64, rounding: Rounding) -> f64 {
    let product = a * b;
    one_side(product, a.mul_add(b, -product), rounding)
}

/// `sum + rest` with the last bit set where it isn't exact, so that a second rounding to half as many bits or fewer is the only one.
fn odd(sum: f64, rest: f64) -> f64 {
    if rest == 0. || !sum.is_finite() || sum == 0. {
        return sum;
    }
    let bits = sum.to_bits();
    f64::from_bits(if (rest > 0.) == (sum > 0.) { bits } else { bits - 1 } | 1)
}

/// The same from f64 to f32.
fn odd_f32(x: f64) -> f32 {
    let nearest = x as f32;
    if f64::from(nearest) == x || x.is_nan() {
        return nearest;
    }
    let inward = if f64::from(nearest).abs() > x.abs() {
        f32::from_bits(nearest.to_bits() - 1)
    } else {
        nearest
    };
    f32::from_bits(inward.to_bits() | 1)
}

/// A half type: its sums and products are made in f64 and rounded once.
pub(super) trait Half: super::lanes::Value {
    fn wide(self) -> f64;
    fn nearest(x: f32) -> Self;

    /// `a b + c`, rounded once.
    fn fused(a: Self, b: Self, c: Self) -> Self {
        let (sum, rest) = two_sum(a.wide() * b.wide(), c.wide());
        Self::nearest(odd_f32(odd(sum, rest)))
    }
    fn of_f64(x: f64) -> Self {
        Self::nearest(odd_f32(x))
    }
    fn sum(a: Self, b: Self) -> Self {
        let (sum, rest) = two_sum(a.wide(), b.wide());
        Self::nearest(odd_f32(odd(sum, rest)))
    }
    fn product(a: Self, b: Self) -> Self {
        Self::of_f64(a.wide() * b.wide())
    }
}

impl Half for f16 {
    fn wide(self) -> f64 {
        f64::from(f32::from(self))
    }
    fn nearest(x: f32) -> Self {
        Self::from_f32(x)
    }
}

impl Half for bf16 {
    fn wide(self) -> f64 {
        f64::from(f32::from(self))
    }
    fn nearest(x: f32) -> Self {
        Self::from_f32(x)
    }
}

/// A subnormal number becomes a zero of its sign.
#[inline(always)]
pub(super) fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0f32.copysign(x) } else { x }
}

/// Whole numbers: by the letter after `r` of a modifier such as `.rzi`.
pub(super) fn whole(x: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => x.round_ties_even(),
        Rounding::Zero => x.trunc(),
        Rounding::Down => x.floor(),
        Rounding::Up => x.ceil(),
    }
}

/// An integer of up to 64 bits as f32, rounded once.
pub(super) fn int_to_f32(x: i128, rounding: Rounding) -> f32 {
    let nearest = x as f32;
    match rounding {
        Rounding::Nearest => nearest,
        _ => {
            let above = nearest as i128 - x;
            let down = match rounding {
                Rounding::Down => above > 0,
                Rounding::Zero => above > 0 && x > 0,
                _ => false,
            };
            let up = match rounding {
                Rounding::Up => above < 0,
                Rounding::Zero => above < 0 && x < 0,
                _ => false,
            };
            if down {
                nearest.next_down()
            } else if up {
                nearest.next_up()
            } else {
                nearest
            }
        }
    }
}

/// An integer of up to 64 bits as f64, rounded once.
pub(super) fn int_to_f64(x: i128, rounding: Rounding) -> f64 {
    let nearest = x as f64;
    let above = nearest as i128 - x;
    one_side(nearest, -(above as f64), rounding)
}
