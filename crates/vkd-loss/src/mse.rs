//! Mean squared error.

use crate::Reduction;
use crate::checks::{finite, widen_pair};
use crate::ops::{Pointwise, pointwise};
use candle_core::{Result, Tensor};

/// Squared difference of each entry, reduced.
///
/// # Shapes
/// - `student`, `teacher`: any shape, the same, at least one entry; f32, f64, or a half type, which is
///   computed in f32
/// - output: rank 0, or the input's shape with [`Reduction::None`]
///
/// # Gradient
/// Flows to `student`. The teacher must carry no gradient. One pass each way, without temporaries.
///
/// # Numerics
/// Squares in the dtype, sums joined in f64; f32 overflows above differences of 1e18.
///
/// # Errors
/// Different shapes or dtypes, no entries, a tracked teacher (detach it), another dtype, or a NaN or infinity in the
/// input, which is named (where the loss is one number on the CPU).
///
/// # References
/// FitNets, arXiv:1412.6550; Algorithm 1 of V_kD, arXiv:2403.06213.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::{Reduction, mse};
/// let student = Tensor::new(&[1f32, 3.], &Device::Cpu)?;
/// let loss = mse(&student, &student.zeros_like()?, Reduction::Mean)?;
/// assert_eq!(loss.to_scalar::<f32>()?, 5.);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn mse(student: &Tensor, teacher: &Tensor, reduction: Reduction) -> Result<Tensor> {
    let (student, teacher) = widen_pair(student, teacher)?;
    let loss = pointwise(Pointwise::Mse, &student, &teacher, reduction)?;
    finite("mse", loss, &[("student", &student), ("teacher", &teacher)])
}
