//! Thin exponential of a skew matrix.

mod cpu;
pub(super) mod reference;

use super::common;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

const NAME: &str = "matrix_exp";

/// First `k` columns of the exponential of a skew matrix.
///
/// The strict lower triangle of `raw`, padded to `n x n`, minus its transpose is the skew matrix A. The result is
/// ```text
/// Q = exp(A) E,   E the first k columns of the identity,
/// ```
/// orthonormal for every finite `raw`. A has rank at most `2k`: an orthonormal basis of the columns below the top block
/// reduces it to a skew matrix K of at most `2k x 2k`, and the eigenvalues of the Hermitian `iK` give the exponential.
///
/// # Shapes
/// - `raw`: `(.., n, k)` with `1 <= k <= n`, any strides, f32 or f64
/// - output: `(.., n, k)`, contiguous, same dtype and device
///
/// # Gradient
/// Flows to `raw`; exactly zero on and above the diagonal. It is the Fréchet derivative by divided differences in the form
/// `e^{i(a+b)/2} sinc((a−b)/2)`, which no coincidence of eigenvalues disturbs, and is exact where the columns lose
/// rank, zero included. The backward pass recomputes basis and eigenvalues.
///
/// # Numerics
/// Computed in f64, rounded once. `stiefel_residual(Q)` is at most 1e-6 in f32 and 1e-13 in f64 at every size and for every
/// finite `raw`. Digits of `Q` itself are lost in proportion to the norm of A, as in any method: angles are only known
/// to `2e-16 ‖A‖`. Zero gives the identity exactly.
///
/// # Errors
/// Fewer than two dimensions, `n < k`, `k = 0`, a dtype other than f32 and f64, or an entry below the diagonal that is not
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
    common::check(NAME, raw)?;
    raw.contiguous()?.apply_op1(MatrixExp)
}

struct MatrixExp;

impl CustomOp1 for MatrixExp {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        common::apply1(NAME, storage, layout, cpu::forward)
    }

    fn bwd(&self, arg: &Tensor, _res: &Tensor, grad_res: &Tensor) -> Result<Option<Tensor>> {
        arg.apply_op2_no_bwd(&grad_res.contiguous()?, &MatrixExpBackward).map(Some)
    }
}

struct MatrixExpBackward;

impl CustomOp2 for MatrixExpBackward {
    fn name(&self) -> &'static str {
        "matrix_exp_backward"
    }

    fn cpu_fwd(
        &self,
        raw: &CpuStorage,
        raw_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        common::apply2(NAME, (raw, raw_layout), (grad, grad_layout), cpu::backward)
    }
}
