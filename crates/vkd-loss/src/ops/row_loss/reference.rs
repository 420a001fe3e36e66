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
        RowLoss::Giou => giou(student, teacher)?,
    };
    reduction.apply(&entries, entries.elem_count())
}

fn giou(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let low = |x: &Tensor| x.narrow(D::Minus1, 0, 2);
    let high = |x: &Tensor| x.narrow(D::Minus1, 2, 2);
    let area = |sides: Tensor| -> Result<Tensor> {
        sides.narrow(D::Minus1, 0, 1)?.squeeze(D::Minus1)?
            * sides.narrow(D::Minus1, 1, 1)?.squeeze(D::Minus1)?
    };
    let ratio = |part: &Tensor, whole: &Tensor| -> Result<Tensor> {
        let none = whole.eq(0.)?;
        let (zero, one) = (whole.zeros_like()?, whole.ones_like()?);
        none.where_cond(&zero, part)? / none.where_cond(&one, whole)?
    };
    let (s, t) = ((low(student)?, high(student)?), (low(teacher)?, high(teacher)?));
    let intersection = area((s.1.minimum(&t.1)? - s.0.maximum(&t.0)?)?.relu()?)?;
    let hull = area((s.1.maximum(&t.1)? - s.0.minimum(&t.0)?)?)?;
    let both = (area((&s.1 - &s.0)?)? + area((&t.1 - &t.0)?)?)?;
    let union = (both - &intersection)?;
    let gap = (&hull - &union)?;
    (1. - ratio(&intersection, &union)?)? + ratio(&gap, &hull)?
}
