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
/// With `S₁ = F Fᵀ` and `S₂ = G Gᵀ` from symmetric eigendecompositions the last trace is the sum of the singular values of `Fᵀ G`: no
/// eigenvalue of a product is rooted, which would leave half the digits. So the distance is real and defined for singular covariances too: N
/// of d or fewer, a constant channel. It is no more than rounding below zero, and not below it.
///
/// # Errors
/// Another width, fewer than two samples on a side, or a decomposition that does not converge.
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

/// `tr((√A B √A)^½)` as the sum of the singular values of `Fᵀ G`.
fn root_trace(a: &Mat<f64>, b: &Mat<f64>) -> Result<f64> {
    let product = root(a)?.transpose() * root(b)?;
    if product.nrows() == 0 || product.ncols() == 0 {
        return Ok(0.);
    }
    let found = product.singular_values();
    let found = found.map_err(|e| Error::Msg(format!("{OP}: singular values: {e:?}")))?;
    Ok(found.iter().sum())
}

/// F with `F Fᵀ` the matrix. Eigenvalues below `d · ε` of the largest are rounding and count as zero: a root would make them the eighth
/// digit.
fn root(matrix: &Mat<f64>) -> Result<Mat<f64>> {
    let eigen = matrix.self_adjoint_eigen(Side::Lower);
    let eigen = eigen.map_err(|e| Error::Msg(format!("{OP}: eigenvalues: {e:?}")))?;
    let (vectors, values) = (eigen.U(), eigen.S().column_vector());
    let d = matrix.nrows();
    let limit = (0..d).fold(0f64, |m, i| m.max(values[i])) * f64::EPSILON * d as f64;
    let kept: Vec<usize> = (0..d).filter(|&i| values[i] > limit).collect();
    Ok(Mat::from_fn(d, kept.len(), |i, j| vectors[(i, kept[j])] * values[kept[j]].sqrt()))
}
