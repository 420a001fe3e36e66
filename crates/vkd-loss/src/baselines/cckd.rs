//! Correlation congruence.

use super::Form;
use super::tensor::{Pair, gram, sqrt, unit_rows};
use crate::dense::check_positive;
use candle_core::{Result, Tensor};

/// What [`cckd`] takes for the correlation of two samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CckdKernel {
    /// The inner product.
    Bilinear,
    /// The Gaussian `exp(−γ ‖a − b‖²)`, expanded to the second order in the inner product:
    /// `exp(−2γ) · Σ_{p=0..2} (2γ)^p / p! · ⟨a, b⟩^p`, which presumes rows of length one.
    Gaussian {
        /// Sharpness; 0.4 in the paper.
        gamma: f64,
    },
}

/// The choices of [`cckd`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CckdConfig {
    /// Correlation of two samples.
    pub kernel: CckdKernel,
    /// Bring the rows to length one first. torchdistill does not, though the Gaussian's expansion presumes it.
    pub unit_rows: bool,
    /// [`Form::Paper`] squares the norm, [`Form::Code`], torchdistill's, does not.
    pub form: Form,
}

impl Default for CckdConfig {
    /// The paper's: the Gaussian with 0.4 on rows of length one, the norm squared.
    fn default() -> Self {
        let kernel = CckdKernel::Gaussian { gamma: 0.4 };
        Self { kernel, unit_rows: true, form: Form::Paper }
    }
}

/// Correlation congruence: `‖K_student − K_teacher‖² / B²` with K the kernel of all pairs of samples.
///
/// # Shapes
/// - `student`: `(B, C)`, `teacher`: `(B, C')`, at least one entry; f32, f64, or a half type, which is computed in f32
/// - output: rank 0
///
/// # Gradient
/// Flows to `student`; at equality it is zero, where the norm that is not squared defines none.
///
/// # Numerics
/// In f64; zero at equality. Without rows of length one the Gaussian grows with the fourth power of the features, and the
/// paper's form with the eighth: the result passes f32 above features of about 1e4. Rows no longer than 1e-12 count as zeros.
///
/// # Errors
/// A γ not finite or under the smallest normal f32, different batches or dtypes, no entries, a tracked teacher
/// (detach it), a shape other than `(B, C)`, another dtype, or a NaN or infinity in the input.
///
/// # References
/// Peng et al., arXiv:1904.01802.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::baselines::{CckdConfig, cckd};
/// let student = Tensor::new(&[[1f32, 0.], [0., 1.]], &Device::Cpu)?;
/// let teacher = Tensor::new(&[[0f32, 3., 0.], [0., 0., 2.]], &Device::Cpu)?;
/// assert_eq!(cckd(&student, &teacher, CckdConfig::default())?.to_scalar::<f32>()?, 0.);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn cckd(student: &Tensor, teacher: &Tensor, config: CckdConfig) -> Result<Tensor> {
    if let CckdKernel::Gaussian { gamma } = config.kernel {
        check_positive("cckd", "gamma", gamma)?;
    }
    let pair = Pair::rows("cckd", student, teacher)?;
    let kernel = |xs: &Tensor| {
        let products = if config.unit_rows { gram(&unit_rows(xs)?)? } else { gram(xs)? };
        match config.kernel {
            CckdKernel::Bilinear => Ok(products),
            CckdKernel::Gaussian { gamma } => {
                let (outer, slope) = ((-2. * gamma).exp(), 2. * gamma);
                // 1 + u + u²/2 with u = 2γ⟨a, b⟩.
                let u = (products * slope)?;
                ((u.sqr()? * 0.5)? + u)?.affine(outer, outer)
            }
        }
    };
    let squares = (kernel(&pair.student)? - kernel(&pair.teacher)?)?.sqr()?.sum_all()?;
    let norm = match config.form {
        Form::Paper => squares,
        Form::Code => sqrt(&squares)?,
    };
    let batch = pair.student.dim(0)? as f64;
    pair.finish(&(norm / (batch * batch))?)
}
