//! Smooth-L1.

use crate::Reduction;
use crate::checks::{finite, widen_pair};
use crate::dense::check_positive;
use crate::ops::{Pointwise, pointwise};
use candle_core::{Result, Tensor};

/// Smooth-L1 loss: quadratic up to `beta`, linear beyond.
///
/// With `d = student - teacher`, each entry counts `d² / 2β` where `|d| < β` and `|d| − β/2` elsewhere.
///
/// # Shapes
/// - `student`, `teacher`: any shape, the same, at least one entry; f32, f64, or a half type, which is
///   computed in f32
/// - output: rank 0, or the input's shape with [`Reduction::None`]
///
/// # Gradient
/// Flows to `student`: `d/β` cut to [-1, 1], divided as the reduction says. Continuous at `|d| = β`, zero at
/// `d = 0`. The teacher must carry no gradient. One pass each way, without temporaries.
///
/// # Numerics
/// Entries in the dtype, sums joined in f64.
///
/// # Errors
/// `beta` not finite or under the smallest normal f32, different shapes or dtypes, no entries, a tracked teacher (detach it),
/// another dtype, or a NaN or infinity in the input, which is named (where the loss is one number on the CPU).
///
/// # References
/// PyTorch's `smooth_l1_loss`; V_kD (arXiv:2403.06213) in code, with `beta = 1` (its poster writes [`mse`](crate::mse)).
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::{Reduction, smooth_l1};
/// let student = Tensor::new(&[0.5f64, 3.], &Device::Cpu)?;
/// let loss = smooth_l1(&student, &student.zeros_like()?, 1., Reduction::Mean)?;
/// assert_eq!(loss.to_scalar::<f64>()?, (0.125 + 2.5) / 2.);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn smooth_l1(
    student: &Tensor,
    teacher: &Tensor,
    beta: f64,
    reduction: Reduction,
) -> Result<Tensor> {
    check_positive("smooth_l1", "beta", beta)?;
    let (student, teacher) = widen_pair(student, teacher)?;
    let loss = pointwise(Pointwise::SmoothL1 { beta }, &student, &teacher, reduction)?;
    finite("smooth_l1", loss, &[("student", &student), ("teacher", &teacher)])
}
