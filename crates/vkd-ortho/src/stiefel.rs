//! The Stiefel manifold: matrices with orthonormal columns (tall, square) or rows (wide).

use crate::linalg::{self, orthonormalize};
use candle_core::{D, DType, Device, Error, Result, Tensor, bail};
use faer::{Mat, MatRef};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// Distance from orthonormality: the largest `|QᵀQ - I|` when `n >= k`, the largest `|QQᵀ - I|` when `n < k`.
///
/// Measured in f64 for every dtype. Batched input gives the worst matrix, an empty batch zero. NaN anywhere gives infinity.
/// Nothing is recorded for the backward pass.
///
/// # Shapes
/// - `q`: `(.., n, k)`, any strides
///
/// # Errors
/// Fewer than two dimensions.
///
/// ```
/// # use candle_core::{DType, Device, Tensor}; use vkd_ortho::stiefel_residual;
/// let q = Tensor::eye(4, DType::F32, &Device::Cpu)?.narrow(1, 0, 2)?;
/// assert_eq!(stiefel_residual(&q)?, 0.);
/// assert_eq!(stiefel_residual(&(q * 2.)?)?, 3.);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn stiefel_residual(q: &Tensor) -> Result<f64> {
    stiefel_residual_tensor(q)?.to_scalar()
}

/// [`stiefel_residual`] as a tensor of rank 0 in f64. On CUDA it is computed and stays where `q` is, and nobody waits for it; else it is on
/// the CPU.
///
/// # Errors
/// Those of [`stiefel_residual`].
pub fn stiefel_residual_tensor(q: &Tensor) -> Result<Tensor> {
    let (n, k) = match q.dims() {
        [.., n, k] => (*n, *k),
        dims => bail!("stiefel_residual: expected (.., n, k), got {dims:?}"),
    };
    if q.elem_count() == 0 {
        return Tensor::new(0f64, &Device::Cpu);
    }
    if q.device().is_cuda() {
        return on_device(q);
    }
    let values = q.detach().to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let worst = values.chunks_exact(n * k).map(|matrix| {
        let q = MatRef::from_row_major_slice(matrix, n, k);
        linalg::residual(if n >= k { q } else { q.transpose() })
    });
    Tensor::new(worst.fold(0., f64::max), &Device::Cpu)
}

/// From plain tensor ops.
fn on_device(q: &Tensor) -> Result<Tensor> {
    let q = q.detach().to_dtype(DType::F64)?;
    let (n, k) = (q.dim(D::Minus2)?, q.dim(D::Minus1)?);
    let turned = q.transpose(D::Minus2, D::Minus1)?.contiguous()?;
    let q = q.contiguous()?;
    let gram = if n >= k { turned.matmul(&q)? } else { q.matmul(&turned)? };
    let apart = gram.broadcast_sub(&Tensor::eye(n.min(k), DType::F64, q.device())?)?.abs()?;
    // Some devices' maximum passes NaN over.
    let infinite = Tensor::full(f64::INFINITY, apart.shape(), q.device())?;
    apart.ne(&apart)?.where_cond(&infinite, &apart)?.max_all()
}

/// Draws an `n x k` matrix with orthonormal columns from the Haar (uniform) distribution.
///
/// The QR factor of a Gaussian matrix, each column multiplied by the sign that makes the diagonal of `R` positive;
/// without the signs the draw is not uniform. The same seed gives the same matrix, in f32 the rounded one of f64.
///
/// # Shapes
/// - output: `(n, k)` with `1 <= k <= n`
///
/// # Numerics
/// Computed in f64. The residual is at most 1e-6 in f32 and 1e-13 in f64.
///
/// # Errors
/// `k = 0`, `n < k`, or a dtype other than f32 and f64.
///
/// # References
/// Mezzadri, *How to generate random matrices from the classical compact groups*, arXiv:math-ph/0609050.
///
/// ```
/// # use candle_core::{DType, Device}; use vkd_ortho::{sample_stiefel, stiefel_residual};
/// let q = sample_stiefel(100, 10, 42, DType::F64, &Device::Cpu)?;
/// assert!(stiefel_residual(&q)? <= 1e-13);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn sample_stiefel(
    n: usize,
    k: usize,
    seed: u64,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    if k == 0 || n < k {
        bail!("sample_stiefel: expected n >= k >= 1, got n = {n}, k = {k}")
    }
    if !matches!(dtype, DType::F32 | DType::F64) {
        return Err(Error::UnsupportedDTypeForOp(dtype, "sample_stiefel").bt());
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let gaussian = Mat::from_fn(n, k, |_, _| rng.sample::<f64, _>(StandardNormal));
    let q = orthonormalize(gaussian.as_ref());
    let values: Vec<f64> = (0..n * k).map(|at| q[(at / k, at % k)]).collect();
    Tensor::from_vec(values, (n, k), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vkd_testkit::normal;

    #[test]
    fn the_device_path_is_the_cpu_s() -> Result<()> {
        for dims in [vec![4, 4], vec![9, 3], vec![3, 9], vec![2, 5, 2], vec![1, 1]] {
            let q = normal(&dims, DType::F64, 1)?;
            let (got, want) = (on_device(&q)?.to_scalar::<f64>()?, stiefel_residual(&q)?);
            assert!((got - want).abs() <= 1e-13 * want.max(1.), "{dims:?}: {got} {want}");
        }
        let q = sample_stiefel(20, 6, 3, DType::F32, &Device::Cpu)?;
        assert!(on_device(&q)?.to_scalar::<f64>()? <= 1e-6);
        let broken = (q.narrow(0, 0, 7)? * f64::NAN)?;
        assert_eq!(on_device(&broken)?.to_scalar::<f64>()?, f64::INFINITY);
        assert_eq!(stiefel_residual(&broken)?, f64::INFINITY);
        Ok(())
    }
}
