//! Product of Householder reflectors.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod kernel_tests;
#[cfg(any(feature = "cuda", test))]
mod launch;
pub(super) mod reference;

use super::common;
use candle_core::{Result, Tensor};

const NAME: &str = "householder_product";

/// First `k` columns of a product of Householder reflectors.
///
/// Let `vⱼ` be column j of the strict lower triangle of `v` plus the unit vector `eⱼ`, and `τⱼ = 2/‖vⱼ‖²`. The result is
/// ```text
/// Q = H₁ H₂ ⋯ Hₖ E,   Hⱼ = I − τⱼ vⱼ vⱼᵀ,   E the first k columns of the identity.
/// ```
/// Each `Hⱼ` is orthogonal, so `QᵀQ = I` for every finite `v`; the diagonal of `v` and what lies above it are never read.
///
/// # Shapes
/// - `v`: `(.., n, k)` with `1 <= k <= n`, any strides, f64, f32, bf16 or f16
/// - output: `(.., n, k)`, contiguous, same dtype and device
///
/// # Gradient
/// Flows to `v`; exactly zero on and above the diagonal. `Q = E − U Z` with the reflectors scaled to unit length as the columns of `U`
/// and a triangular `Z` from one `k x k` solve (compact WY of all reflectors at once); the backward pass is the adjoint
/// of that, three products of full height. The `k x k` factor is kept from the forward to the first backward pass.
///
/// # Numerics
/// `stiefel_residual(Q)` is at most 1e-6 in f32 and 1e-13 in f64 at every size and for every finite `v`; half types add their
/// own rounding. The result is measured: where reflectors so nearly parallel were met that it is off by 5e-7 (2e-14 in f64), it is computed
/// again in f64 by blocks of 32 reflectors. `v = 0` gives minus the identity exactly.
/// Off the CPU all but reading `v` and writing Q is in f64; the result is not measured, and `v` not looked at: NaN gives NaN.
/// On a CUDA device the triangle is inverted by tiles, and an f64 result is polished by one step of Newton's iteration.
///
/// # Errors
/// Fewer than two dimensions, `n < k`, `k = 0`, a dtype that is no float, or an entry below the diagonal that is not
/// finite. Does not panic.
///
/// # References
/// Golub and Van Loan, *Matrix Computations*, 4th ed., section 5.1. Schreiber and Van Loan, *A storage-efficient WY representation
/// for products of Householder transformations*, 1989. VkD, arXiv:2403.06213.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_ortho::{householder_product, stiefel_residual};
/// let v = Tensor::arange(0f32, 48., &Device::Cpu)?.reshape((12, 4))?;
/// let q = householder_product(&v)?;
/// assert!(stiefel_residual(&q)? <= 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn householder_product(v: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if v.device().is_cuda() && v.elem_count() > 0 {
        common::check(NAME, v)?;
        return cuda::householder_product(v);
    }
    common::apply::<cpu::Householder>(v)
}
