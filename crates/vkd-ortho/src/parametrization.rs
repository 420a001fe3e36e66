//! Parametrisations as a trait: forward, right inverse, and how far a result is from the manifold.

use crate::linalg::orthonormalize;
use crate::{OrthogonalMap, inverse, logarithm, stiefel_residual};
use candle_core::{D, DType, Error, Result, Tensor, bail};
use faer::{Mat, MatRef};

/// A smooth map from a free `(.., n, k)` tensor onto matrices with orthonormal columns, and a way back.
///
/// The law: `forward(right_inverse(q)) = q` for every `q` that `right_inverse` accepts. The other order need not hold;
/// many parameters may stand for one matrix.
///
/// ```
/// use candle_core::{DType, Device};
/// use vkd_ortho::{OrthogonalMap, Parametrization, sample_stiefel};
///
/// let q = sample_stiefel(9, 4, 1, DType::F64, &Device::Cpu)?;
/// for map in [OrthogonalMap::Householder, OrthogonalMap::Cayley] {
///     let raw = map.right_inverse(&q)?;
///     let error = (map.forward(&raw)? - &q)?.abs()?.max_all()?.to_scalar::<f64>()?;
///     assert!(error < 1e-12);
/// }
/// # Ok::<(), candle_core::Error>(())
/// ```
pub trait Parametrization {
    /// The matrices of the parameters `raw`, of the same shape `(.., n, k)`; differentiable.
    ///
    /// # Errors
    /// A shape or dtype that the map does not take, or a parameter that is not finite.
    fn forward(&self, raw: &Tensor) -> Result<Tensor>;

    /// Parameters that [`forward`](Self::forward) maps to `q`, of the same shape `(.., n, k)`; not differentiable.
    ///
    /// # Errors
    /// A `q` that is not orthonormal, or that the map does not reach; both say by how much.
    fn right_inverse(&self, q: &Tensor) -> Result<Tensor>;

    /// Distance of `q` from the image of the map: [`stiefel_residual`] unless said otherwise.
    ///
    /// # Errors
    /// Fewer than two dimensions.
    fn residual(&self, q: &Tensor) -> Result<f64> {
        stiefel_residual(q)
    }
}

/// The three maps.
///
/// # What `right_inverse` accepts
/// f32 or f64, `n >= k`, residual at most 1e-5 in f32 and 1e-10 in f64, and of those
///
/// | map | not accepted |
/// | --- | --- |
/// | Householder | a column that the reflectors before it leave at its unit vector (the identity, for one); `n = k` with determinant other than `(-1)^k` |
/// | Cayley | a top block `Q₁` with an eigenvalue within about 1e-10 of -1 |
/// | matrix exponential | frames so far from the first unit vectors that the iteration does not converge; half turns; `n = k` with determinant -1 |
///
/// # Numerics
/// Computed in f64. Every result is mapped forward before it is returned; what misses `q` by more than the accepted
/// residual is an error. In f64 the round trip is exact to 1e-12 for parameters of moderate size.
impl Parametrization for OrthogonalMap {
    fn forward(&self, raw: &Tensor) -> Result<Tensor> {
        self.apply(raw)
    }

    fn right_inverse(&self, q: &Tensor) -> Result<Tensor> {
        parameters(*self, q, q.dtype())
    }
}

/// How far a given matrix may be from orthonormal, and its parameter from the matrix: rounding with room for long sums.
pub(crate) fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F64 { 1e-10 } else { 1e-5 }
}

/// [`Parametrization::right_inverse`] of a `q` that carries the digits of `dtype`, whatever it is stored in.
pub(crate) fn parameters(map: OrthogonalMap, q: &Tensor, dtype: DType) -> Result<Tensor> {
    if !matches!(q.dtype(), DType::F32 | DType::F64) {
        return Err(Error::UnsupportedDTypeForOp(q.dtype(), "right_inverse").bt());
    }
    match q.dims() {
        [.., n, k] if n >= k && *k >= 1 => {}
        dims => bail!("{map} right_inverse: expected (.., n, k) with n >= k >= 1, got {dims:?}"),
    }
    check_orthonormal(&format!("{map} right_inverse"), q, tolerance(dtype))?;
    // Below this a distance is rounding of the input.
    let floor = if dtype == DType::F64 { 1e-13 } else { 1e-7 };
    let q = q.detach().to_dtype(DType::F64)?;
    let raw = each(&q, |q| {
        let q = orthonormalize(q);
        match map {
            OrthogonalMap::Householder => inverse::householder(q.as_ref(), floor),
            OrthogonalMap::Cayley => inverse::cayley(q.as_ref()),
            OrthogonalMap::MatrixExp => logarithm::matrix_exp(q.as_ref()),
        }
    })?
    .to_dtype(dtype)?;
    if raw.elem_count() > 0 {
        let back = map.apply(&raw.to_dtype(DType::F64)?)?;
        let miss = (back - q)?.abs()?.max_all()?.to_scalar::<f64>()?;
        if !(miss <= tolerance(dtype)) {
            bail!(
                "{map} right_inverse: expected a parameter that maps back to within {:.0e}, got one that misses by {miss:.1e}",
                tolerance(dtype)
            )
        }
    }
    Ok(raw)
}

/// Errors unless `q` is orthonormal to `limit`; says by how much it is not.
pub(crate) fn check_orthonormal(op: &str, q: &Tensor, limit: f64) -> Result<()> {
    let residual = stiefel_residual(q)?;
    if !(residual <= limit) {
        bail!(
            "{op}: expected an orthonormal matrix (residual at most {limit:.0e}), got residual {residual:.1e}"
        )
    }
    Ok(())
}

/// Applies `f` to every matrix of an f64 tensor, in order; the errors of a batch name the matrix.
pub(crate) fn each(xs: &Tensor, f: impl Fn(MatRef<'_, f64>) -> Result<Mat<f64>>) -> Result<Tensor> {
    let (n, k) = (xs.dim(D::Minus2)?, xs.dim(D::Minus1)?);
    let values = xs.flatten_all()?.to_vec1::<f64>()?;
    let mut out = Vec::with_capacity(values.len());
    for (at, matrix) in values.chunks_exact(n * k).enumerate() {
        let made = f(MatRef::from_row_major_slice(matrix, n, k));
        let made = match xs.rank() {
            2 => made?,
            _ => made.map_err(|e| e.context(format!("matrix {at} of the batch")))?,
        };
        out.extend((0..n * k).map(|at| made[(at / k, at % k)]));
    }
    Tensor::from_vec(out, xs.shape(), xs.device())
}
