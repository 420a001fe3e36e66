//! Cross entropy with hard, smoothed and soft labels.

use crate::ops::{Target, softmax_loss};
use candle_core::{Result, Tensor};

/// Cross entropy of logits with class labels, mean over the batch.
///
/// With `smoothing` s the target is `1 - s` on the label plus `s / C` on every class, as in PyTorch; 0 is the plain form.
///
/// # Shapes
/// - `logits`: `(B, C)`, `B, C >= 1`, any strides; f32 or f64
/// - `labels`: `(B,)`, U32, each below C
/// - output: rank 0
///
/// # Gradient
/// Flows to `logits`: (softmax - target) / B. The backward pass recomputes the softmax.
///
/// # Numerics
/// All arithmetic is in f64; finite for logits of ±1e4. A logit of negative infinity masks a class without weight in
/// the target; NaN or positive infinity give NaN.
///
/// # Errors
/// A label out of range (with its row), labels of another dtype or shape, `smoothing` outside [0, 1), a shape other than
/// `(B, C)`, or another dtype.
///
/// # References
/// Szegedy et al., arXiv:1512.00567, for the smoothing. DeiT (arXiv:2012.12877): with the teacher's arg max as
/// labels this is its hard distillation loss.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::cross_entropy;
/// let logits = Tensor::new(&[[0f64, 0.]], &Device::Cpu)?;
/// let labels = Tensor::new(&[1u32], &Device::Cpu)?;
/// let loss = cross_entropy(&logits, &labels, 0.1)?.to_scalar::<f64>()?;
/// assert!((loss - 2f64.ln()).abs() < 1e-15);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn cross_entropy(logits: &Tensor, labels: &Tensor, smoothing: f64) -> Result<Tensor> {
    softmax_loss(Target::Labels { smoothing }, logits, labels)
}

/// Cross entropy of logits with a distribution per row, mean over the batch: the task loss under mixup.
///
/// # Shapes
/// - `logits`, `probabilities`: `(B, C)`, `B, C >= 1`, any strides; f32 or f64, the same
/// - output: rank 0
///
/// # Gradient
/// Flows to `logits`. `probabilities` must carry no gradient. The backward pass recomputes the softmax.
///
/// # Numerics
/// As [`cross_entropy`].
///
/// # Errors
/// A negative or NaN probability, a row that does not sum to 1 within 1e-4 (with the row and the amount), different
/// shapes or dtypes, tracked probabilities (detach them), a shape other than `(B, C)`, or another dtype.
///
/// # References
/// DeiT, arXiv:2012.12877; mixup, arXiv:1710.09412.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::soft_cross_entropy;
/// let logits = Tensor::new(&[[0f64, 0.]], &Device::Cpu)?;
/// let mixed = Tensor::new(&[[0.7f64, 0.3]], &Device::Cpu)?;
/// assert!((soft_cross_entropy(&logits, &mixed)?.to_scalar::<f64>()? - 2f64.ln()).abs() < 1e-15);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn soft_cross_entropy(logits: &Tensor, probabilities: &Tensor) -> Result<Tensor> {
    softmax_loss(Target::Probabilities, logits, probabilities)
}
