//! Mean squared error.

use crate::ops::{Pointwise, pointwise};
use candle_core::{Result, Tensor};

/// Mean over all entries of the squared difference.
///
/// # Shapes
/// - `student`, `teacher`: any shape, the same, at least one entry; f32 or f64
/// - output: rank 0
///
/// # Gradient
/// Flows to `student`. The teacher must carry no gradient. One pass each way, without temporaries.
///
/// # Numerics
/// Squares in the dtype, sums joined in f64. NaN and infinity propagate; f32 overflows above differences of 1e18.
///
/// # Errors
/// Different shapes or dtypes, no entries, a tracked teacher (detach it), or another dtype.
///
/// # References
/// FitNets, arXiv:1412.6550; Algorithm 1 of V_kD, arXiv:2403.06213.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::mse;
/// let student = Tensor::new(&[1f32, 3.], &Device::Cpu)?;
/// assert_eq!(mse(&student, &student.zeros_like()?)?.to_scalar::<f32>()?, 5.);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn mse(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    pointwise(Pointwise::Mse, student, teacher)
}
