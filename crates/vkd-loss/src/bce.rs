//! Binary cross entropy from logits.

use crate::Reduction;
use crate::checks::{finite, widen_pair};
use crate::ops::{Pointwise, pointwise};
use candle_core::{Result, Tensor};
use vkd_norm::flags;

/// Binary cross entropy of each logit with a probability, by the stable form.
///
/// ```text
/// max(x, 0) − x p + log(1 + exp(−|x|))   =   −p log σ(x) − (1 − p) log(1 − σ(x))
/// ```
///
/// # Shapes
/// - `logits`, `probabilities`: any shape, the same, at least one entry; one dtype: f32, f64, or a half type, which is
///   computed in f32
/// - output: rank 0, or the input's shape with [`Reduction::None`]
///
/// # Gradient
/// Flows to `logits`: `σ(x) − p`, divided as the reduction says. `probabilities` must carry no gradient. One pass each
/// way.
///
/// # Numerics
/// Entries in f64, finite for every finite logit. Zero where `p` is 0 or 1 and the logit is far on its side.
///
/// # Errors
/// A probability outside [0, 1] or NaN (with its entry; on a device it sets a bit of [`flags`]), different shapes or dtypes, no
/// entries, tracked probabilities (detach them), another dtype, or a NaN or infinity in the logits, which is named (where the loss
/// is one number on the CPU).
///
/// # References
/// PyTorch's `binary_cross_entropy_with_logits`; ResNet strikes back, arXiv:2110.00476, for its use with mixup.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::{Reduction, bce_with_logits};
/// let logits = Tensor::new(&[0f64, 1e4], &Device::Cpu)?;
/// let targets = Tensor::new(&[1f64, 1.], &Device::Cpu)?;
/// let loss = bce_with_logits(&logits, &targets, Reduction::Sum)?.to_scalar::<f64>()?;
/// assert!((loss - 2f64.ln()).abs() < 1e-15);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn bce_with_logits(
    logits: &Tensor,
    probabilities: &Tensor,
    reduction: Reduction,
) -> Result<Tensor> {
    let (logits, probabilities) = widen_pair(logits, probabilities)?;
    let loss = pointwise(Pointwise::Bce, &logits, &probabilities, reduction)?;
    flags::expect("bce_with_logits", "probabilities in [0, 1]", &probabilities, [0., 1.])?;
    finite("bce_with_logits", loss, &[("logits", &logits)])
}
