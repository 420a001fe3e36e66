//! How far from the oracle a result may be.
//!
//! In f64 and f32 a share of the largest wanted value, since errors of sums are as large as their terms. A half type is held to what
//! the kernels promise: arithmetic as in f32, then one rounding of each entry, which is half a unit in that entry's last place. Where
//! an op rounds in between, a case says how often and why; such an error passes through the rest of the op, so that it is taken of the
//! largest value again.

use candle_core::{DType, Result, Tensor, bail};
use vkd_testkit::{Tolerance, to_f64};

/// What a case allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Law {
    /// Terms of the longest sum.
    pub(super) terms: usize,
    /// How much the op may enlarge the rounding of its arithmetic.
    pub(super) gain: f64,
    /// Whether it computes in f64 whatever the dtype.
    pub(super) wide: bool,
    /// How many roundings to a half type, each of the largest value, those before the last one come to.
    pub(super) roundings: f64,
}

/// A half type: bits of the significand, the leading one included, and the smallest exponent.
#[derive(Clone, Copy)]
struct Half {
    bits: i32,
    smallest: i32,
}

impl Half {
    fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::BF16 => Some(Self { bits: 8, smallest: -126 }),
            DType::F16 => Some(Self { bits: 11, smallest: -14 }),
            _ => None,
        }
    }

    /// Half a unit in the last place of `value`: what rounding it may be off by.
    fn half_unit(self, value: f64) -> f64 {
        // The exponent as the bits have it; a logarithm may be off at powers of two.
        let exponent = ((value.abs().to_bits() >> 52) as i32 - 1023).max(self.smallest);
        2f64.powi(exponent - self.bits)
    }

    /// The same at most, as a share of the value.
    fn roundoff(self) -> f64 {
        2f64.powi(-self.bits)
    }
}

impl Law {
    /// What arithmetic and a result in f32 or f64 may be off by, as a share of the largest wanted value.
    fn arithmetic(&self, dtype: DType) -> f64 {
        let (accumulator, storage) = match dtype {
            DType::F64 => (DType::F64, DType::F64),
            _ if self.wide => (DType::F64, DType::F32),
            _ => (DType::F32, DType::F32),
        };
        // The error of a sum grows with the root of its terms.
        let terms = (self.terms as f64 * self.gain.powi(2)).ceil() as usize;
        Tolerance::for_op(accumulator, storage, terms).relative
    }

    /// What roundings before the last one may be off by, as a share of the largest wanted value.
    pub(super) fn between(&self, dtype: DType) -> f64 {
        Half::of(dtype).map_or(0., |half| self.roundings * half.roundoff())
    }

    /// Compares what an op in `dtype` gave with what is wanted. Returns the largest share of what is allowed.
    ///
    /// # Errors
    /// Another shape, or an entry that is off by more than is allowed; NaN always is.
    pub(super) fn check(
        &self,
        what: &str,
        dtype: DType,
        got: &Tensor,
        want: &Tensor,
    ) -> Result<f64> {
        if got.dims() != want.dims() {
            bail!("{what}: expected shape {:?}, got {:?}", want.dims(), got.dims())
        }
        let storage = got.dtype();
        let (got, want) = (to_f64(got)?, to_f64(want)?);
        let largest = want.iter().fold(0f64, |m, v| m.max(v.abs()));
        let arithmetic = self.arithmetic(dtype);
        // Inputs are of order one; of what is nothing but for rounding a millionth of that is asked.
        let sums = arithmetic * (largest + 1e-6);
        let between = self.between(dtype) * largest;
        let half = Half::of(storage);
        let mut worst = (0f64, 0, 0f64);
        for (at, (got, want)) in got.iter().zip(&want).enumerate() {
            let before = sums + between;
            // What is rounded may lie in the next binade already.
            let last = half.map_or(0., |half| half.half_unit(want.abs() + before));
            let allowed = (before + last).max(f64::MIN_POSITIVE);
            let share = (got - want).abs() / allowed;
            let share = if share.is_nan() { f64::INFINITY } else { share };
            if share > worst.0 {
                worst = (share, at, allowed);
            }
        }
        let (share, at, allowed) = worst;
        if share <= 1. {
            return Ok(share);
        }
        let (got, want) = (got[at], want[at]);
        bail!(
            "{what}: entry {at} ({storage:?}): expected {want:e}, got {got:e}, difference {:e} over the allowed {allowed:e}",
            (got - want).abs()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use vkd_testkit::normal;

    const ONE: Law = Law { terms: 1, gain: 1., wide: false, roundings: 0. };

    #[test]
    fn half_units_are_those_of_the_types() {
        let unit = |dtype, value| Half::of(dtype).map_or(f64::NAN, |half| half.half_unit(value));
        assert_eq!(unit(DType::BF16, 1.), 2f64.powi(-8));
        assert_eq!(unit(DType::BF16, -1.99), 2f64.powi(-8));
        assert_eq!(unit(DType::BF16, 2.), 2f64.powi(-7));
        assert_eq!(unit(DType::F16, 1.), 2f64.powi(-11));
        // Below the smallest normal number the units stay.
        assert_eq!(unit(DType::F16, 0.), 2f64.powi(-25));
        assert_eq!(unit(DType::F16, 1e-7), 2f64.powi(-25));
        assert!(Half::of(DType::F32).is_none());
    }

    #[test]
    fn one_rounding_passes_and_a_unit_does_not() -> Result<()> {
        let want = normal(&[1000], DType::F64, 1)?;
        for dtype in [DType::BF16, DType::F16] {
            let rounded = want.to_dtype(dtype)?;
            let share = ONE.check("rounded", dtype, &rounded, &want)?;
            assert!(share > 0.99, "{dtype:?}: {share}");
            // One entry of a middling size by one unit.
            let mut values = to_f64(&rounded)?;
            let unit = Half::of(dtype).map_or(f64::NAN, |half| 2. * half.half_unit(values[5]));
            values[5] += unit * (values[5] - to_f64(&want)?[5]).signum();
            let moved = Tensor::from_vec(values, 1000, &Device::Cpu)?.to_dtype(dtype)?;
            let message = ONE.check("moved", dtype, &moved, &want).unwrap_err().to_string();
            assert!(message.contains("moved: entry 5"), "{message}");
            let more = Law { roundings: 2., ..ONE };
            assert!(more.check("moved", dtype, &moved, &want)? < 1.);
        }
        Ok(())
    }

    #[test]
    fn a_result_that_is_not_rounded_is_held_to_its_arithmetic() -> Result<()> {
        let want = Tensor::new(&[1f64, -3.], &Device::Cpu)?;
        let off = |share: f64| (&want * (1. + share))?.to_dtype(DType::F32);
        // f32 of half inputs: four times the sum of two epsilons.
        assert!(ONE.check("near", DType::BF16, &off(9e-7)?, &want).is_ok());
        assert!(ONE.check("far", DType::BF16, &off(2e-6)?, &want).is_err());
        assert!(ONE.check("nan", DType::BF16, &off(f64::NAN)?, &want).is_err());
        assert!(ONE.check("shape", DType::BF16, &off(0.)?.narrow(0, 0, 1)?, &want).is_err());
        let f64s = (&want * (1. + 1e-14))?;
        assert!(ONE.check("f64", DType::F64, &f64s, &want).is_err());
        let wide = Law { wide: true, terms: 1 << 20, ..ONE };
        assert!(wide.check("wide", DType::F32, &off(9e-7)?, &want).is_err());
        Ok(())
    }
}
