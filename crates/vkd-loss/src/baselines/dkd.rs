//! Decoupled knowledge distillation.

use super::tensor::Pair;
use crate::Reduction;
use crate::checks::check_labels;
use crate::ops::{Target, softmax_loss};
use candle_core::{D, Result, Tensor, bail};

/// Weights and temperature of [`dkd`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DkdConfig {
    /// Weight of the target's part.
    pub alpha: f64,
    /// Weight of the other classes' part.
    pub beta: f64,
    /// Divides the logits.
    pub temperature: f64,
}

impl Default for DkdConfig {
    /// The paper's values for CIFAR-100: 1, 8 and 4.
    fn default() -> Self {
        Self { alpha: 1., beta: 8., temperature: 4. }
    }
}

/// The two parts of [`dkd`], each times the temperature squared.
#[derive(Clone, Debug)]
pub struct DkdParts {
    /// Divergence of (target, all others).
    pub tckd: Tensor,
    /// Divergence among the classes other than the target.
    pub nckd: Tensor,
}

/// Decoupled distillation: `alpha · TCKD + beta · NCKD`.
///
/// With `p` the softmax of `logits / T` and `y` the label, TCKD is `T²` times the divergence of the two-class distribution
/// `(p_y, 1 − p_y)`, and NCKD that of the distribution among the other classes. Plain distillation would weigh NCKD by the
/// teacher's `1 − p_y`, which is small where the teacher is sure. The paper's warm-up of the weight is the caller's.
///
/// # Shapes
/// - `student_logits`, `teacher_logits`: `(B, C)`, the same, `C >= 2`; f32, f64, or a half type, which is computed in f32
/// - `labels`: `(B,)`, U32, each below C
/// - output: rank 0, or `(B,)` with [`Reduction::None`]
///
/// # Gradient
/// Flows to `student_logits`.
///
/// # Numerics
/// In f64. The target is left out of the second softmax; the published code subtracts 1000 from its logit, which is the same
/// unless logits are that far apart. Zero at equality, finite for logits of ±1e4.
///
/// # Errors
/// Weights that are not finite, fewer than two classes, a label out of range (with its row; on a device it sets a bit of
/// `vkd_norm::flags` and counts as the last class), and those of [`kl`](crate::kl).
///
/// # References
/// Zhao et al., arXiv:2203.08679.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::{Reduction, baselines::{DkdConfig, dkd}};
/// let teacher = Tensor::new(&[[2f32, 0., -1.]], &Device::Cpu)?;
/// let labels = Tensor::new(&[0u32], &Device::Cpu)?;
/// let loss = dkd(&teacher.neg()?, &teacher, &labels, DkdConfig::default(), Reduction::Mean)?;
/// assert!(loss.to_scalar::<f32>()? > 0.);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn dkd(
    student_logits: &Tensor,
    teacher_logits: &Tensor,
    labels: &Tensor,
    config: DkdConfig,
    reduction: Reduction,
) -> Result<Tensor> {
    for (name, weight) in [("alpha", config.alpha), ("beta", config.beta)] {
        if !weight.is_finite() {
            bail!("dkd: expected a finite {name}, got {weight}")
        }
    }
    let parts = dkd_parts(student_logits, teacher_logits, labels, config.temperature, reduction)?;
    (parts.tckd * config.alpha)? + (parts.nckd * config.beta)?
}

/// The two parts of [`dkd`], for the log or for weights of one's own.
///
/// Shapes, gradient, numerics and errors as there.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::{Reduction, baselines::dkd_parts};
/// let teacher = Tensor::new(&[[2f32, 0., -1.]], &Device::Cpu)?;
/// let student = Tensor::new(&[[9f32, 0., -1.]], &Device::Cpu)?;
/// let labels = Tensor::new(&[0u32], &Device::Cpu)?;
/// let parts = dkd_parts(&student, &teacher, &labels, 4., Reduction::Mean)?;
/// assert!(parts.tckd.to_scalar::<f32>()? > 0. && parts.nckd.to_scalar::<f32>()? == 0.);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn dkd_parts(
    student_logits: &Tensor,
    teacher_logits: &Tensor,
    labels: &Tensor,
    temperature: f64,
    reduction: Reduction,
) -> Result<DkdParts> {
    let pair = Pair::logits("dkd", student_logits, teacher_logits)?;
    let (batch, classes) = pair.student.dims2()?;
    if classes < 2 {
        bail!("dkd: expected at least two classes, got {classes}")
    }
    check_labels("dkd", labels, batch, classes)?;
    let kind = Target::Logits { temperature };
    // On a device a label that is no class has set a bit; it must not be read by all the same.
    let labels = match labels.device().is_cpu() {
        true => labels.unsqueeze(1)?,
        false => labels.minimum(classes as u32 - 1)?.unsqueeze(1)?,
    };
    // Column j of the others is class j, or j + 1 from the label on.
    let columns = Tensor::arange(0u32, classes as u32 - 1, labels.device())?.unsqueeze(0)?;
    let skip = columns.broadcast_ge(&labels)?.to_dtype(columns.dtype())?;
    let others = columns.broadcast_add(&skip)?;
    let split = |logits: &Tensor| -> Result<[Tensor; 2]> {
        let rest = logits.gather(&others, 1)?;
        // T · log Σ exp(x / T): the logit of "another class".
        let largest = rest.max_keepdim(D::Minus1)?.detach();
        let sum = (rest.broadcast_sub(&largest)? / temperature)?.exp()?.sum_keepdim(D::Minus1)?;
        let other = (largest + (sum.log()? * temperature)?)?;
        Ok([Tensor::cat(&[&logits.gather(&labels, 1)?, &other], 1)?, rest])
    };
    let ([student_two, student_rest], [teacher_two, teacher_rest]) =
        (split(&pair.student)?, split(&pair.teacher)?);
    let part = |student: &Tensor, teacher: &Tensor| {
        let rows = softmax_loss("dkd", kind, student, teacher, Reduction::None)?;
        pair.finish(&reduction.apply(&rows, batch)?)
    };
    Ok(DkdParts {
        tckd: part(&student_two, &teacher_two)?,
        nckd: part(&student_rest, &teacher_rest)?,
    })
}
