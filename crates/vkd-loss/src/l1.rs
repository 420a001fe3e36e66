//! Mean absolute difference.

use crate::Reduction;
use crate::checks::{finite, widen_pair};
use crate::ops::{Pointwise, pointwise};
use candle_core::{Result, Tensor};

/// L1 loss: `|student − teacher|`, the distance of box coordinates in DETR and ViDT.
///
/// # Shapes
/// - `student`, `teacher`: any shape, the same, at least one entry; f32, f64, or a half type, which is computed in f32
/// - output: rank 0, or the input's shape with [`Reduction::None`]
///
/// # Gradient
/// Flows to `student`: the sign of the difference, zero at zero, divided as the reduction says. The teacher must carry no
/// gradient. One pass each way.
///
/// # Numerics
/// Entries in the dtype, sums joined in f64.
///
/// # Errors
/// Different shapes or dtypes, no entries, a tracked teacher (detach it), another dtype, or a NaN or infinity in the input,
/// which is named (where the loss is one number on the CPU).
///
/// # References
/// PyTorch's `l1_loss`; DETR, arXiv:2005.12872.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::{Reduction, l1};
/// let student = Tensor::new(&[0.5f64, -3.], &Device::Cpu)?;
/// let loss = l1(&student, &student.zeros_like()?, Reduction::Sum)?;
/// assert_eq!(loss.to_scalar::<f64>()?, 3.5);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn l1(student: &Tensor, teacher: &Tensor, reduction: Reduction) -> Result<Tensor> {
    let (student, teacher) = widen_pair(student, teacher)?;
    let loss = pointwise(Pointwise::L1, &student, &teacher, reduction)?;
    finite("l1", loss, &[("student", &student), ("teacher", &teacher)])
}
