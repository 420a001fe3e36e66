//! The losses on logits from plain tensor ops: slow, differentiable, any device; values are not checked.

use super::Target;
use crate::Reduction;
use candle_core::{D, Result, Tensor};

/// Twin of [`super::softmax_loss`].
pub(crate) fn softmax_loss(
    kind: Target,
    logits: &Tensor,
    target: &Tensor,
    reduction: Reduction,
) -> Result<Tensor> {
    let log_probabilities = log_softmax(&(logits / kind.temperature())?)?;
    let rows = match kind {
        Target::Labels { smoothing } => {
            let own = log_probabilities.gather(&target.unsqueeze(1)?, 1)?.squeeze(1)?;
            let all = log_probabilities.mean(D::Minus1)?;
            (own.affine(smoothing - 1., 0.)? - all.affine(smoothing, 0.)?)?
        }
        Target::Probabilities => (target * log_probabilities)?.sum(D::Minus1)?.neg()?,
        Target::Logits { temperature } => {
            let log_target = log_softmax(&(target / temperature)?)?;
            (log_target.exp()? * (log_target - log_probabilities)?)?.sum(D::Minus1)?
        }
    };
    reduction.apply(&(rows * kind.factor())?, logits.dim(0)?)
}

/// From tensor ops, so that the twin shares nothing with the kernel.
fn log_softmax(xs: &Tensor) -> Result<Tensor> {
    let shifted = xs.broadcast_sub(&xs.max_keepdim(D::Minus1)?.detach())?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}
