//! Divergence of softened class distributions.

use crate::Reduction;
use crate::checks::{finite, widen_pair};
use crate::ops::{Target, softmax_loss};
use candle_core::{Result, Tensor};

/// Divergence of the student's softened class distribution from the teacher's, times the temperature squared.
///
/// ```text
/// row b:  T² · Σ_c p_teacher · (log p_teacher − log p_student),   p = softmax(logits / T)
/// ```
/// The sum runs over classes; [`Reduction::Mean`] is over the batch (PyTorch's `batchmean`). The factor keeps the gradient's size
/// independent of the temperature. DeiT's soft form also divides by the number of classes.
///
/// # Shapes
/// - `student_logits`, `teacher_logits`: `(B, C)`, `B, C >= 1`, any strides; f32, f64, or a half type, which is
///   computed in f32
/// - output: rank 0, or `(B,)` with [`Reduction::None`]
///
/// # Gradient
/// Flows to `student_logits`: `T (p_student − p_teacher)` per row, divided as the reduction says. The teacher must carry no gradient. The backward pass recomputes
/// both softmaxes.
///
/// # Numerics
/// All arithmetic is in f64. Never negative, zero at equality, finite for logits of ±1e4. A teacher logit of negative
/// infinity masks its class. The relative error of the value grows as 1e-16 times the
/// temperature squared: at a temperature of 1e4 about eight digits are left, at 1e6 four.
///
/// # Errors
/// `temperature` over 1e6 or under the smallest normal f32, a shape other than `(B, C)`, different shapes or dtypes,
/// a tracked teacher (detach it), another dtype, or a NaN or positive infinity in the input, which is named (where the
/// loss is one number on the CPU; rows and devices give NaN).
///
/// # References
/// Hinton, Vinyals and Dean, arXiv:1503.02531. V_kD's code uses `temperature = 1`.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::{Reduction, kl};
/// let teacher = Tensor::new(&[[2f32, 0., -1.]], &Device::Cpu)?;
/// assert_eq!(kl(&teacher, &teacher, 4., Reduction::Mean)?.to_scalar::<f32>()?, 0.);
/// assert!(kl(&teacher.neg()?, &teacher, 4., Reduction::Mean)?.to_scalar::<f32>()? > 0.);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn kl(
    student_logits: &Tensor,
    teacher_logits: &Tensor,
    temperature: f64,
    reduction: Reduction,
) -> Result<Tensor> {
    let (student, teacher) = widen_pair(student_logits, teacher_logits)?;
    let loss = softmax_loss("kl", Target::Logits { temperature }, &student, &teacher, reduction)?;
    finite("kl", loss, &[("student logits", &student), ("teacher logits", &teacher)])
}
