//! Thin exponential of a skew matrix.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod kernel_tests;
#[cfg(any(feature = "cuda", test))]
mod launch;
#[cfg(any(feature = "cuda", test))]
mod phi;
mod real;
pub(super) mod reference;

use super::common;
use candle_core::{Result, Tensor};

const NAME: &str = "matrix_exp";

/// First `k` columns of the exponential of a skew matrix.
///
/// The strict lower triangle of `raw`, padded to `n x n`, minus its transpose is the skew matrix A. The result is
/// ```text
/// Q = exp(A) E,   E the first k columns of the identity,
/// ```
/// orthonormal for every finite `raw`. A has rank at most `2k`: it is reduced to a skew matrix K of at most `2k x 2k`, whose
/// eigenvalues give the exponential.
///
/// # Shapes
/// - `raw`: `(.., n, k)` with `1 <= k <= n`, any strides, f64, f32, bf16 or f16
/// - output: `(.., n, k)`, contiguous, same dtype and device
///
/// # Gradient
/// Flows to `raw`; exactly zero on and above the diagonal. It is the Fréchet derivative by divided differences, which no
/// coincidence of eigenvalues disturbs, and is exact where the columns lose rank, zero included. The eigenvectors are kept
/// from the forward to the first backward pass, `O(k²)`; the Hermitian form keeps a basis of the columns too, `O(nk)`.
///
/// # Numerics
/// `stiefel_residual(Q)` is at most 1e-6 in f32 and 1e-13 in f64 at every size and for every finite `raw`; half types add their
/// own rounding. For f32 with `‖A‖` up to 2000 the real symmetric eigenproblem of `KᵀK` is enough; beyond, and for f64, it is
/// the Hermitian one of `iK`, several times slower and orthonormal at any norm. Digits of `Q` itself are lost in proportion to the norm of A, as in
/// any method: angles are only known to `2e-16 ‖A‖`. Zero gives the identity to rounding.
/// Off the CPU all but reading `raw` and writing Q is in f64, by products of matrices: a series and doublings. The residual
/// grows with the norm, for `n = k` with its square: to 1e-9 at `‖A‖` of 4e3. It is not measured. On a CUDA device each matrix
/// decides there how many doublings it needs, so that nothing is copied to the host; above twenty, at a norm of about 5e5,
/// the result is NaN, and NaN gives NaN. An f64 result is polished by one step of Newton's iteration. On other devices one
/// norm is copied to the host.
///
/// # Errors
/// Fewer than two dimensions, `n < k`, `k = 0`, a dtype that is no float, or an entry below the diagonal that is not
/// finite, or so large (near the end of f64) that an eigenvalue is not. Does not panic.
///
/// # References
/// Edelman, Arias and Smith, *The geometry of algorithms with orthogonality constraints*, 1998, section 2.4. Higham, *Functions of
/// Matrices*, 2008, theorem 3.11 (Daleckii and Krein). VkD, arXiv:2403.06213, algorithm 1.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_ortho::{matrix_exp, stiefel_residual};
/// let raw = Tensor::arange(0f32, 48., &Device::Cpu)?.reshape((12, 4))?;
/// let q = matrix_exp(&raw)?;
/// assert!(stiefel_residual(&q)? <= 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn matrix_exp(raw: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if raw.device().is_cuda() && raw.elem_count() > 0 {
        common::check(NAME, raw)?;
        return cuda::matrix_exp(raw);
    }
    common::apply::<cpu::MatrixExp>(raw)
}
