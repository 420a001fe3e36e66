//! Checks that the losses share: half types, rows, and who brought a value that is not finite.

use candle_core::{DType, Result, Tensor, bail};
use vkd_norm::flags;

/// All that is finite.
pub(crate) const FINITE: [f64; 2] = [f64::MIN, f64::MAX];

/// f16 and bf16 are computed in f32; the cast is on the tape. Other dtypes stay.
pub(crate) fn widen(xs: &Tensor) -> Result<Tensor> {
    match xs.dtype() {
        DType::F16 | DType::BF16 => xs.to_dtype(DType::F32),
        _ => Ok(xs.clone()),
    }
}

/// [`widen`] for two tensors of one dtype; a pair that differs stays as it is, for its check to refuse.
pub(crate) fn widen_pair(student: &Tensor, teacher: &Tensor) -> Result<(Tensor, Tensor)> {
    if student.dtype() != teacher.dtype() {
        return Ok((student.clone(), teacher.clone()));
    }
    Ok((widen(student)?, widen(teacher)?))
}

/// Returns the loss, or says which input made it NaN or infinite.
///
/// Only a loss that is one number on the CPU is looked at, which costs no pass over the inputs; they are searched when
/// it is not finite. A loss that overflows from finite inputs is passed on. On a device it needs no check of its own: it is the
/// number that a training loop reads anyway.
pub(crate) fn finite(op: &str, loss: Tensor, inputs: &[(&str, &Tensor)]) -> Result<Tensor> {
    if loss.rank() != 0 || !loss.device().is_cpu() {
        return Ok(loss);
    }
    if loss.to_dtype(DType::F64)?.to_scalar::<f64>()?.is_finite() {
        return Ok(loss);
    }
    for (name, xs) in inputs {
        if !xs.dtype().is_float() {
            continue;
        }
        let values = xs.detach().to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        if let Some(at) = values.iter().position(|x| !x.is_finite()) {
            let width = (values.len() / xs.dims().first().copied().unwrap_or(1)).max(1);
            bail!(
                "{op}: expected finite {name}, got {} in row {}, entry {} (the loss is not finite)",
                values[at],
                at / width,
                at % width
            )
        }
    }
    Ok(loss)
}

/// Labels `(B,)`, U32, each below `classes`; on a device a label that is no class is left to [`flags`].
pub(crate) fn check_labels(op: &str, labels: &Tensor, batch: usize, classes: usize) -> Result<()> {
    if labels.dtype() != DType::U32 || labels.dims() != [batch] {
        bail!(
            "{op}: expected U32 labels of shape [{batch}], got {:?} {:?}",
            labels.dtype(),
            labels.dims()
        )
    }
    if !labels.device().is_cpu() {
        return flag_labels(op, labels, classes);
    }
    let labels = labels.to_vec1::<u32>()?;
    if let Some(row) = labels.iter().position(|label| *label as usize >= classes) {
        bail!("{op}: expected class < {classes}, got class {} in row {row}", labels[row])
    }
    Ok(())
}

/// Labels on a device that are no class set a bit; nothing on the CPU, which refuses them.
pub(crate) fn flag_labels(op: &str, labels: &Tensor, classes: usize) -> Result<()> {
    // Less than zero where there is no class: then every label is wrong.
    flags::expect(op, "labels below the number of classes", labels, [0., classes as f64 - 1.])
}
