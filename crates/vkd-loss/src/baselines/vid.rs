//! Variational information distillation.

use super::tensor::Pair;
use crate::checks::finite;
use crate::log_softmax;
use candle_core::{D, DType, Result, Tensor, bail};

/// Variational information distillation: Gaussian likelihood of the teacher around a prediction, with a learnt variance per
/// channel.
///
/// ```text
/// mean over entries of ½ [ (prediction − teacher)² / v  +  log v ],   v = log(1 + exp(log_scale)) + 1e-5
/// ```
/// The regressor that predicts the teacher from the student is the caller's, and so is the variable `log_scale`.
///
/// # Shapes
/// - `prediction`, `teacher`: `(B, C, ..)`, the same, at least one entry; f32, f64, or a half type, which is computed in f32
/// - `log_scale`: `(C,)`, the same dtype
/// - output: rank 0
///
/// # Gradient
/// Flows to `prediction` and `log_scale`.
///
/// # Numerics
/// Squares and their mean per channel in the dtype, the rest in f64. At equality, and for every prediction at its least, the value
/// is `½ mean(log v)`, which may be negative.
///
/// # Errors
/// A `log_scale` of another shape or dtype, different shapes or dtypes, no entries, a tracked teacher (detach it), rank
/// under two, another dtype, or a NaN or infinity in the input.
///
/// # References
/// Ahn et al., arXiv:1904.05835, equation 6; the constant is dropped.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::baselines::vid;
/// let prediction = Tensor::new(&[[1f64, 2.], [3., 4.]], &Device::Cpu)?;
/// // A variance of one: log(1 + exp(s)) + 1e-5 = 1.
/// let scale = Tensor::new(&[(1f64 - 1e-5).exp_m1().ln(); 2], &Device::Cpu)?;
/// let loss = vid(&prediction, &prediction.zeros_like()?, &scale)?.to_scalar::<f64>()?;
/// assert!((loss - 0.5 * 7.5).abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn vid(prediction: &Tensor, teacher: &Tensor, log_scale: &Tensor) -> Result<Tensor> {
    let pair = Pair::same("vid", "prediction", prediction, teacher)?;
    let (batch, channels) = match *prediction.dims() {
        [batch, channels, ..] => (batch, channels),
        ref dims => bail!("vid: expected a prediction (B, C, ..), got {dims:?}"),
    };
    if log_scale.dims() != [channels] || log_scale.dtype() != prediction.dtype() {
        bail!(
            "vid: expected a {:?} log_scale of shape [{channels}], got {:?} {:?}",
            prediction.dtype(),
            log_scale.dtype(),
            log_scale.dims()
        )
    }
    let squares = (&pair.student - &pair.teacher)?.sqr()?.reshape((batch, channels, ()))?;
    let squares = squares.mean(2)?.to_dtype(DType::F64)?.mean(0)?;
    // log(1 + exp(s)) is less the logarithm of the first of softmax(0, s).
    let scale = log_scale.to_dtype(DType::F64)?;
    let pairs = Tensor::stack(&[&scale.zeros_like()?, &scale], D::Minus1)?;
    let variance = (log_softmax(&pairs)?.narrow(1, 0, 1)?.squeeze(1)?.neg()? + 1e-5)?;
    let loss = ((squares / &variance)? + variance.log()?)?.mean_all()?;
    finite("vid", pair.finish(&(loss * 0.5)?)?, &[("log_scale", log_scale)])
}
