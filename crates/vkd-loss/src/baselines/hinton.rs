//! Knowledge distillation.

use super::tensor::Pair;
use crate::Reduction;
use crate::ops::{Target, softmax_loss};
use candle_core::{Result, Tensor, bail};

/// Hinton's knowledge distillation: labels and the teacher's softened classes, mixed.
///
/// ```text
/// (1 − alpha) · cross entropy(student, labels)  +  alpha · T² KL(teacher ‖ student),   both softened by T in KL
/// ```
/// The two parts alone are [`cross_entropy`](crate::cross_entropy) and [`kl`](crate::kl).
///
/// # Shapes
/// - `student_logits`, `teacher_logits`: `(B, C)`, the same; f32, f64, or a half type, which is computed in f32
/// - `labels`: `(B,)`, U32, each below C
/// - output: rank 0, or `(B,)` with [`Reduction::None`]
///
/// # Gradient
/// Flows to `student_logits`.
///
/// # Numerics
/// As [`kl`](crate::kl). Zero is not reached: at the teacher the labels' part is left.
///
/// # Errors
/// `alpha` outside [0, 1], and those of [`kl`](crate::kl) and [`cross_entropy`](crate::cross_entropy).
///
/// # References
/// Hinton, Vinyals and Dean, arXiv:1503.02531.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::{Reduction, baselines::hinton};
/// let teacher = Tensor::new(&[[2f32, 0., -1.]], &Device::Cpu)?;
/// let labels = Tensor::new(&[0u32], &Device::Cpu)?;
/// assert_eq!(hinton(&teacher, &teacher, &labels, 1., 4., Reduction::Mean)?.to_scalar::<f32>()?, 0.);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn hinton(
    student_logits: &Tensor,
    teacher_logits: &Tensor,
    labels: &Tensor,
    alpha: f64,
    temperature: f64,
    reduction: Reduction,
) -> Result<Tensor> {
    if !(0. ..=1.).contains(&alpha) {
        bail!("hinton: expected 0 <= alpha <= 1, got {alpha}")
    }
    let pair = Pair::logits("hinton", student_logits, teacher_logits)?;
    let rows = |kind, target| softmax_loss("hinton", kind, &pair.student, target, Reduction::None);
    let soft = rows(Target::Logits { temperature }, &pair.teacher)?;
    let hard = rows(Target::Labels { smoothing: 0. }, labels)?;
    let rows = ((hard * (1. - alpha))? + (soft * alpha)?)?;
    pair.finish(&reduction.apply(&rows, rows.elem_count())?)
}
