//! FitNets.

use super::Form;
use super::tensor::Pair;
use crate::Reduction::{BatchMean, Mean};
use crate::ops::{Pointwise, pointwise};
use candle_core::{Result, Tensor};

/// Hints: squared difference between the regressed student and the teacher.
///
/// [`Form::Paper`] is `½ ‖student − teacher‖²`, mean over samples; [`Form::Code`], which is torchdistill's and mdistiller's, is
/// the mean over all entries: [`mse`](crate::mse). The regressor that gives the student the teacher's width comes first
/// and is the caller's.
///
/// # Shapes
/// - `student`, `teacher`: `(B, ..)`, the same, at least one entry; f32, f64, or a half type, which is computed in f32
/// - output: rank 0
///
/// # Gradient
/// Flows to `student`.
///
/// # Numerics
/// As [`mse`](crate::mse).
///
/// # Errors
/// Those of [`mse`](crate::mse).
///
/// # References
/// Romero et al., arXiv:1412.6550.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::baselines::{Form, fitnets};
/// let student = Tensor::new(&[[1f32, 3., 0.], [0., 0., 0.]], &Device::Cpu)?;
/// let loss = |form| fitnets(&student, &student.zeros_like()?, form)?.to_scalar::<f32>();
/// assert_eq!((loss(Form::Paper)?, loss(Form::Code)?), (2.5, 10. / 6.));
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn fitnets(student: &Tensor, teacher: &Tensor, form: Form) -> Result<Tensor> {
    let pair = Pair::same("fitnets", "student", student, teacher)?;
    let loss = |reduction| pointwise(Pointwise::Mse, &pair.student, &pair.teacher, reduction);
    pair.finish(&match form {
        Form::Paper => (loss(BatchMean)? * 0.5)?,
        Form::Code => loss(Mean)?,
    })
}
