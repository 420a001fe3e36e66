//! The losses from plain tensor ops: slow, differentiable, any device; values are not checked.

use super::Pointwise;
use crate::Reduction;
use candle_core::{Result, Tensor};

/// Twin of [`super::pointwise`].
pub(crate) fn pointwise(
    kind: Pointwise,
    student: &Tensor,
    teacher: &Tensor,
    reduction: Reduction,
) -> Result<Tensor> {
    let rows = student.dims().first().copied().unwrap_or(1);
    let d = (student - teacher)?;
    let entries = match kind {
        Pointwise::Mse => d.sqr()?,
        Pointwise::SmoothL1 { beta } => {
            let d = d.abs()?;
            let c = d.minimum(beta)?;
            (c.sqr()?.affine(0.5 / beta, 0.)? + (d - c)?)?
        }
        Pointwise::L1 => size(&d)?,
        Pointwise::Bce => entropy(student, teacher)?,
        Pointwise::Focal { alpha, gamma } => {
            let share = teacher.affine(2. * alpha - 1., 1. - alpha)?;
            // σ(x) by the hyperbolic tangent, whose gradient stays finite for every x.
            let p = (student * 0.5)?.tanh()?.affine(0.5, 0.5)?;
            let wrong = ((&p + teacher)? - ((p * teacher)? * 2.)?)?;
            let weight = if gamma == 0. { wrong.ones_like()? } else { wrong.powf(gamma)? };
            ((share * entropy(student, teacher)?)? * weight)?
        }
    };
    reduction.apply(&entries, rows)
}

/// `|d|` with a slope of zero at zero, where candle's own has 1.
fn size(d: &Tensor) -> Result<Tensor> {
    d * d.sign()?.detach()
}

fn entropy(logits: &Tensor, shares: &Tensor) -> Result<Tensor> {
    // candle's derivative of |x| at 0 is 1, with which the parts add up to sigmoid(0) = 1/2.
    let size = logits.abs()?;
    let positive = ((logits + &size)? * 0.5)?;
    let log = (size.neg()?.exp()? + 1.)?.log()?;
    (positive - (logits * shares)?)? + log
}
