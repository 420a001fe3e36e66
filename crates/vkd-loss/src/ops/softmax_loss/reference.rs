//! The losses on logits from plain tensor ops: slow, differentiable, any device; values are not checked.
//!
//! As in the kernel, a class without weight in the target counts nothing, even where its logit is negative infinity.

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
            // Without smoothing the other classes have no weight: zero times negative infinity is not zero.
            let own = own.affine(smoothing - 1., 0.)?;
            if smoothing > 0. { (own - all.affine(smoothing, 0.)?)? } else { own }
        }
        Target::Probabilities => weighed(target, &log_probabilities)?.neg()?,
        Target::Logits { temperature } => {
            let log_target = log_softmax(&(target / temperature)?)?;
            weighed(&log_target.exp()?, &(log_target - log_probabilities)?)?
        }
    };
    reduction.apply(&(rows * kind.factor())?, logits.dim(0)?)
}

/// Sums of `terms` with the weights of the target, over the classes that have one.
fn weighed(target: &Tensor, terms: &Tensor) -> Result<Tensor> {
    let none = target.eq(0.)?;
    (target * none.where_cond(&terms.zeros_like()?, terms)?)?.sum(D::Minus1)
}

/// From tensor ops, so that the twin shares nothing with the kernel.
fn log_softmax(xs: &Tensor) -> Result<Tensor> {
    let shifted = xs.broadcast_sub(&xs.max_keepdim(D::Minus1)?.detach())?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}
