//! DIST: correlation in place of divergence.

use super::tensor::{Pair, divide_rows, lengths, rescaled};
use crate::dense::check_positive;
use crate::log_softmax;
use candle_core::{D, Result, Tensor, bail};

/// Weights and temperature of [`dist`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DistConfig {
    /// Weight of the correlation over classes, sample by sample.
    pub beta: f64,
    /// Weight of the correlation over samples, class by class.
    pub gamma: f64,
    /// Divides the logits.
    pub temperature: f64,
}

impl Default for DistConfig {
    /// As in the published code: 1 each.
    fn default() -> Self {
        Self { beta: 1., gamma: 1., temperature: 1. }
    }
}

/// DIST: one less Pearson's correlation of the class probabilities, over classes and over samples.
///
/// ```text
/// T² · [ beta · (1 − mean over rows of ρ(row))  +  gamma · (1 − mean over columns of ρ(column)) ]
/// ```
/// with `p = softmax(logits / T)`. The factor `T²` is the published code's.
///
/// # Shapes
/// - `student_logits`, `teacher_logits`: `(B, C)`, the same; f32, f64, or a half type, which is computed in f32
/// - output: rank 0
///
/// # Gradient
/// Flows to `student_logits`.
///
/// # Numerics
/// In f64; zero at equality up to rounding, finite for logits of ±1e4. A row or column that is constant (its deviation at
/// most 1e-12 of its length) on either side, or nowhere above 1e-290, has correlation 0 and no gradient, so at equality it leaves its share of 1: so does every column where
/// `B` is 1. PyTorch's code instead divides by at least 1e-8.
///
/// # Errors
/// Weights that are not finite, a temperature not finite or under the smallest normal f32, different shapes or dtypes, a
/// tracked teacher (detach it), a shape other than `(B, C)`, another dtype, or a NaN or infinity in the input.
///
/// # References
/// Huang et al., arXiv:2205.10536.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::baselines::{DistConfig, dist};
/// let teacher = Tensor::new(&[[2f64, 0., -1.], [0., 1., 1.]], &Device::Cpu)?;
/// assert!(dist(&teacher, &teacher, DistConfig::default())?.to_scalar::<f64>()?.abs() < 1e-14);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn dist(
    student_logits: &Tensor,
    teacher_logits: &Tensor,
    config: DistConfig,
) -> Result<Tensor> {
    let DistConfig { beta, gamma, temperature } = config;
    check_positive("dist", "temperature", temperature)?;
    for (name, weight) in [("beta", beta), ("gamma", gamma)] {
        if !weight.is_finite() {
            bail!("dist: expected a finite {name}, got {weight}")
        }
    }
    let pair = Pair::logits("dist", student_logits, teacher_logits)?;
    let soft = |logits: &Tensor| log_softmax(&(logits / temperature)?)?.exp();
    let (student, teacher) = (soft(&pair.student)?, soft(&pair.teacher)?);
    let rows = uncorrelated(&student, &teacher)?;
    let columns = uncorrelated(&student.t()?, &teacher.t()?)?;
    let loss = ((rows * beta)? + (columns * gamma)?)?;
    pair.finish(&(loss * (temperature * temperature))?)
}

/// One less the mean of the rows' correlation.
fn uncorrelated(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let directions = |xs: &Tensor| {
        // Probabilities of 1e-160 have squares of zero; correlation does not see scale.
        let xs = &rescaled(xs)?;
        let centred = xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?;
        let floor = (lengths(&xs.detach())? * 1e-12)?;
        divide_rows(&centred, &lengths(&centred)?, &floor)
    };
    let products = (directions(student)? * directions(teacher)?)?;
    1. - products.sum(D::Minus1)?.mean_all()?
}
