//! Distillation of standardised logits.

use super::tensor::{Pair, lengths};
use crate::Reduction;
use crate::ops::{Target, softmax_loss};
use candle_core::{D, Result, Tensor, bail};

/// Divergence of class distributions whose logits were standardised row by row: `T² KL` of `Z(logits) / T`.
///
/// ```text
/// Z(x) = (x − mean) / (1e-7 + deviation),   the deviation unbiased
/// ```
/// The student may then have logits of another scale and offset than the teacher. The paper multiplies by `T²`, as here;
/// torchdistill leaves it to an outer weight.
///
/// # Shapes
/// - `student_logits`, `teacher_logits`: `(B, C)`, the same, `C >= 2`; f32, f64, or a half type, which is computed in f32
/// - output: rank 0, or `(B,)` with [`Reduction::None`]
///
/// # Gradient
/// Flows to `student_logits`.
///
/// # Numerics
/// In f64; zero at equality, finite for logits of ±1e4. A constant row standardises to zero; its gradient is up to 1e7 times
/// that of [`kl`](crate::kl).
///
/// # Errors
/// Fewer than two classes, and those of [`kl`](crate::kl).
///
/// # References
/// Sun et al., arXiv:2403.01427.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::{Reduction, baselines::logit_standardization};
/// let teacher = Tensor::new(&[[2f64, 0., -1.]], &Device::Cpu)?;
/// let student = teacher.affine(10., 3.)?;
/// let loss = logit_standardization(&student, &teacher, 2., Reduction::Mean)?;
/// assert!(loss.to_scalar::<f64>()?.abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn logit_standardization(
    student_logits: &Tensor,
    teacher_logits: &Tensor,
    temperature: f64,
    reduction: Reduction,
) -> Result<Tensor> {
    const OP: &str = "logit_standardization";
    let pair = Pair::logits(OP, student_logits, teacher_logits)?;
    let classes = pair.student.dim(D::Minus1)?;
    if classes < 2 {
        bail!("{OP}: expected at least two classes, got {classes}")
    }
    let standardize = |xs: &Tensor| {
        let centred = xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?;
        let deviation = (lengths(&centred)? / (classes as f64 - 1.).sqrt())?;
        centred.broadcast_div(&(deviation + 1e-7)?)
    };
    let (student, teacher) = (standardize(&pair.student)?, standardize(&pair.teacher)?);
    let rows =
        softmax_loss(OP, Target::Logits { temperature }, &student, &teacher, Reduction::None)?;
    pair.finish(&reduction.apply(&rows, rows.elem_count())?)
}
