//! DeiT's two distillation losses.

use super::Form;
use super::tensor::Pair;
use crate::Reduction;
use crate::ops::{Target, softmax_loss};
use candle_core::{D, DType, Result, Tensor, bail};
use vkd_norm::flags;

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
/// As [`cross_entropy`](crate::cross_entropy). Among equal teacher logits the first counts. Not zero at equality.
///
/// # Errors
/// Different shapes or dtypes, a tracked teacher (detach it), a NaN or positive infinity in the teacher, or a row of negative infinity
/// (on a device they set a bit of [`flags`]), and those of [`cross_entropy`](crate::cross_entropy).
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
    const OP: &str = "deit_hard";
    let pair = Pair::logits(OP, student_logits, teacher_logits)?;
    // An arg max would hide what is not finite. Negative infinity is a masked class, as everywhere, unless all are.
    if teacher_logits.device().is_cpu() {
        for (row, logits) in pair.teacher.to_vec2::<f64>()?.iter().enumerate() {
            let sure = |x: &f64| x.is_nan() || *x == f64::INFINITY;
            let masked = logits.iter().all(|x| *x == f64::NEG_INFINITY);
            if let Some(at) = logits.iter().position(|x| sure(x) || masked) {
                bail!(
                    "{OP}: expected finite teacher logits, got {} in row {row}, entry {at}",
                    logits[at]
                )
            }
        }
    } else {
        // The largest of a row that is all masked is negative infinity. A NaN may be lost in it.
        let what = "finite teacher logits";
        flags::expect(OP, what, &pair.teacher, [f64::NEG_INFINITY, f64::MAX])?;
        let largest = pair.teacher.max(D::Minus1)?;
        flags::expect(OP, what, &largest, [f64::MIN, f64::INFINITY])?;
    }
    let labels = match teacher_logits.device().is_cpu() {
        true => pair.teacher.argmax(D::Minus1)?,
        false => first_largest(&pair.teacher)?,
    };
    let hard = Target::Labels { smoothing: 0. };
    let rows = softmax_loss(OP, hard, &pair.student, &labels, Reduction::None)?;
    pair.finish(&reduction.apply(&rows, rows.elem_count())?)
}

/// The first of the largest entries of each row, as candle's arg max has it on the CPU; its CUDA kernel gives any of them, and half types
/// have many that are equal.
fn first_largest(rows: &Tensor) -> Result<Tensor> {
    let largest = rows.max_keepdim(D::Minus1)?;
    let classes = rows.dim(D::Minus1)?;
    let places = Tensor::arange(0., classes as f64, rows.device())?.broadcast_as(rows.shape())?;
    let beyond = Tensor::full(classes as f64, rows.shape(), rows.device())?;
    let places = rows.broadcast_eq(&largest)?.where_cond(&places, &beyond)?;
    places.min(D::Minus1)?.to_dtype(DType::U32)
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
    let rows = softmax_loss("deit_soft", target, &pair.student, &pair.teacher, Reduction::None)?;
    let loss = reduction.apply(&rows, rows.elem_count())?;
    pair.finish(&match form {
        Form::Paper => loss,
        Form::Code => (loss / student_logits.dim(D::Minus1)? as f64)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn of_equal_logits_the_first_is_the_class() -> Result<()> {
        let rows = [[1f32, 3., 3., 0.], [2., 2., 2., 2.], [-1., -2., -1., -1.], [0., 1., 2., 3.]];
        for dtype in [DType::F32, DType::F64] {
            let rows = Tensor::new(&rows, &Device::Cpu)?.to_dtype(dtype)?;
            let classes = first_largest(&rows)?;
            assert_eq!(classes.dtype(), DType::U32);
            assert_eq!(classes.to_vec1::<u32>()?, rows.argmax(D::Minus1)?.to_vec1::<u32>()?);
        }
        // What has no largest entry is no class at all, which the loss makes NaN.
        let broken = Tensor::new(&[[f32::NAN, f32::NAN]], &Device::Cpu)?;
        assert_eq!(first_largest(&broken)?.to_vec1::<u32>()?, [2]);
        Ok(())
    }
}
