//! DeiT's two distillation losses.

use super::Form;
use super::tensor::Pair;
use crate::ops::{Target, softmax_loss};
use crate::{Reduction, cross_entropy};
use candle_core::{D, DType, Result, Tensor, bail};

/// Hard-label distillation: cross entropy with the teacher's most likely class.
///
/// DeiT halves it and the labels' own cross entropy, on two heads or one: two terms for the caller to add.
///
/// # Shapes
/// - `student_logits`, `teacher_logits`: `(B, C)`, the same; f32, f64, or a half type, which is computed in f32
/// - output: rank 0, or `(B,)` with [`Reduction::None`]
///
/// # Gradient
/// Flows to `student_logits`.
///
/// # Numerics
/// As [`cross_entropy`]. Among equal teacher logits the first counts. Not zero at equality.
///
/// # Errors
/// Different shapes or dtypes, a tracked teacher (detach it), a NaN in the teacher (on the CPU), and those of
/// [`cross_entropy`].
///
/// # References
/// Touvron et al., arXiv:2012.12877, equation 3.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::{Reduction, baselines::deit_hard};
/// let student = Tensor::new(&[[0f64, 0.]], &Device::Cpu)?;
/// let teacher = Tensor::new(&[[-3f64, 5.]], &Device::Cpu)?;
/// let loss = deit_hard(&student, &teacher, Reduction::Mean)?.to_scalar::<f64>()?;
/// assert!((loss - 2f64.ln()).abs() < 1e-15);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn deit_hard(
    student_logits: &Tensor,
    teacher_logits: &Tensor,
    reduction: Reduction,
) -> Result<Tensor> {
    let pair = Pair::logits("deit_hard", student_logits, teacher_logits)?;
    // An arg max would hide a NaN.
    if teacher_logits.device().is_cpu() {
        let total = pair.teacher.to_dtype(DType::F64)?.sum(D::Minus1)?.to_vec1::<f64>()?;
        if let Some(row) = total.iter().position(|x| x.is_nan()) {
            bail!("deit_hard: expected teacher logits without NaN, got one in row {row}")
        }
    }
    let labels = pair.teacher.argmax(D::Minus1)?;
    let rows = cross_entropy(&pair.student, &labels, 0., Reduction::None)?;
    pair.finish(&reduction.apply(&rows, rows.elem_count())?)
}

/// Soft distillation as in DeiT: [`Form::Paper`] is [`kl`](crate::kl), [`Form::Code`] also divides by the classes.
///
/// ```text
/// T² KL(teacher ‖ student)   |   T² KL(teacher ‖ student) / C
/// ```
/// The code that differs is the published one, `facebookresearch/deit`: its sum is divided by the number of logits.
///
/// # Shapes
/// - `student_logits`, `teacher_logits`: `(B, C)`, the same; f32, f64, or a half type, which is computed in f32
/// - output: rank 0, or `(B,)` with [`Reduction::None`]
///
/// # Gradient
/// Flows to `student_logits`.
///
/// # Numerics
/// As [`kl`](crate::kl).
///
/// # Errors
/// Those of [`kl`](crate::kl).
///
/// # References
/// Touvron et al., arXiv:2012.12877, equation 2.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::{Reduction, baselines::{Form, deit_soft}};
/// let teacher = Tensor::new(&[[2f32, 0., -1.]], &Device::Cpu)?;
/// let loss = |form| deit_soft(&teacher.neg()?, &teacher, 3., form, Reduction::Mean)?.to_scalar::<f32>();
/// assert!((loss(Form::Paper)? - 3. * loss(Form::Code)?).abs() < 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn deit_soft(
    student_logits: &Tensor,
    teacher_logits: &Tensor,
    temperature: f64,
    form: Form,
    reduction: Reduction,
) -> Result<Tensor> {
    let pair = Pair::logits("deit_soft", student_logits, teacher_logits)?;
    let target = Target::Logits { temperature };
    let rows = softmax_loss(target, &pair.student, &pair.teacher, Reduction::None)?;
    let loss = reduction.apply(&rows, rows.elem_count())?;
    pair.finish(&match form {
        Form::Paper => loss,
        Form::Code => (loss / student_logits.dim(D::Minus1)? as f64)?,
    })
}
