//! The kernel distance of two sets of features: the squared maximum mean discrepancy with a cubic kernel.

use candle_core::{DType, Result, Tensor, bail};
use rand::seq::index;
use serde::Serialize;
use vkd_norm::stream;

const OP: &str = "kernel distance";

/// Rows of a block of the kernel matrix: one of 256 by 10,000 in f64 is 20 MB.
const BLOCK: usize = 256;

/// Unbiased estimate of the squared maximum mean discrepancy with the kernel `(⟨x, y⟩ / d + 1)³`: KID, where the features are
/// Inception's.
///
/// Mean of the kernel over pairs of different real samples, the same of generated ones, less twice the mean over mixed pairs.
/// An estimate without bias is below zero about half the time where both come from one distribution.
///
/// # Shapes
/// - `real`: `(N, d)`, `generated`: `(M, d)`, any float dtype; computed in f64, a block of the kernel's matrix at a time
///
/// # Errors
/// Another rank or width, no channels, or fewer than two samples on a side.
///
/// # References
/// Bińkowski et al., arXiv:1801.01401; Gretton et al., *A kernel two-sample test* (2012).
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use vkd_train::metrics::kernel_distance;
///
/// let real = Tensor::new(&[[0f32], [2.]], &Device::Cpu)?;
/// let generated = Tensor::new(&[[1f32], [1.]], &Device::Cpu)?;
/// // Kernel 1 between 0 and 2, 8 between 1 and 1; 1 and 27 across.
/// assert_eq!(kernel_distance(&real, &generated)?, 1. + 8. - 2. * (1. + 1. + 27. + 27.) / 4.);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn kernel_distance(real: &Tensor, generated: &Tensor) -> Result<f64> {
    let (real, generated) = checked(real, generated, 2)?;
    of_rows(&real, &generated)
}

/// What [`kernel_distance_subsets`] finds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SubsetDistances {
    /// Distance of each pair of subsets.
    pub values: Vec<f64>,
    /// Their mean.
    pub mean: f64,
    /// Their population standard deviation.
    pub deviation: f64,
}

impl SubsetDistances {
    /// Mean and deviation of `values`; those of none are not numbers.
    pub fn of(values: Vec<f64>) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        Self { values, mean, deviation: variance.sqrt() }
    }
}

/// [`kernel_distance`] of `count` random subsets of `size` rows a side, each drawn without repetition as a function of the seed and
/// its number: the usual report, whose cost grows with the subsets and not with the square of the samples.
///
/// # Errors
/// Those of [`kernel_distance`], a size below two or a count of zero, or fewer than `size` samples on a side.
pub fn kernel_distance_subsets(
    real: &Tensor,
    generated: &Tensor,
    size: usize,
    count: usize,
    seed: u64,
) -> Result<SubsetDistances> {
    if size < 2 || count == 0 {
        bail!("{OP}: expected subsets of at least 2 rows and at least one, got {count} of {size}")
    }
    let (real, generated) = checked(real, generated, size)?;
    let subset = |rows: &Tensor, side: &str, number: usize| -> Result<Tensor> {
        let mut rng = stream(seed, side, 0, number as u64);
        let drawn = index::sample(&mut rng, rows.dim(0)?, size);
        let ids: Vec<u32> = drawn.iter().map(|i| i as u32).collect();
        rows.index_select(&Tensor::from_vec(ids, size, rows.device())?, 0)
    };
    let value = |number| {
        let real = subset(&real, "kernel-distance.real", number)?;
        of_rows(&real, &subset(&generated, "kernel-distance.generated", number)?)
    };
    Ok(SubsetDistances::of((0..count).map(value).collect::<Result<_>>()?))
}

/// Both sides in f64 with at least `needed` rows.
fn checked(real: &Tensor, generated: &Tensor, needed: usize) -> Result<(Tensor, Tensor)> {
    let (width, other) = match (real.dims(), generated.dims()) {
        (&[_, a], &[_, b]) if a > 0 => (a, b),
        (a, b) => bail!("{OP}: expected features (N, d) and (M, d), got {a:?} and {b:?}"),
    };
    if width != other {
        bail!("{OP}: expected features of one width, got {width} and {other}")
    }
    for (side, rows) in [("real", real), ("generated", generated)] {
        if rows.dim(0)? < needed {
            bail!("{OP}: expected at least {needed} {side} samples, got {}", rows.dim(0)?)
        }
    }
    let wide = |side: &str, rows: &Tensor| -> Result<Tensor> {
        let rows = rows.detach().to_dtype(DType::F64)?.contiguous()?;
        match rows.abs()?.sum_all()?.to_scalar::<f64>()?.is_finite() {
            true => Ok(rows),
            false => bail!("{OP}: expected finite {side} features, got others"),
        }
    };
    Ok((wide("real", real)?, wide("generated", generated)?))
}

fn of_rows(real: &Tensor, generated: &Tensor) -> Result<f64> {
    let (n, m) = (real.dim(0)? as f64, generated.dim(0)? as f64);
    let among = |rows: &Tensor, n: f64| -> Result<f64> {
        // A pair of a sample and itself is no pair.
        let itself = cubed(&rows.sqr()?.sum(1)?, rows.dim(1)?)?.sum_all()?.to_scalar::<f64>()?;
        Ok((kernel_sum(rows, rows)? - itself) / (n * (n - 1.)))
    };
    let across = kernel_sum(real, generated)? / (n * m);
    Ok(among(real, n)? + among(generated, m)? - 2. * across)
}

fn kernel_sum(a: &Tensor, b: &Tensor) -> Result<f64> {
    let (rows, width) = a.dims2()?;
    let b = b.t()?;
    let mut sum = 0.;
    for start in (0..rows).step_by(BLOCK) {
        let block = a.narrow(0, start, BLOCK.min(rows - start))?.matmul(&b)?;
        sum += cubed(&block, width)?.sum_all()?.to_scalar::<f64>()?;
    }
    Ok(sum)
}

fn cubed(products: &Tensor, width: usize) -> Result<Tensor> {
    let base = products.affine(1. / width as f64, 1.)?;
    base.sqr()? * base
}
