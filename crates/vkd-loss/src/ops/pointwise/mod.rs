//! Losses whose entries are functions of one student and one teacher element, fused.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod kernel_tests;
#[cfg(any(feature = "cuda", test))]
mod launch;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use crate::Reduction;
use crate::dense::{Real, check_pair, dense, with_storage};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};
use vkd_norm::program;

/// The function of the two elements; the kernels number them in this order.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pointwise {
    /// `(s − t)²`
    Mse,
    /// Quadratic up to `beta`, linear beyond.
    SmoothL1 { beta: f64 },
    /// `|s − t|`
    L1,
    /// Cross entropy of a logit with a probability.
    Bce,
    /// The same, weighed by how wrong the logit is.
    Focal { alpha: f64, gamma: f64 },
}

impl Pointwise {
    fn op(self) -> &'static str {
        match self {
            Self::Mse => "mse",
            Self::SmoothL1 { .. } => "smooth_l1",
            Self::L1 => "l1",
            Self::Bce => "bce_with_logits",
            Self::Focal { .. } => "sigmoid_focal",
        }
    }
}

/// Checks the pair and applies the fused op, on the CPU and where there is a kernel, or its twin elsewhere. Only the CPU
/// looks at values: whoever has targets leaves theirs to the flags on a device.
pub(crate) fn pointwise(
    kind: Pointwise,
    student: &Tensor,
    teacher: &Tensor,
    reduction: Reduction,
) -> Result<Tensor> {
    let role = match kind {
        Pointwise::Bce => "probabilities",
        Pointwise::Focal { .. } => "targets",
        _ => "a teacher",
    };
    check_pair(kind.op(), student, teacher, role)?;
    if student.elem_count() == 0 {
        bail!("{}: expected at least one entry, got shape {:?}", kind.op(), student.dims())
    }
    if !student.device().is_cpu() && !program::applies(student) {
        return reference::pointwise(kind, student, teacher, reduction);
    }
    let rows = student.dims().first().copied().unwrap_or(1);
    let op = PointwiseOp { kind, divisor: reduction.divisor(student.elem_count(), rows) };
    student.contiguous()?.apply_op2(&teacher.contiguous()?, op)
}

struct PointwiseOp {
    kind: Pointwise,
    /// What the sum over entries is divided by; without it there is no sum.
    divisor: Option<f64>,
}

impl CustomOp2 for PointwiseOp {
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
        let shape =
            if self.divisor.is_some() { Shape::from(()) } else { student_layout.shape().clone() };
        let (student, teacher) = ((student, student_layout), (teacher, teacher_layout));
        let loss = match student.0 {
            CpuStorage::F32(_) => self.forward::<f32>(student, teacher)?,
            _ => self.forward::<f64>(student, teacher)?,
        };
        Ok((loss, shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        student: &CudaStorage,
        student_layout: &Layout,
        teacher: &CudaStorage,
        teacher_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (student, teacher) = ((student, student_layout), (teacher, teacher_layout));
        cuda::forward(self, student, teacher)
    }

    fn bwd(
        &self,
        student: &Tensor,
        teacher: &Tensor,
        _loss: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if student.device().is_cuda() {
            let ds = cuda::backward(self, student, teacher, &grad)?;
            let dt = if teacher.track_op() { Some(teacher.zeros_like()?) } else { None };
            return Ok((Some(ds), dt));
        }
        let ds = match student.dtype() {
            DType::F32 => self.backward::<f32>(student, teacher, &grad)?,
            _ => self.backward::<f64>(student, teacher, &grad)?,
        };
        // The teacher is checked to be untracked; zeros keep candle from panicking all the same.
        let dt = if teacher.track_op() { Some(teacher.zeros_like()?) } else { None };
        Ok((Some(ds), dt))
    }
}

impl PointwiseOp {
    fn forward<T: Real>(
        &self,
        student: (&CpuStorage, &Layout),
        teacher: (&CpuStorage, &Layout),
    ) -> Result<CpuStorage> {
        let op = self.kind.op();
        let student = dense::<T>(op, student.0, student.1)?;
        let teacher = dense::<T>(op, teacher.0, teacher.1)?;
        let loss = cpu::forward(self.kind, student, teacher, self.divisor)?;
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
                    Ok(cpu::backward(self.kind, s, t, g, self.divisor))
                })
            })
        })?;
        Tensor::from_vec(ds, student.shape(), student.device())
    }
}
