//! Losses whose entries are functions of one student and one teacher row, fused.

mod cpu;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use crate::Reduction;
use crate::dense::{Real, check_pair, dense, with_storage};
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};

/// The function of the two rows.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RowLoss {
    /// One less the cosine of the angle; 1 for rows no longer than `eps`.
    Cosine { eps: f64 },
    /// Length of the difference.
    Distance,
    /// One less the generalised intersection over union of two boxes, rows of four corners.
    Giou,
}

impl RowLoss {
    fn op(self) -> &'static str {
        match self {
            Self::Cosine { .. } => "cosine",
            Self::Distance => "token_l2",
            Self::Giou => "giou",
        }
    }
}

/// Checks the pair and applies the fused op, on the CPU, or its twin elsewhere.
pub(crate) fn row_loss(
    kind: RowLoss,
    student: &Tensor,
    teacher: &Tensor,
    reduction: Reduction,
) -> Result<Tensor> {
    let op = kind.op();
    let role = if let RowLoss::Giou = kind { "targets" } else { "a teacher" };
    check_pair(op, student, teacher, role)?;
    let channels = match student.dims() {
        [.., channels] if student.elem_count() > 0 => *channels,
        dims => bail!("{op}: expected (.., C) with at least one entry, got {dims:?}"),
    };
    if !student.device().is_cpu() {
        return reference::row_loss(kind, student, teacher, reduction);
    }
    let rows = student.elem_count() / channels;
    let fused = Fused { kind, channels, divisor: reduction.divisor(rows, rows) };
    student.contiguous()?.apply_op2(&teacher.contiguous()?, fused)
}

struct Fused {
    kind: RowLoss,
    channels: usize,
    /// What the sum over rows is divided by; without it there is no sum.
    divisor: Option<f64>,
}

impl CustomOp2 for Fused {
    fn name(&self) -> &'static str {
        self.kind.op()
    }

    fn cpu_fwd(
        &self,
        student: &CpuStorage,
        student_layout: &Layout,
        teacher: &CpuStorage,
        teacher_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let dims = student_layout.dims();
        let shape = match self.divisor {
            Some(_) => Shape::from(()),
            None => Shape::from(&dims[..dims.len() - 1]),
        };
        let (student, teacher) = ((student, student_layout), (teacher, teacher_layout));
        let loss = match student.0 {
            CpuStorage::F32(_) => self.forward::<f32>(student, teacher)?,
            _ => self.forward::<f64>(student, teacher)?,
        };
        Ok((loss, shape))
    }

    fn bwd(
        &self,
        student: &Tensor,
        teacher: &Tensor,
        _loss: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let ds = match student.dtype() {
            DType::F32 => self.backward::<f32>(student, teacher, &grad)?,
            _ => self.backward::<f64>(student, teacher, &grad)?,
        };
        // The teacher is checked to be untracked; zeros keep candle from panicking all the same.
        let dt = if teacher.track_op() { Some(teacher.zeros_like()?) } else { None };
        Ok((Some(ds), dt))
    }
}

impl Fused {
    fn forward<T: Real>(
        &self,
        student: (&CpuStorage, &Layout),
        teacher: (&CpuStorage, &Layout),
    ) -> Result<CpuStorage> {
        let op = self.kind.op();
        let student = dense::<T>(op, student.0, student.1)?;
        let teacher = dense::<T>(op, teacher.0, teacher.1)?;
        let loss = cpu::forward(self.kind, student, teacher, self.channels, self.divisor)?;
        Ok(T::to_cpu_storage_owned(loss))
    }

    fn backward<T: Real>(
        &self,
        student: &Tensor,
        teacher: &Tensor,
        grad: &Tensor,
    ) -> Result<Tensor> {
        let op = self.kind.op();
        let ds = with_storage(op, student, |s, s_layout| {
            with_storage(op, teacher, |t, t_layout| {
                with_storage(op, grad, |g, g_layout| {
                    let s = dense::<T>(op, s, s_layout)?;
                    let t = dense::<T>(op, t, t_layout)?;
                    let g = dense::<T>(op, g, g_layout)?;
                    Ok(cpu::backward(self.kind, s, t, g, self.channels, self.divisor))
                })
            })
        })?;
        Tensor::from_vec(ds, student.shape(), student.device())
    }
}
