//! Losses on a discriminator's scores.

use crate::checks::{finite, widen};
use crate::dense::check_float;
use candle_core::{Result, Tensor, bail};

/// The discriminator's hinge loss on real images: mean `relu(1 − score)` (Lim and Ye, arXiv:1705.02894; BigGAN, arXiv:1809.11096).
///
/// # Shapes
/// - `scores`: any, at least one; f32, f64, or a half type, which is computed in f32
/// - output: rank 0
///
/// # Gradient
/// Flows to `scores`; zero where a score is one or more.
///
/// # Errors
/// No score, another dtype, or a NaN or infinity.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::{hinge_generated, hinge_real};
/// let scores = Tensor::new(&[3f32, -1.], &Device::Cpu)?;
/// assert_eq!(hinge_real(&scores)?.to_scalar::<f32>()?, 1.);
/// assert_eq!(hinge_generated(&scores)?.to_scalar::<f32>()?, 2.);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn hinge_real(scores: &Tensor) -> Result<Tensor> {
    on_scores("hinge_real", scores, |s| s.affine(-1., 1.)?.relu()?.mean_all())
}

/// The discriminator's hinge loss on generated images: mean `relu(1 + score)`; else as [`hinge_real`].
///
/// # Errors
/// Those of [`hinge_real`].
pub fn hinge_generated(scores: &Tensor) -> Result<Tensor> {
    on_scores("hinge_generated", scores, |s| s.affine(1., 1.)?.relu()?.mean_all())
}

/// The generator's loss beside the two hinges: `−` mean score of its images.
///
/// # Errors
/// Those of [`hinge_real`].
pub fn hinge_generator(scores: &Tensor) -> Result<Tensor> {
    on_scores("hinge_generator", scores, |s| s.mean_all()?.neg())
}

/// LeCam's regulariser of a discriminator that sees little data (Tseng et al., arXiv:2104.03310): mean
/// `relu(real − generated_mean)²` + mean `relu(real_mean − generated)²`, the means being moving averages of the scores.
///
/// As in the published code it pulls on one side alone: real scores down to the average of generated ones, and generated ones up.
///
/// # Shapes
/// - `real`, `generated`: scores of any shape, at least one each, of one dtype; f32, f64, or a half type, which is computed in f32
/// - output: rank 0
///
/// # Gradient
/// Flows to both; the averages are constants.
///
/// # Errors
/// No score on a side, different dtypes, averages that are not finite, or a NaN or infinity in a score.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::lecam;
/// let (real, generated) = (Tensor::new(&[2f32, -3.], &Device::Cpu)?, Tensor::new(&[0f32], &Device::Cpu)?);
/// // (2 + 1)² / 2 + (0.5 - 0)²
/// assert_eq!(lecam(&real, &generated, 0.5, -1.)?.to_scalar::<f32>()?, 4.75);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn lecam(
    real: &Tensor,
    generated: &Tensor,
    real_mean: f64,
    generated_mean: f64,
) -> Result<Tensor> {
    if !(real_mean.is_finite() && generated_mean.is_finite()) {
        bail!("lecam: expected finite averages, got {real_mean} and {generated_mean}")
    }
    if real.dtype() != generated.dtype() {
        bail!(
            "lecam: expected scores of one dtype, got {:?} and {:?}",
            real.dtype(),
            generated.dtype()
        )
    }
    let above = on_scores("lecam real", real, |s| (s - generated_mean)?.relu()?.sqr()?.mean_all())?;
    let below = on_scores("lecam generated", generated, |s| {
        s.affine(-1., real_mean)?.relu()?.sqr()?.mean_all()
    })?;
    above + below
}

fn on_scores(
    op: &'static str,
    scores: &Tensor,
    loss: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let scores = widen(scores)?;
    check_float(op, &scores)?;
    if scores.elem_count() == 0 {
        bail!("{op}: expected at least one score, got {:?}", scores.dims())
    }
    // Of the scores themselves: candle's ReLU makes a zero of NaN, which would hide a network that diverged.
    finite(op, scores.detach().sum_all()?, &[("scores", &scores)])?;
    loss(&scores)
}
