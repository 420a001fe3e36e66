//! Losses on a discriminator's scores.

use crate::checks::{FINITE, finite, widen};
use crate::dense::check_float;
use candle_core::{DType, Result, Tensor, bail};
use vkd_norm::flags;

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
/// No score, another dtype, or a NaN or infinity (on a device it sets a bit of [`flags`]).
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
    check_sides(real, generated)?;
    let above = on_scores("lecam real", real, |s| (s - generated_mean)?.relu()?.sqr()?.mean_all())?;
    let below = on_scores("lecam generated", generated, |s| {
        s.affine(-1., real_mean)?.relu()?.sqr()?.mean_all()
    })?;
    above + below
}

/// [`lecam`] with averages that lie in a tensor, so that nobody has to wait for them on a device.
///
/// # Shapes
/// - `real`, `generated`: as there
/// - `means`: `(2)`, the average of real scores and that of generated ones, f64; rounded to the dtype of the scores
/// - output: rank 0
///
/// # Gradient
/// Flows to both sides; the averages are constants.
///
/// # Errors
/// Those of [`lecam`], and averages of another shape or dtype.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::lecam_at;
/// let (real, generated) = (Tensor::new(&[2f32, -3.], &Device::Cpu)?, Tensor::new(&[0f32], &Device::Cpu)?);
/// let means = Tensor::new(&[0.5f64, -1.], &Device::Cpu)?;
/// assert_eq!(lecam_at(&real, &generated, &means)?.to_scalar::<f32>()?, 4.75);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn lecam_at(real: &Tensor, generated: &Tensor, means: &Tensor) -> Result<Tensor> {
    check_sides(real, generated)?;
    if means.dims() != [2] || means.dtype() != DType::F64 {
        bail!("lecam: expected two averages of f64, got {:?} {:?}", means.dtype(), means.dims())
    }
    match means.device().is_cpu() {
        true => {
            let mean = |i: usize| means.get(i)?.to_scalar::<f64>();
            lecam(real, generated, mean(0)?, mean(1)?)
        }
        false => at_means(real, generated, means),
    }
}

/// [`lecam_at`] of any averages, those that are not finite too, without a look at them.
fn at_means(real: &Tensor, generated: &Tensor, means: &Tensor) -> Result<Tensor> {
    flags::expect("lecam", "finite averages", means, FINITE)?;
    let means = means.detach();
    let mean = |i: usize, scores: &Tensor| means.get(i)?.to_dtype(scores.dtype());
    let above = on_scores("lecam real", real, |s| {
        s.broadcast_sub(&mean(1, s)?)?.relu()?.sqr()?.mean_all()
    })?;
    let below = on_scores("lecam generated", generated, |s| {
        s.neg()?.broadcast_add(&mean(0, s)?)?.relu()?.sqr()?.mean_all()
    })?;
    above + below
}

fn check_sides(real: &Tensor, generated: &Tensor) -> Result<()> {
    if real.dtype() != generated.dtype() {
        bail!(
            "lecam: expected scores of one dtype, got {:?} and {:?}",
            real.dtype(),
            generated.dtype()
        )
    }
    Ok(())
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
    match scores.device().is_cpu() {
        true => drop(finite(op, scores.detach().sum_all()?, &[("scores", &scores)])?),
        false => flags::expect(op, "finite scores", &scores, FINITE)?,
    }
    loss(&scores)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;
    use vkd_testkit::{Tolerance, assert_close, normal};

    #[test]
    fn averages_in_a_tensor_give_the_same_bits() -> Result<()> {
        let means = normal(&[2], DType::F64, 3)?;
        let mean = |i: usize| means.get(i)?.to_scalar::<f64>();
        for dtype in [DType::F64, DType::F32, DType::BF16] {
            let draw = |n, seed| Var::from_tensor(&normal(&[n], dtype, seed)?);
            let (real, generated) = (draw(9, 1)?, draw(5, 2)?);
            let want = lecam(&real, &generated, mean(0)?, mean(1)?)?;
            let got = at_means(&real, &generated, &means)?;
            assert_close("lecam", &got, &want, Tolerance::EXACT)?;
            let (got, want) = (got.backward()?, want.backward()?);
            for var in [&real, &generated] {
                let of = |grads: &candle_core::backprop::GradStore| grads.get(var).cloned();
                let (Some(got), Some(want)) = (of(&got), of(&want)) else {
                    bail!("expected a gradient of both sides")
                };
                assert_close("gradient", &got, &want, Tolerance::EXACT)?;
            }
        }
        Ok(())
    }
}
