//! Smooth-L1 against a teacher that is layer-normed on the way.

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

use crate::checks::{finite, widen_pair};
use crate::dense::{Real, check_fixed, check_positive, dense};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, DType, Error, Layout, Result, Shape, Tensor, bail};
use cpu::Terms;
use vkd_norm::dense::with_slices;
use vkd_norm::program;

const OP: &str = "smooth_l1_layer_norm";

/// Smooth-L1 between student and layer-normed teacher, in one pass: V_kD's feature loss in classification.
///
/// With `t̂ = layer_norm(teacher, eps)`, over the last dimension, without gain and bias, the value is
/// [`smooth_l1`](crate::smooth_l1)`(student, t̂, beta)`: the mean over all entries. `t̂` is never written to memory.
///
/// # Shapes
/// - `student`, `teacher`: `(.., C)`, the same, with at least one entry; f32, f64, or a half type, which is computed in f32
/// - output: rank 0
///
/// # Gradient
/// Flows to `student` alone: `d/β` cut to [-1, 1], over the number of entries, with `d = student − t̂`. The backward
/// pass normalises the teacher's rows again. The teacher must carry no gradient; where it has one, compose
/// [`layer_norm`](vkd_norm::layer_norm) and another loss.
///
/// # Numerics
/// As [`layer_norm`](vkd_norm::layer_norm) for the teacher. Row sums in the dtype, joined in f64; on a CUDA device half types
/// are read as they are and give a loss in f32. Equal to the two ops
/// up to rounding, and the same bit for bit with any number of threads.
///
/// # Errors
/// `beta` or `eps` not finite or under the smallest normal f32, different shapes or dtypes, no dimension, no entries, a
/// tracked teacher (detach it), another dtype, or a NaN or infinity in the input, which is named (on the CPU).
///
/// # References
/// V_kD (arXiv:2403.06213) in code, with `beta = 1` and `eps = 1e-5`.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::smooth_l1_layer_norm;
/// let teacher = Tensor::new(&[[10f64, 30.]], &Device::Cpu)?;
/// // The normed teacher is (-1, 1).
/// let student = Tensor::new(&[[-1f64, 4.]], &Device::Cpu)?;
/// let loss = smooth_l1_layer_norm(&student, &teacher, 1., 1e-5)?;
/// assert!((loss.to_scalar::<f64>()? - (0. + 2.5) / 2.).abs() < 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn smooth_l1_layer_norm(
    student: &Tensor,
    teacher: &Tensor,
    beta: f64,
    eps: f64,
) -> Result<Tensor> {
    check_positive(OP, "beta", beta)?;
    check_positive(OP, "eps", eps)?;
    // Kernels read half types as they are.
    let own = program::applies(student) && student.dtype() == teacher.dtype();
    let (student, teacher) =
        &if own { (student.clone(), teacher.clone()) } else { widen_pair(student, teacher)? };
    check_fixed(OP, student, teacher, "a teacher")?;
    if !student.dtype().is_float() || (!own && !matches!(student.dtype(), DType::F32 | DType::F64))
    {
        return Err(Error::UnsupportedDTypeForOp(student.dtype(), OP).bt());
    }
    let channels = match *student.dims() {
        [.., channels] if student.elem_count() > 0 => channels,
        ref dims => bail!("{OP}: expected (.., C) with at least one entry, got {dims:?}"),
    };
    if program::applies(student) {
        let op = NormedSmoothL1(Terms { channels, beta, eps });
        return student.contiguous()?.apply_op2(&teacher.contiguous()?, op);
    }
    if !student.device().is_cpu() {
        return reference::smooth_l1_layer_norm(student, teacher, beta, eps);
    }
    let op = NormedSmoothL1(Terms { channels, beta, eps });
    let loss = student.contiguous()?.apply_op2(&teacher.contiguous()?, op)?;
    finite(OP, loss, &[("student", student), ("teacher", teacher)])
}

struct NormedSmoothL1(Terms);

impl CustomOp2 for NormedSmoothL1 {
    fn name(&self) -> &'static str {
        OP
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

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        student: &CudaStorage,
        student_layout: &Layout,
        teacher: &CudaStorage,
        teacher_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (student, teacher) = ((student, student_layout), (teacher, teacher_layout));
        cuda::forward(self.0, student, teacher)
    }

    fn bwd(
        &self,
        student: &Tensor,
        teacher: &Tensor,
        _loss: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        #[cfg(feature = "cuda")]
        if student.device().is_cuda() {
            let ds = cuda::backward(self.0, student, teacher, grad)?;
            let dt = if teacher.track_op() { Some(teacher.zeros_like()?) } else { None };
            return Ok((Some(ds), dt));
        }
        let ds = match student.dtype() {
            DType::F32 => self.backward::<f32>(student, teacher, grad)?,
            _ => self.backward::<f64>(student, teacher, grad)?,
        };
        // The teacher is checked to be untracked; zeros keep candle from panicking all the same.
        let dt = if teacher.track_op() { Some(teacher.zeros_like()?) } else { None };
        Ok((Some(ds), dt))
    }
}

impl NormedSmoothL1 {
    fn forward<T: Real>(
        &self,
        student: (&CpuStorage, &Layout),
        teacher: (&CpuStorage, &Layout),
    ) -> Result<CpuStorage> {
        let student = dense::<T>(OP, student.0, student.1)?;
        let teacher = dense::<T>(OP, teacher.0, teacher.1)?;
        Ok(T::to_cpu_storage_owned(vec![T::narrow(self.0.forward(student, teacher))]))
    }

    fn backward<T: Real>(
        &self,
        student: &Tensor,
        teacher: &Tensor,
        grad: &Tensor,
    ) -> Result<Tensor> {
        let grad = grad.to_scalar::<T>()?.wide();
        let ds = with_slices::<T, _, 2>(OP, [student, teacher], |[s, t]| {
            Ok(self.0.backward(s, t, grad))
        })?;
        Tensor::from_vec(ds, student.shape(), student.device())
    }
}
