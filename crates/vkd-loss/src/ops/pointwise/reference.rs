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
        Pointwise::Bce => {
            // candle's derivative of |x| at 0 is 1, with which the parts add up to sigmoid(0) = 1/2.
            let size = student.abs()?;
            let positive = ((student + &size)? * 0.5)?;
            let log = (size.neg()?.exp()? + 1.)?.log()?;
            ((positive - (student * teacher)?)? + log)?
        }
    };
    reduction.apply(&entries, rows)
}
