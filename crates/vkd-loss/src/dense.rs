//! The checks that all losses share; slices and storage are vkd-norm's.

use candle_core::{DType, Error, Result, Tensor, bail};

pub(crate) use vkd_norm::dense::{Real, dense, with_storage};

/// f32 or f64, else the typed error.
pub(crate) fn check_float(op: &'static str, xs: &Tensor) -> Result<()> {
    match xs.dtype() {
        DType::F32 | DType::F64 => Ok(()),
        other => Err(Error::UnsupportedDTypeForOp(other, op).bt()),
    }
}

/// Same shape and dtype, and a second argument (called `role`) that no gradient flows to.
pub(crate) fn check_pair(
    op: &'static str,
    student: &Tensor,
    fixed: &Tensor,
    role: &str,
) -> Result<()> {
    check_float(op, student)?;
    check_fixed(op, student, fixed, role)
}

/// [`check_pair`] for any dtype.
pub(crate) fn check_fixed(
    op: &'static str,
    student: &Tensor,
    fixed: &Tensor,
    role: &str,
) -> Result<()> {
    if student.dims() != fixed.dims() {
        bail!("{op}: expected {role} of the shape {:?}, got {:?}", student.dims(), fixed.dims())
    }
    if student.dtype() != fixed.dtype() {
        bail!("{op}: expected {role} of dtype {:?}, got {:?}", student.dtype(), fixed.dtype())
    }
    if fixed.track_op() {
        bail!("{op}: expected {role} without gradient, got a tracked tensor; detach it")
    }
    Ok(())
}

/// (B, C) with at least one row and one class.
pub(crate) fn check_logits(op: &'static str, logits: &Tensor) -> Result<(usize, usize)> {
    check_float(op, logits)?;
    match *logits.dims() {
        [batch, classes] if batch > 0 && classes > 0 => Ok((batch, classes)),
        ref dims => bail!("{op}: expected logits (B, C) with B, C >= 1, got {dims:?}"),
    }
}

/// A finite number above zero, and far enough from it that its inverse is finite in f32.
pub(crate) fn check_positive(op: &'static str, name: &str, value: f64) -> Result<()> {
    if !(value >= f64::from(f32::MIN_POSITIVE) && value.is_finite()) {
        bail!("{op}: expected a finite {name} > 0 (at least {:e}), got {value}", f32::MIN_POSITIVE)
    }
    Ok(())
}
