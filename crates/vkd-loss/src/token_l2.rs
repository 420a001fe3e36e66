//! Distance between paired tokens.

use crate::Reduction;
use crate::checks::{finite, widen_pair};
use crate::ops::{RowLoss, row_loss};
use candle_core::{Result, Tensor};

/// Euclidean distance between paired rows, such as tokens: `‖student − teacher‖₂` over the last dimension.
///
/// ViDT's token matching is the square root of the sum over its taps of this loss with [`Reduction::Mean`].
///
/// # Shapes
/// - `student`, `teacher`: `(.., C)`, the same, at least one entry; one dtype: f32, f64, or a half type, which is computed
///   in f32
/// - output: rank 0, or `(..)` with [`Reduction::None`]
///
/// # Gradient
/// Flows to `student`: the unit vector away from the teacher's row; zero where the two coincide. The teacher must carry no
/// gradient. One pass each way.
///
/// # Numerics
/// All arithmetic is in f64, which overflows above distances of 1e154.
///
/// # Errors
/// Different shapes or dtypes, no entries, a tracked teacher (detach it), another dtype, or a NaN or infinity in the
/// input, which is named (where the loss is one number on the CPU).
///
/// # References
/// ViDT, arXiv:2110.03921.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::{Reduction, token_l2};
/// let student = Tensor::new(&[[3f32, 4.], [0., 1.]], &Device::Cpu)?;
/// let loss = token_l2(&student, &student.zeros_like()?, Reduction::Mean)?;
/// assert_eq!(loss.to_scalar::<f32>()?, 3.);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn token_l2(student: &Tensor, teacher: &Tensor, reduction: Reduction) -> Result<Tensor> {
    let (student, teacher) = widen_pair(student, teacher)?;
    let loss = row_loss(RowLoss::Distance, &student, &teacher, reduction)?;
    finite("token_l2", loss, &[("student", &student), ("teacher", &teacher)])
}
