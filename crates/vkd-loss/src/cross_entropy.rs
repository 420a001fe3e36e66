//! Cross entropy with hard, smoothed and soft labels.

use crate::Reduction;
use crate::checks::{finite, widen, widen_pair};
use crate::ops::{Target, softmax_loss};
use candle_core::{Result, Tensor};

/// Cross entropy of logits with class labels, one entry a row.
///
/// With `smoothing` s the target is `1 - s` on the label plus `s / C` on every class, as in PyTorch; 0 is the plain form.
///
/// # Shapes
/// - `logits`: `(B, C)`, `B, C >= 1`, any strides; f32, f64, or a half type, which is computed in f32
/// - `labels`: `(B,)`, U32, each below C
/// - output: rank 0, or `(B,)` with [`Reduction::None`]
///
/// # Gradient
/// Flows to `logits`: `softmax − target` per row, divided as the reduction says. The backward pass recomputes the softmax.
///
/// # Numerics
/// All arithmetic is in f64; finite for logits of ±1e4. A logit of negative infinity masks a class without weight in
/// the target.
///
/// # Errors
/// A label out of range (with its row; on a device it sets a bit of `vkd_norm::flags`), labels of another dtype or shape, `smoothing` outside [0, 1), a shape other than
/// `(B, C)`, another dtype, or logits that make the loss NaN or infinite, which are named (where the loss is one number on
/// the CPU).
///
/// # References
/// Szegedy et al., arXiv:1512.00567, for the smoothing. DeiT (arXiv:2012.12877): with the teacher's arg max as
/// labels this is its hard distillation loss.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::{Reduction, cross_entropy};
/// let logits = Tensor::new(&[[0f64, 0.]], &Device::Cpu)?;
/// let labels = Tensor::new(&[1u32], &Device::Cpu)?;
/// let loss = cross_entropy(&logits, &labels, 0.1, Reduction::Mean)?.to_scalar::<f64>()?;
/// assert!((loss - 2f64.ln()).abs() < 1e-15);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn cross_entropy(
    logits: &Tensor,
    labels: &Tensor,
    smoothing: f64,
    reduction: Reduction,
) -> Result<Tensor> {
    let logits = widen(logits)?;
    let loss =
        softmax_loss("cross_entropy", Target::Labels { smoothing }, &logits, labels, reduction)?;
    finite("cross_entropy", loss, &[("logits", &logits)])
}

/// Cross entropy of logits with a distribution per row: the task loss under mixup.
///
/// # Shapes
/// - `logits`, `probabilities`: `(B, C)`, `B, C >= 1`, any strides; one dtype: f32, f64, or a half type, which is
///   computed in f32
/// - output: rank 0, or `(B,)` with [`Reduction::None`]
///
/// # Gradient
/// Flows to `logits`. `probabilities` must carry no gradient. The backward pass recomputes the softmax.
///
/// # Numerics
/// As [`cross_entropy`].
///
/// # Errors
/// A negative or NaN probability, a row that does not sum to 1 within 1e-4 (with the row and the amount; on a device either sets a
/// bit of `vkd_norm::flags`), different shapes or dtypes, tracked probabilities (detach them), a shape other than `(B, C)`, another dtype, or logits as in
/// [`cross_entropy`]. Rounded to a half type, probabilities can miss the 1e-4: cast them to f32.
///
/// # References
/// DeiT, arXiv:2012.12877; mixup, arXiv:1710.09412.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::{Reduction, soft_cross_entropy};
/// let logits = Tensor::new(&[[0f64, 0.]], &Device::Cpu)?;
/// let mixed = Tensor::new(&[[0.7f64, 0.3]], &Device::Cpu)?;
/// let loss = soft_cross_entropy(&logits, &mixed, Reduction::Mean)?.to_scalar::<f64>()?;
/// assert!((loss - 2f64.ln()).abs() < 1e-15);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn soft_cross_entropy(
    logits: &Tensor,
    probabilities: &Tensor,
    reduction: Reduction,
) -> Result<Tensor> {
    const OP: &str = "soft_cross_entropy";
    let (logits, probabilities) = widen_pair(logits, probabilities)?;
    let loss = softmax_loss(OP, Target::Probabilities, &logits, &probabilities, reduction)?;
    finite(OP, loss, &[("logits", &logits)])
}
