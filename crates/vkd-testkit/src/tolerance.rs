//! How far apart two results may be, and the comparison that says where they differ most.

use candle_core::{DType, Result, Tensor, bail};

/// Allowed difference: `|got - want| <= absolute + relative * max|want|`.
///
/// The relative part is taken of the largest wanted magnitude, not entry by entry: rounding errors
/// of sums scale with the terms, and a result that cancels to nearly zero still carries them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Part in proportion to the largest wanted magnitude.
    pub relative: f64,
    /// Part that is independent of the values.
    pub absolute: f64,
}

impl Tolerance {
    /// Bit equality up to the sign of zero.
    pub const EXACT: Self = Self { relative: 0., absolute: 0. };

    /// Purely relative tolerance.
    pub fn relative(relative: f64) -> Self {
        Self { relative, absolute: 0. }
    }

    /// Tolerance of an op that sums `terms` products in `accumulator` and stores in `storage`:
    /// `4 * (eps_storage + sqrt(terms) * eps_accumulator)`, the random-walk growth of rounding
    /// with a margin of four.
    pub fn for_op(accumulator: DType, storage: DType, terms: usize) -> Self {
        let relative =
            4. * (epsilon(storage) + (terms.max(1) as f64).sqrt() * epsilon(accumulator));
        Self { relative, absolute: 0. }
    }
}

fn epsilon(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::EPSILON,
        DType::F32 => f64::from(f32::EPSILON),
        DType::F16 => 2f64.powi(-10),
        DType::BF16 => 2f64.powi(-7),
        _ => 0.,
    }
}

/// Flattens a tensor of any float dtype and layout to f64 values in row-major order.
pub fn to_f64(xs: &Tensor) -> Result<Vec<f64>> {
    xs.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()
}

/// Largest `|a - b|`, measured in f64. Errors on different shapes.
pub fn max_abs_difference(a: &Tensor, b: &Tensor) -> Result<f64> {
    if a.dims() != b.dims() {
        bail!("max_abs_difference: expected shape {:?}, got {:?}", b.dims(), a.dims())
    }
    let (a, b) = (to_f64(a)?, to_f64(b)?);
    // `f64::max` drops NaN: a NaN difference must win, not vanish.
    Ok(a.iter()
        .zip(&b)
        .map(|(a, b)| (a - b).abs())
        .fold(0., |m, d| if d.is_nan() || m.is_nan() { f64::NAN } else { m.max(d) }))
}

/// Compares two tensors and names the worst entry on failure; NaN never passes.
pub fn assert_close(what: &str, got: &Tensor, want: &Tensor, tolerance: Tolerance) -> Result<()> {
    if got.dims() != want.dims() {
        bail!("{what}: expected shape {:?}, got {:?}", want.dims(), got.dims())
    }
    let (g, w) = (to_f64(got)?, to_f64(want)?);
    let largest = w.iter().fold(0f64, |m, v| m.max(v.abs()));
    let allowed = tolerance.absolute + tolerance.relative * largest;
    let mut worst: Option<(usize, f64)> = None;
    for (i, (g, w)) in g.iter().zip(&w).enumerate() {
        let d = (g - w).abs();
        let d = if d.is_nan() { f64::INFINITY } else { d };
        if d > allowed && worst.is_none_or(|(_, e)| d > e) {
            worst = Some((i, d));
        }
    }
    match worst {
        None => Ok(()),
        Some((i, d)) => bail!(
            "{what}: entry {i} of {:?} ({:?}): expected {:e}, got {:e}, difference {d:e} over the allowed {allowed:e}",
            want.dims(),
            got.dtype(),
            w[i],
            g[i],
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn nan_and_differences_fail() -> Result<()> {
        let a = Tensor::new(&[1f32, 2., 3.], &Device::Cpu)?;
        let b = Tensor::new(&[1f32, 2., 3.1], &Device::Cpu)?;
        let n = Tensor::new(&[1f32, f32::NAN, 3.], &Device::Cpu)?;
        assert_close("same", &a, &a, Tolerance::EXACT)?;
        assert!(assert_close("different", &b, &a, Tolerance::relative(1e-3)).is_err());
        assert!(assert_close("nan", &n, &a, Tolerance::relative(1e9)).is_err());
        assert!(max_abs_difference(&n, &a)?.is_nan());
        Ok(())
    }
}
