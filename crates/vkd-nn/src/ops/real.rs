//! The two dtypes of the CPU kernels, and the two functions that their time goes into.
//!
//! The usual `expf` and `erff` take one value at a time, and a small student's step is full of them. The f32 versions here
//! have no branches and no calls, so the compiler turns a loop over them into vector instructions.

use candle_core::WithDType;
use num_traits::Float;

/// f32 or f64.
pub(crate) trait Real:
    WithDType + Float + faer::traits::RealField + vkd_norm::dense::Real
{
    /// The error function: to rounding in f64, to 4e-7 absolute in f32.
    fn erf(self) -> Self;

    /// The exponential: to rounding in f64, to 3e-7 relative in f32. Zero below -87.3 and infinite above 88.3.
    fn exponential(self) -> Self;
}

impl Real for f64 {
    fn erf(self) -> Self {
        libm::erf(self)
    }

    fn exponential(self) -> Self {
        self.exp()
    }
}

/// Above it the error function differs from one by less than half a unit in the last place.
const ERF_END: f32 = 3.95;

/// `erf(z) / z` as a quotient of polynomials in `z²` on `[0, ERF_END]`, lowest power first: our own fit by reweighted least
/// squares, largest error 1.8e-8. All coefficients are positive, so evaluation does not cancel.
const NUMERATOR: [f32; 6] = [
    std::f32::consts::FRAC_2_SQRT_PI,
    0.194_036_22,
    0.053_207_13,
    0.003_917_342,
    2.876_014e-4,
    2.011_740_7e-6,
];
const DENOMINATOR: [f32; 6] =
    [1., 0.505_291_6, 0.115_590_975, 0.015_270_749, 0.001_198_207_2, 3.783_973_4e-5];

/// Taylor coefficients `1 / i!` of the exponential; on `[-ln 2 / 2, ln 2 / 2]` the first one left out is below 6e-9.
const TAYLOR: [f32; 8] = [1., 1., 0.5, 1. / 6., 1. / 24., 1. / 120., 1. / 720., 1. / 5040.];

#[inline(always)]
fn horner<const N: usize>(coefficients: &[f32; N], x: f32) -> f32 {
    coefficients.iter().rev().fold(0., |sum, c| sum * x + c)
}

impl Real for f32 {
    #[inline(always)]
    fn erf(self) -> Self {
        let z = self.clamp(-ERF_END, ERF_END);
        let t = z * z;
        let inside = z * horner(&NUMERATOR, t) / horner(&DENOMINATOR, t);
        if self.abs() >= ERF_END { self.signum() } else { inside }
    }

    #[inline(always)]
    fn exponential(self) -> Self {
        // Adding 1.5·2^23 rounds to a whole number and leaves it in the low bits of the sum.
        const ROUND: f32 = 12_582_912.;
        // ln 2 in two parts: a whole number below 2^8 times the first is exact.
        const LN2_HIGH: f32 = 0.693_359_4;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        let x = self.clamp(-87.3, 88.3);
        let shifted = x * std::f32::consts::LOG2_E + ROUND;
        let whole = shifted - ROUND;
        let rest = (x - whole * LN2_HIGH) - whole * LN2_LOW;
        let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
        let inside = horner(&TAYLOR, rest) * power;
        if self < -87.3 {
            0.
        } else if self > 88.3 {
            f32::INFINITY
        } else {
            inside
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f32_functions_are_as_good_as_they_say() {
        for i in -90_000..90_000 {
            let x = i as f32 * 1e-3;
            let (got, want) = (f64::from(x.exponential()), f64::from(x).exp());
            if (-87.3..88.3).contains(&x) {
                assert!((got / want - 1.).abs() < 3e-7, "exp {x}: {got} {want}");
            }
            let z = x * 0.1;
            let (got, want) = (f64::from(Real::erf(z)), libm::erf(f64::from(z)));
            assert!((got - want).abs() < 4e-7, "erf {z}: {got} {want}");
        }
        assert_eq!((0f32.exponential(), Real::erf(0f32)), (1., 0.));
        assert_eq!(
            (f32::NEG_INFINITY.exponential(), f32::INFINITY.exponential()),
            (0., f32::INFINITY)
        );
        assert_eq!((Real::erf(f32::INFINITY), Real::erf(-50f32)), (1., -1.));
        assert!(f32::NAN.exponential().is_nan() && Real::erf(f32::NAN).is_nan());
    }
}
