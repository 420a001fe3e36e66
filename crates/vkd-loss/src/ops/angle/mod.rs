//! Smooth-L1 between the cosines of the angles of all triples, fused: memory grows with the pairs, not the triples.

mod cpu;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use crate::Reduction;
use crate::dense::{dense, with_storage};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType};

const OP: &str = "angle_loss";

/// Smooth-L1 (beta 1) of the two cosines of each triple (i, j, k), from the distances `(B, B)` of all pairs, f64; the
/// teacher's are constants.
///
/// The cosine at i between j and k is `(d_ij² + d_ik² − d_jk²) / (2 d_ij d_ik)`, and zero where `d_ij` or `d_ik` is: inner
/// products would not know a distance far below their size. The backward pass computes all cosines again.
pub(crate) fn angle_loss(
    student: &Tensor,
    teacher: &Tensor,
    reduction: Reduction,
) -> Result<Tensor> {
    if !student.device().is_cpu() {
        return reference::angle_loss(student, teacher, reduction);
    }
    let rows = student.dim(0)?;
    let op = AngleLoss {
        teacher: teacher.flatten_all()?.to_vec1::<f64>()?,
        rows,
        divisor: reduction.divisor(rows * rows * rows, rows),
    };
    student.contiguous()?.apply_op1(op)
}

struct AngleLoss {
    /// Distances.
    teacher: Vec<f64>,
    rows: usize,
    /// What the sum over triples is divided by; without it there is no sum.
    divisor: Option<f64>,
}

impl CustomOp1 for AngleLoss {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let student = cpu::Angles::new(dense(OP, storage, layout)?, self.rows);
        let teacher = cpu::Angles::new(&self.teacher, self.rows);
        let loss = cpu::forward(&student, &teacher, self.divisor);
        let shape = match self.divisor {
            Some(_) => Shape::from(()),
            None => Shape::from((self.rows, self.rows, self.rows)),
        };
        Ok((f64::to_cpu_storage_owned(loss), shape))
    }

    fn bwd(&self, distances: &Tensor, _loss: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let dd = with_storage(OP, distances, |d, d_layout| {
            with_storage(OP, &grad, |g, g_layout| {
                let student = cpu::Angles::new(dense(OP, d, d_layout)?, self.rows);
                let teacher = cpu::Angles::new(&self.teacher, self.rows);
                let g = dense::<f64>(OP, g, g_layout)?;
                Ok(cpu::backward(&student, &teacher, g, self.divisor))
            })
        })?;
        Tensor::from_vec(dd, distances.shape(), distances.device()).map(Some)
    }
}
