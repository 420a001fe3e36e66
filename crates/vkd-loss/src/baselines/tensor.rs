//! Tensor compositions that the baselines share; each has a finite gradient everywhere.

use crate::checks::{finite, widen};
use crate::dense::{check_float, check_logits, check_pair};
use candle_core::{D, DType, Result, Tensor, bail};

/// Student and teacher, ready to compute with, and what is needed to finish.
pub(super) struct Pair {
    pub(super) op: &'static str,
    pub(super) student: Tensor,
    pub(super) teacher: Tensor,
    /// That of the result.
    dtype: DType,
    names: [&'static str; 2],
    given: [Tensor; 2],
}

impl Pair {
    fn new(
        op: &'static str,
        names: [&'static str; 2],
        student: &Tensor,
        teacher: &Tensor,
    ) -> Result<Self> {
        if student.dtype() != teacher.dtype() {
            bail!(
                "{op}: expected {} of dtype {:?}, got {:?}",
                names[1],
                student.dtype(),
                teacher.dtype()
            )
        }
        let (wide, fixed) = (widen(student)?, widen(teacher)?);
        check_float(op, &wide)?;
        if teacher.track_op() {
            bail!("{op}: expected {} without gradient, got a tracked tensor; detach it", names[1])
        }
        let given = [student.clone(), teacher.clone()];
        Ok(Self { op, dtype: wide.dtype(), student: wide, teacher: fixed, names, given })
    }

    /// Logits `(B, C)`, the same shape, in f64.
    pub(super) fn logits(op: &'static str, student: &Tensor, teacher: &Tensor) -> Result<Self> {
        let pair = Self::new(op, ["student logits", "teacher logits"], student, teacher)?;
        check_logits(op, &pair.student)?;
        check_pair(op, &pair.student, &pair.teacher, "teacher logits")?;
        pair.wide()
    }

    /// Two tensors of the same shape, not empty, in their own dtype; the first is called `name`.
    pub(super) fn same(
        op: &'static str,
        name: &'static str,
        student: &Tensor,
        teacher: &Tensor,
    ) -> Result<Self> {
        let pair = Self::new(op, [name, "teacher"], student, teacher)?;
        check_pair(op, &pair.student, &pair.teacher, "a teacher")?;
        if student.elem_count() == 0 {
            bail!("{op}: expected at least one entry, got shape {:?}", student.dims())
        }
        Ok(pair)
    }

    /// Features of the same samples, `(B, ..)` each, not empty, flattened to `(B, D)`; the widths may differ.
    pub(super) fn samples(op: &'static str, student: &Tensor, teacher: &Tensor) -> Result<Self> {
        let mut pair = Self::new(op, ["student", "teacher"], student, teacher)?;
        for (name, xs) in [("student", student), ("teacher", teacher)] {
            if xs.rank() < 2 || xs.elem_count() == 0 {
                bail!(
                    "{op}: expected a {name} (B, ..) with at least one entry, got {:?}",
                    xs.dims()
                )
            }
        }
        let (rows, got) = (student.dim(0)?, teacher.dim(0)?);
        if rows != got {
            bail!("{op}: expected a teacher of {rows} rows, as the student, got {got}")
        }
        pair.student = pair.student.flatten_from(1)?;
        pair.teacher = pair.teacher.flatten_from(1)?;
        Ok(pair)
    }

    /// [`samples`](Self::samples) that are rows of features `(B, C)`, in f64.
    pub(super) fn rows(op: &'static str, student: &Tensor, teacher: &Tensor) -> Result<Self> {
        for (name, xs) in [("student", student), ("teacher", teacher)] {
            if xs.rank() != 2 {
                bail!("{op}: expected a {name} (B, C), got {:?}", xs.dims())
            }
        }
        Self::samples(op, student, teacher)?.wide()
    }

    /// Maps `(B, C, H, W)` of the same samples; the rest may differ.
    pub(super) fn maps(op: &'static str, student: &Tensor, teacher: &Tensor) -> Result<Self> {
        for (name, xs) in [("student", student), ("teacher", teacher)] {
            if xs.rank() != 4 {
                bail!("{op}: expected a {name} (B, C, H, W), got {:?}", xs.dims())
            }
        }
        let pair = Self::samples(op, student, teacher)?;
        let (student, teacher) =
            (pair.student.reshape(student.shape())?, pair.teacher.reshape(teacher.shape())?);
        Ok(Self { student, teacher, ..pair })
    }

    fn wide(self) -> Result<Self> {
        let (student, teacher) =
            (self.student.to_dtype(DType::F64)?, self.teacher.to_dtype(DType::F64)?);
        Ok(Self { student, teacher, ..self })
    }

    /// The loss in the dtype of the result, or which input made it NaN or infinite.
    pub(super) fn finish(&self, loss: &Tensor) -> Result<Tensor> {
        let named = [(self.names[0], &self.given[0]), (self.names[1], &self.given[1])];
        finite(self.op, loss.to_dtype(self.dtype)?, &named)
    }
}

/// Square root with a gradient of zero at zero; NaN stays.
pub(super) fn sqrt(xs: &Tensor) -> Result<Tensor> {
    let zero = xs.le(0.)?;
    let root = zero.where_cond(&xs.ones_like()?, xs)?.sqrt()?;
    zero.where_cond(&root.zeros_like()?, &root)
}

/// Rows over their largest magnitude, which is a constant: for what does not see the scale of a row, so that no square
/// underflows. Rows of magnitudes up to 1e-290 (in f32: zeros) stay.
pub(super) fn rescaled(xs: &Tensor) -> Result<Tensor> {
    let largest = xs.detach().abs()?.max_keepdim(D::Minus1)?;
    let none = largest.le(1e-290)?;
    xs.broadcast_div(&none.where_cond(&largest.ones_like()?, &largest)?)
}

/// Lengths of the rows, `(B, 1)`.
pub(super) fn lengths(xs: &Tensor) -> Result<Tensor> {
    sqrt(&xs.sqr()?.sum_keepdim(D::Minus1)?)
}

/// Rows over their `sizes` `(B, 1)`; a row whose size is at most `floor` `(B, 1)` becomes zero, without gradient.
pub(super) fn divide_rows(xs: &Tensor, sizes: &Tensor, floor: &Tensor) -> Result<Tensor> {
    let none = sizes.le(floor)?;
    let safe = none.where_cond(&sizes.ones_like()?, sizes)?;
    let ys = xs.broadcast_div(&safe)?;
    none.broadcast_as(ys.shape())?.where_cond(&ys.zeros_like()?, &ys)
}

/// Rows of length one; those no longer than 1e-12 become zero, without gradient.
pub(super) fn unit_rows(xs: &Tensor) -> Result<Tensor> {
    let sizes = lengths(xs)?;
    divide_rows(xs, &sizes, &sizes.ones_like()?.affine(1e-12, 0.)?.detach())
}

/// Magnitudes, with a derivative of zero at zero; candle's own is one there.
pub(super) fn magnitude(xs: &Tensor) -> Result<Tensor> {
    xs * xs.detach().sign()?
}

/// Inner products of all pairs of rows up to a factor for each row, in f64: for what brings every row to size one.
///
/// One side is over the largest magnitude of all, the other row by row, so that no size of the features overflows, and
/// no row vanishes beside larger ones. Both are constants, which such a function does not see.
pub(super) fn scaled_gram(xs: &Tensor) -> Result<Tensor> {
    let whole = rescaled(&xs.flatten_all()?)?.reshape(xs.shape())?;
    rescaled(xs)?.matmul(&whole.t()?)?.to_dtype(DType::F64)
}

/// Inner products of all pairs of rows, in f64.
pub(super) fn gram(xs: &Tensor) -> Result<Tensor> {
    xs.matmul(&xs.t()?)?.to_dtype(DType::F64)
}
