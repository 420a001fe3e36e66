//! The losses by element on a CUDA device.

use super::{PointwiseOp, launch};
use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, Layout, Result, Shape, Tensor};
use vkd_norm::program::{Source, run, run_on_tensors};

const SOURCE: Source = Source {
    module: "vkd_loss::pointwise",
    ptx: include_str!(concat!(env!("OUT_DIR"), "/pointwise.ptx")),
};

pub(super) fn forward(
    op: &PointwiseOp,
    student: (&CudaStorage, &Layout),
    teacher: (&CudaStorage, &Layout),
) -> Result<(CudaStorage, Shape)> {
    let shape = student.1.shape();
    let program = launch::forward(op.kind, student.0.dtype(), shape.elem_count(), op.divisor)?;
    let mut buffers = run(SOURCE, &program, &[student, teacher])?;
    let shape = if op.divisor.is_some() { Shape::from(()) } else { shape.clone() };
    Ok((buffers.swap_remove(0), shape))
}

/// Gradient of the student; the incoming one stays on the device.
pub(super) fn backward(
    op: &PointwiseOp,
    student: &Tensor,
    teacher: &Tensor,
    grad: &Tensor,
) -> Result<Tensor> {
    let entries = student.elem_count();
    let program = launch::backward(op.kind, student.dtype(), entries, op.divisor)?;
    run_on_tensors(SOURCE, &program, &[student, teacher, grad])?[0].reshape(student.shape())
}
