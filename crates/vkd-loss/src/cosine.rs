//! Angle between paired rows.

use crate::Reduction;
use crate::checks::{finite, widen_pair};
use crate::dense::check_positive;
use crate::ops::{RowLoss, row_loss};
use candle_core::{Result, Tensor};

/// One less the cosine of the angle between paired rows: 0 for the same direction, 2 for opposite ones.
///
/// # Shapes
/// - `student`, `teacher`: `(.., C)`, the same, at least one entry; one dtype: f32, f64, or a half type, which is computed
///   in f32
/// - output: rank 0, or `(..)` with [`Reduction::None`]
///
/// # Gradient
/// Flows to `student`, at a right angle to it. The teacher must carry no gradient. One pass each way.
///
/// # Numerics
/// All arithmetic is in f64. A row no longer than `eps` has no direction: its entry is 1 and its gradient 0. Above `eps` the
/// length of either row does not matter. f64 overflows above lengths of 1e154.
///
/// # Errors
/// `eps` not finite or under the smallest normal f32, different shapes or dtypes, no entries, a tracked teacher (detach it),
/// another dtype, or a NaN or infinity in the input, which is named (where the loss is one number on the CPU).
///
/// # References
/// PyTorch's `cosine_embedding_loss` with all targets 1.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::{Reduction, cosine};
/// let student = Tensor::new(&[[1f32, 0.], [0., 2.]], &Device::Cpu)?;
/// let teacher = Tensor::new(&[[3f32, 0.], [1., 0.]], &Device::Cpu)?;
/// assert_eq!(cosine(&student, &teacher, 1e-8, Reduction::None)?.to_vec1::<f32>()?, [0., 1.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn cosine(
    student: &Tensor,
    teacher: &Tensor,
    eps: f64,
    reduction: Reduction,
) -> Result<Tensor> {
    check_positive("cosine", "eps", eps)?;
    let (student, teacher) = widen_pair(student, teacher)?;
    let loss = row_loss(RowLoss::Cosine { eps }, &student, &teacher, reduction)?;
    finite("cosine", loss, &[("student", &student), ("teacher", &teacher)])
}
