//! Thin Cayley transform.

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

const NAME: &str = "cayley";

/// First `k` columns of the Cayley transform of a skew matrix.
///
/// The strict lower triangle of `raw`, padded to `n x n`, minus its transpose is the skew matrix A. The result is
/// ```text
/// Q = (I − A/2)⁻¹ (I + A/2) E,   E the first k columns of the identity,
/// ```
/// orthonormal for every finite `raw`. With B the top `k x k` block of A, C the rows of `raw` below it,
/// and `M = (I − B/2 + CᵀC/4)⁻¹`, it is `Q = [2M − I; C M]`: one `k x k` inverse, and no `n x n` matrix.
/// The halves make the derivative at zero the identity, as in PyTorch. The transform never has the eigenvalue -1: a frame
/// whose top block has it is reached only in the limit of an infinite parameter.
///
/// # Shapes
/// - `raw`: `(.., n, k)` with `1 <= k <= n`, any strides, f64, f32, bf16 or f16
/// - output: `(.., n, k)`, contiguous, same dtype and device
///
/// # Gradient
/// Flows to `raw`; exactly zero on and above the diagonal. `M` is kept from the forward to the first backward pass; the rest is
/// three products of full height.
///
/// # Numerics
/// `stiefel_residual(Q)` is at most 1e-6 in f32 and 1e-13 in f64 at every size and for every finite `raw`; half types add their
/// own rounding. The inverse is in f64, the large products in the tensor's type. `CᵀC` squares the spread of the singular
/// values, so the result is measured: an f32 result that is off by 5e-7 is computed again in f64, and where f64 is off by
/// 1e-8 (2e-14 for an f64 tensor) the transform comes from the eigenvalues of a `2k x 2k` skew matrix, several times slower and orthonormal at every
/// scale, with digits of `Q` lost in proportion to the norm of A. Zero gives the identity exactly.
/// On a CUDA device the inverse is an elimination over tiles and all but reading `raw` and writing Q is in f64; nothing is
/// copied to the host, so the result is not measured and NaN gives NaN. An f64 result is polished by one step of Newton's
/// iteration instead. The laws hold there for entries up to about 3e4. On other devices the inverse is iterated by products,
/// and one norm is copied to the host.
///
/// # Errors
/// Fewer than two dimensions, `n < k`, `k = 0`, a dtype that is no float, or an entry below the diagonal that is not
/// finite. Does not panic.
///
/// # References
/// Cayley, *Sur quelques propriétés des déterminants gauches*, 1846. Wen and Yin, *A feasible method for optimization with orthogonality
/// constraints*, 2013. The thin form is derived in `docs/math/stiefel.md`.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_ortho::{cayley, stiefel_residual};
/// let raw = Tensor::arange(0f32, 48., &Device::Cpu)?.reshape((12, 4))?;
/// let q = cayley(&raw)?;
/// assert!(stiefel_residual(&q)? <= 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn cayley(raw: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if raw.device().is_cuda() && raw.elem_count() > 0 {
        common::check(NAME, raw)?;
        return cuda::cayley(raw);
    }
    common::apply::<cpu::Cayley>(raw)
}
