//! The loss of all triples from plain tensor ops: slow, differentiable, any device.

use crate::Reduction;
use crate::ops::Pointwise;
use crate::ops::pointwise::reference::pointwise;
use candle_core::{Result, Tensor};

/// Twin of [`super::angle_loss`].
pub(crate) fn angle_loss(
    student: &Tensor,
    teacher: &Tensor,
    reduction: Reduction,
) -> Result<Tensor> {
    let kind = Pointwise::SmoothL1 { beta: 1. };
    pointwise(kind, &cosines(student)?, &cosines(teacher)?, reduction)
}

/// `(B, B, B)`.
fn cosines(distances: &Tensor) -> Result<Tensor> {
    let none = distances.lt(f64::MIN_POSITIVE)?;
    let inverse = none.where_cond(&distances.ones_like()?, distances)?.recip()?;
    let inverse = none.where_cond(&inverse.zeros_like()?, &inverse)?;
    let (a, b, c) = (distances.unsqueeze(2)?, distances.unsqueeze(1)?, distances.unsqueeze(0)?);
    let (over_a, over_b) = (inverse.unsqueeze(2)?, inverse.unsqueeze(1)?);
    let sides = b.broadcast_sub(&c)?.broadcast_mul(&over_a)?;
    let sides = (sides * b.broadcast_add(&c)?.broadcast_mul(&over_b)?)?;
    (sides + a.broadcast_mul(&over_b)?)? * 0.5
}
