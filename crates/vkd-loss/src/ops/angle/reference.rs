//! The loss of all triples from plain tensor ops: slow, differentiable, any device.

use super::Angles;
use crate::Reduction;
use crate::ops::Pointwise;
use crate::ops::pointwise::reference::pointwise;
use candle_core::{DType, Result, Tensor};

/// Twin of [`super::angle_loss`].
pub(crate) fn angle_loss(
    student: &Angles,
    teacher: &Angles,
    reduction: Reduction,
) -> Result<Tensor> {
    let kind = Pointwise::SmoothL1 { beta: 1. };
    pointwise(kind, &cosines(student)?, &cosines(teacher)?, reduction)
}

/// `(B, B, B)`.
fn cosines(Angles { gram, inverse }: &Angles) -> Result<Tensor> {
    let eye = Tensor::eye(gram.dim(0)?, DType::F64, gram.device())?;
    let own = (gram * eye)?.sum(1)?.reshape(((), 1, 1))?;
    let products = gram
        .unsqueeze(0)?
        .broadcast_sub(&gram.unsqueeze(2)?)?
        .broadcast_sub(&gram.unsqueeze(1)?)?
        .broadcast_add(&own)?;
    products.broadcast_mul(&inverse.unsqueeze(2)?)?.broadcast_mul(&inverse.unsqueeze(1)?)
}
