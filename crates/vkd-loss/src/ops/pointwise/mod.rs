//! Mean over entries of a function of `student - teacher`, fused.

mod cpu;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use crate::dense::{Real, check_pair, dense, with_storage};
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};

/// The function of the difference.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pointwise {
    Mse,
    SmoothL1 { beta: f64 },
}

impl Pointwise {
    fn op(self) -> &'static str {
        match self {
            Self::Mse => "mse",
            Self::SmoothL1 { .. } => "smooth_l1",
        }
    }
}

/// Checks the pair and applies the fused op, on the CPU, or its twin elsewhere.
pub(crate) fn pointwise(kind: Pointwise, student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    check_pair(kind.op(), student, teacher, "a teacher")?;
    if student.elem_count() == 0 {
        bail!("{}: expected at least one entry, got shape {:?}", kind.op(), student.dims())
    }
    if !student.device().is_cpu() {
        return reference::pointwise(kind, student, teacher);
    }
    student.contiguous()?.apply_op2(&teacher.contiguous()?, kind)
}

impl CustomOp2 for Pointwise {
    fn name(&self) -> &'static str {
        self.op()
    }

    fn cpu_fwd(
        &self,
        student: &CpuStorage,
        student_layout: &Layout,
        teacher: &CpuStorage,
        teacher_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (student, teacher) = ((student, student_layout), (teacher, teacher_layout));
        let loss = match student.0 {
            CpuStorage::F32(_) => self.forward::<f32>(student, teacher)?,
            _ => self.forward::<f64>(student, teacher)?,
        };
        Ok((loss, Shape::from(())))
    }

    fn bwd(
        &self,
        student: &Tensor,
        teacher: &Tensor,
        _loss: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ds = match student.dtype() {
            DType::F32 => self.backward::<f32>(student, teacher, grad)?,
            _ => self.backward::<f64>(student, teacher, grad)?,
        };
        // The teacher is checked to be untracked; zeros keep candle from panicking all the same.
        let dt = if teacher.track_op() { Some(teacher.zeros_like()?) } else { None };
        Ok((Some(ds), dt))
    }
}

impl Pointwise {
    fn forward<T: Real>(
        &self,
        student: (&CpuStorage, &Layout),
        teacher: (&CpuStorage, &Layout),
    ) -> Result<CpuStorage> {
        let student = dense::<T>(self.op(), student.0, student.1)?;
        let teacher = dense::<T>(self.op(), teacher.0, teacher.1)?;
        let loss = cpu::forward(*self, student, teacher);
        Ok(T::to_cpu_storage_owned(vec![T::narrow(loss)]))
    }

    fn backward<T: Real>(
        &self,
        student: &Tensor,
        teacher: &Tensor,
        grad: &Tensor,
    ) -> Result<Tensor> {
        let grad = grad.to_scalar::<T>()?.wide();
        let ds = with_storage(self.op(), student, |s, s_layout| {
            with_storage(self.op(), teacher, |t, t_layout| {
                let s = dense::<T>(self.op(), s, s_layout)?;
                let t = dense::<T>(self.op(), t, t_layout)?;
                Ok(cpu::backward(*self, s, t, grad))
            })
        })?;
        Tensor::from_vec(ds, student.shape(), student.device())
    }
}
