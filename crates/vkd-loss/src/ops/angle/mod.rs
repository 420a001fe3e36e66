//! Smooth-L1 between the cosines of the angles of all triples, fused: memory grows with the pairs, not the triples.

mod cpu;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use crate::Reduction;
use crate::dense::{dense, with_storage};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType};

const OP: &str = "angle_loss";

/// What angles are made of: inner products `(B, B)` of the rows, and one over their distances `(B, B)`, zero where
/// a distance is; f64. The cosine at i between j and k is `(G_jk − G_ij − G_ik + G_ii) / (d_ij d_ik)`.
pub(crate) struct Angles {
    pub(crate) gram: Tensor,
    pub(crate) inverse: Tensor,
}

/// Smooth-L1 (beta 1) of the two cosines of each triple (i, j, k); the teacher's are constants.
///
/// The backward pass computes all cosines again.
pub(crate) fn angle_loss(
    student: &Angles,
    teacher: &Angles,
    reduction: Reduction,
) -> Result<Tensor> {
    if !student.gram.device().is_cpu() {
        return reference::angle_loss(student, teacher, reduction);
    }
    let rows = student.gram.dim(0)?;
    let values = |xs: &Tensor| xs.flatten_all()?.to_vec1::<f64>();
    let op = AngleLoss {
        teacher_gram: values(&teacher.gram)?,
        teacher_inverse: values(&teacher.inverse)?,
        rows,
        divisor: reduction.divisor(rows * rows * rows, rows),
    };
    student.gram.contiguous()?.apply_op2(&student.inverse.contiguous()?, op)
}

struct AngleLoss {
    teacher_gram: Vec<f64>,
    teacher_inverse: Vec<f64>,
    rows: usize,
    /// What the sum over triples is divided by; without it there is no sum.
    divisor: Option<f64>,
}

impl AngleLoss {
    fn teacher(&self) -> cpu::Angles<'_> {
        cpu::Angles { gram: &self.teacher_gram, inverse: &self.teacher_inverse, rows: self.rows }
    }
}

impl CustomOp2 for AngleLoss {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        gram: &CpuStorage,
        gram_layout: &Layout,
        inverse: &CpuStorage,
        inverse_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let student = cpu::Angles {
            gram: dense(OP, gram, gram_layout)?,
            inverse: dense(OP, inverse, inverse_layout)?,
            rows: self.rows,
        };
        let loss = cpu::forward(&student, &self.teacher(), self.divisor);
        let shape = match self.divisor {
            Some(_) => Shape::from(()),
            None => Shape::from((self.rows, self.rows, self.rows)),
        };
        Ok((f64::to_cpu_storage_owned(loss), shape))
    }

    fn bwd(
        &self,
        gram: &Tensor,
        inverse: &Tensor,
        _loss: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (dg, di) = with_storage(OP, gram, |a, a_layout| {
            with_storage(OP, inverse, |b, b_layout| {
                with_storage(OP, &grad, |g, g_layout| {
                    let (gram, inverse) = (dense(OP, a, a_layout)?, dense(OP, b, b_layout)?);
                    let student = cpu::Angles { gram, inverse, rows: self.rows };
                    let g = dense::<f64>(OP, g, g_layout)?;
                    Ok(cpu::backward(&student, &self.teacher(), g, self.divisor))
                })
            })
        })?;
        let tensor = |xs: Vec<f64>| Tensor::from_vec(xs, gram.shape(), gram.device());
        Ok((Some(tensor(dg)?), Some(tensor(di)?)))
    }
}
