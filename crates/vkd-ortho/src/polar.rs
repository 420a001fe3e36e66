//! The orthonormal matrix next to a given one.

use crate::parametrization::each;
use candle_core::{DType, Error, Result, Tensor, bail};
use faer::Mat;
use faer::linalg::solvers::Svd;

/// Nearest matrix with orthonormal columns (rows, when `n < k`) in the Frobenius norm: the polar factor `U Vᵀ`.
///
/// # Shapes
/// - `weight`: `(.., n, k)`, any strides, f32 or f64
/// - output: `(.., n, k)`, contiguous, same dtype and device; nothing is recorded for the backward pass
///
/// # Numerics
/// Singular values in f64, rounded once. An orthonormal matrix is kept to rounding.
///
/// # Errors
/// Fewer than two dimensions, a width of zero, another dtype, a value that is not finite, or a matrix whose rank is not
/// full to the digits of its dtype: it has no nearest one.
///
/// # References
/// Higham, *Computing the polar decomposition, with applications*, SIAM J. Sci. Stat. Comput. 7, 1986.
///
/// # Example
/// ```
/// # use candle_core::{DType, Device, Tensor}; use vkd_ortho::{polar, stiefel_residual};
/// let weight = Tensor::new(&[[2f64, 0.], [0., 3.], [0., 4.]], &Device::Cpu)?;
/// let q = polar(&weight)?;
/// assert!(stiefel_residual(&q)? <= 1e-13);
/// let want = Tensor::new(&[[1f64, 0.], [0., 0.6], [0., 0.8]], &Device::Cpu)?;
/// assert!((q - want)?.abs()?.max_all()?.to_scalar::<f64>()? < 1e-15);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn polar(weight: &Tensor) -> Result<Tensor> {
    let dtype = weight.dtype();
    if !matches!(dtype, DType::F32 | DType::F64) {
        return Err(Error::UnsupportedDTypeForOp(dtype, "polar").bt());
    }
    polar_of(weight, dtype)?.to_dtype(dtype)
}

/// [`polar`] in f64 of a weight of any float dtype, its rank counted by the digits of `digits`.
pub(crate) fn polar_of(weight: &Tensor, digits: DType) -> Result<Tensor> {
    let (n, k) = match weight.dims() {
        [.., n, k] if *n >= 1 && *k >= 1 => (*n, *k),
        dims => bail!("polar: expected (.., n, k) with n, k >= 1, got {dims:?}"),
    };
    let epsilon = match digits {
        DType::F64 => f64::EPSILON,
        DType::F32 => f64::from(f32::EPSILON),
        DType::F16 => 2f64.powi(-10),
        _ => 2f64.powi(-7),
    };
    each(&weight.detach().to_dtype(DType::F64)?, |a| {
        if !a.is_all_finite() {
            bail!("polar: expected finite values, got one that is not")
        }
        let Ok(svd) = Svd::new_thin(a) else {
            bail!(
                "polar: expected a convergent singular value decomposition, got none for ({n}, {k})"
            )
        };
        let s = svd.S();
        let (most, least) = (s[0], s[n.min(k) - 1]);
        // The distance at which rounding of the entries alone could make the rank smaller.
        if !(least > n.max(k) as f64 * epsilon * most) {
            bail!(
                "polar: expected full rank {}, got singular values from {most:.1e} down to {least:.1e}",
                n.min(k)
            )
        }
        let product: Mat<f64> = svd.U() * svd.V().transpose();
        Ok(product)
    })
}
