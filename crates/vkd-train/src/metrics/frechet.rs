//! The Fréchet distance of two sets of features, from their means and covariances.

use super::Moments;
use candle_core::{Error, Result, bail};
use faer::{Mat, Side};

const OP: &str = "frechet distance";

/// Squared Fréchet (2-Wasserstein) distance of the normal distributions with the means and unbiased covariances of two sets
/// of features: FID, where the features are Inception's.
///
/// `‖μ₁ − μ₂‖² + tr(S₁) + tr(S₂) − 2 tr((√S₁ S₂ √S₁)^½)`, in f64. [`Moments`] are gathered batch by batch, so that memory does not
/// depend on the number of images.
///
/// # Numerics
/// Both roots go through symmetric eigendecompositions, so that the distance is real and defined for singular covariances too:
/// N of d or fewer, a constant channel. Eigenvalues below `d · ε` of the largest are rounding, and count as zero: a root would make them
/// the eighth digit. The result is no more than rounding below zero, and not below it.
///
/// # Errors
/// Another width, fewer than two samples on a side, or an eigendecomposition that does not converge.
///
/// # References
/// Heusel et al., arXiv:1706.08500; Dowson and Landau, *The Fréchet distance between multivariate normal distributions* (1982).
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use vkd_train::metrics::{Moments, frechet_distance};
///
/// let mut real = Moments::new(2)?;
/// for batch in [[[0f64, 0.], [2., 0.]], [[0., 2.], [2., 2.]]] {
///     real.merge(&Moments::from_rows(&Tensor::new(&batch, &Device::Cpu)?, None)?)?;
/// }
/// let moved = Tensor::new(&[[3f64, 4.], [5., 4.], [3., 6.], [5., 6.]], &Device::Cpu)?;
/// let distance = frechet_distance(&real, &Moments::from_rows(&moved, None)?)?;
/// assert!((distance - 25.).abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn frechet_distance(real: &Moments, generated: &Moments) -> Result<f64> {
    let d = real.channels();
    if generated.channels() != d {
        bail!("{OP}: expected features of one width, got {d} and {}", generated.channels())
    }
    for (side, moments) in [("real", real), ("generated", generated)] {
        if moments.count() < 2. {
            bail!(
                "{OP}: expected at least 2 {side} samples for a covariance, got {}",
                moments.count()
            )
        }
    }
    let (a, b) = (covariance(real)?, covariance(generated)?);
    let between: f64 =
        real.mean().iter().zip(generated.mean()).map(|(a, b)| (a - b) * (a - b)).sum();
    let trace = |s: &Mat<f64>| (0..d).map(|i| s[(i, i)]).sum::<f64>();
    Ok((between + (trace(&a) + trace(&b) - 2. * root_trace(&a, &b)?)).max(0.))
}

fn covariance(moments: &Moments) -> Result<Mat<f64>> {
    let d = moments.channels();
    let values = moments.covariance(true)?.flatten_all()?.to_vec1::<f64>()?;
    Ok(Mat::from_fn(d, d, |i, j| values[i * d + j]))
}

/// `tr((√A B √A)^½)` as the sum of the roots of the eigenvalues of `(Λ^½ Vᵀ) B (V Λ^½)`, `A = V Λ Vᵀ`.
fn root_trace(a: &Mat<f64>, b: &Mat<f64>) -> Result<f64> {
    let failed = |e| Error::Msg(format!("{OP}: eigenvalues: {e:?}"));
    let eigen = a.self_adjoint_eigen(Side::Lower).map_err(failed)?;
    let (vectors, values) = (eigen.U(), eigen.S().column_vector());
    let d = a.nrows();
    let all: Vec<f64> = (0..d).map(|i| values[i]).collect();
    let limit = noise(&all);
    // Only what A spans: the product is smaller, and no rounding of a zero is rooted.
    let kept: Vec<usize> = (0..d).filter(|&i| all[i] > limit).collect();
    let factor = Mat::from_fn(d, kept.len(), |i, j| vectors[(i, kept[j])] * all[kept[j]].sqrt());
    let inner = factor.transpose() * (b * &factor);
    let found = inner.self_adjoint_eigenvalues(Side::Lower).map_err(failed)?;
    let limit = noise(&found);
    Ok(found.iter().filter(|v| **v > limit).map(|v| v.sqrt()).sum())
}

/// What rounding leaves of an eigenvalue of zero.
fn noise(values: &[f64]) -> f64 {
    let largest = values.iter().fold(0f64, |m, v| m.max(*v));
    largest * f64::EPSILON * values.len() as f64
}
