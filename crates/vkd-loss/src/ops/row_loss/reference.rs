//! The losses from plain tensor ops: slow, differentiable, any device.

use super::RowLoss;
use crate::Reduction;
use candle_core::{D, Result, Tensor};

/// Twin of [`super::row_loss`]; the guard of a length is a selection, so its gradient is zero and not infinite.
pub(crate) fn row_loss(
    kind: RowLoss,
    student: &Tensor,
    teacher: &Tensor,
    reduction: Reduction,
) -> Result<Tensor> {
    let entries = match kind {
        RowLoss::Distance => {
            let squares = (student - teacher)?.sqr()?.sum(D::Minus1)?;
            // Negated, so that NaN is not taken for zero.
            let same = squares.le(0.)?;
            let safe = same.where_cond(&squares.ones_like()?, &squares)?.sqrt()?;
            same.where_cond(&safe.zeros_like()?, &safe)?
        }
        RowLoss::Cosine { eps } => {
            let (ss, tt) = (student.sqr()?.sum(D::Minus1)?, teacher.sqr()?.sum(D::Minus1)?);
            let long = (ss.sqrt()?.gt(eps)? * tt.sqrt()?.gt(eps)?)?;
            let one = ss.ones_like()?;
            let lengths =
                (long.where_cond(&ss, &one)?.sqrt()? * long.where_cond(&tt, &one)?.sqrt()?)?;
            let cosine = ((student * teacher)?.sum(D::Minus1)? / lengths)?;
            long.where_cond(&(1. - cosine)?, &one)?
        }
    };
    reduction.apply(&entries, entries.elem_count())
}
