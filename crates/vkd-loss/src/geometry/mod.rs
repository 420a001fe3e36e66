//! Numbers about features, for reports: how alike two sets are, and how much of their width they use.
//!
//! Everything is computed in f64 from values alone: results are plain numbers, and no gradient flows through them. Features are
//! `(N, ..)`, one sample a row, flattened after the first dimension; they are scaled to a largest magnitude of one first, so that
//! no finite input overflows. They are copied to the host: this is for now and then, not for each step.

use crate::Reduction;
use crate::ops::{RowLoss, row_loss};
use candle_core::{D, DType, Error, Result, Tensor, bail};
use faer::{MatRef, Side};

/// Below this part of the largest magnitude, what centring leaves is rounding.
const CONSTANT: f64 = 1e-12;

/// Linear centred kernel alignment of two sets of features of the same samples: 1 where they are equal up to rotation and
/// scale, 0 where they are uncorrelated.
///
/// ```text
/// ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖)   with centred columns; the same from inner products of samples where those are fewer
/// ```
///
/// # Shapes
/// - `student`: `(N, ..)`, `teacher`: `(N, ..)`, `N >= 2`; widths may differ; f32, f64, bf16 or f16
///
/// # Errors
/// Different numbers of rows, fewer than two, no entries, features that are the same in all rows (they have no
/// alignment), or values that are not finite.
///
/// # References
/// Kornblith et al., arXiv:1905.00414. With few samples the value is biased upwards: compare at equal N.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::geometry::linear_cka;
/// let student = Tensor::new(&[[1f32, 0.], [0., 2.], [-1., 1.]], &Device::Cpu)?;
/// let turned = Tensor::new(&[[0f32, 3.], [-6., 0.], [-3., -3.]], &Device::Cpu)?;
/// assert!((linear_cka(&student, &turned)? - 1.).abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn linear_cka(student: &Tensor, teacher: &Tensor) -> Result<f64> {
    const OP: &str = "linear_cka";
    check_rows(OP, student, teacher)?;
    let (student, teacher) = (centred(OP, "student", student)?, centred(OP, "teacher", teacher)?);
    let norm = |xs: &Tensor| xs.sqr()?.sum_all()?.sqrt()?.to_scalar::<f64>();
    let rows = student.dim(0)?;
    let (cross, own, other) = if rows > student.dim(1)?.max(teacher.dim(1)?) {
        let (s, t) = (student.t()?, teacher.t()?);
        let cross = norm(&s.matmul(&teacher)?)?;
        (cross * cross, norm(&s.matmul(&student)?)?, norm(&t.matmul(&teacher)?)?)
    } else {
        let s = student.matmul(&student.t()?)?;
        let t = teacher.matmul(&teacher.t()?)?;
        ((&s * &t)?.sum_all()?.to_scalar::<f64>()?, norm(&s)?, norm(&t)?)
    };
    Ok(cross / (own * other))
}

/// Effective rank of centred features: the exponential of the entropy of their singular values, each over their sum.
///
/// Between 1 and `min(N − 1, D)`: as many dimensions as equal singular values would need.
///
/// # Shapes
/// - `features`: `(N, ..)`, `N >= 2`; f32, f64, bf16 or f16
///
/// # Numerics
/// Singular values come from the smaller one of the two matrices of inner products, whose eigenvalues below `2.2e-16 m` of the
/// largest, with `m = min(N, D)`, are rounding and count as zero: dimensions without spread add nothing, however many. A
/// true singular value under `1.5e-8 √m` of the largest is lost with them. Cost `O(m³)`.
///
/// # Errors
/// Fewer than two rows, no entries, features that are the same in all rows, or values that are not finite.
///
/// # References
/// Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::geometry::effective_rank;
/// let square = Tensor::new(&[[1f32, 1., 5.], [1., -1., 5.], [-1., 1., 5.], [-1., -1., 5.]], &Device::Cpu)?;
/// assert!((effective_rank(&square)? - 2.).abs() < 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn effective_rank(features: &Tensor) -> Result<f64> {
    let xs = centred("effective_rank", "features", features)?;
    let (rows, width) = xs.dims2()?;
    let gram = if rows < width { xs.matmul(&xs.t()?)? } else { xs.t()?.matmul(&xs)? };
    let (gram, size) = (gram.flatten_all()?.to_vec1::<f64>()?, rows.min(width));
    let gram = MatRef::from_row_major_slice(&gram, size, size);
    let values = gram
        .self_adjoint_eigenvalues(Side::Lower)
        .map_err(|e| Error::msg(format!("effective_rank: no eigenvalues: {e:?}")))?;
    let floor = size as f64 * f64::EPSILON * values.iter().fold(0f64, |m, x| m.max(*x));
    let singular: Vec<f64> = values.iter().filter(|x| **x > floor).map(|x| x.sqrt()).collect();
    let total: f64 = singular.iter().sum();
    let parts = singular.iter().map(|x| x / total);
    Ok(parts.map(|p| -p * p.ln()).sum::<f64>().exp())
}

/// Mean cosine over all pairs of different rows: near 1 where all samples look alike (collapse), near 0 where they spread.
///
/// A row of zeros has the cosine 0 with every other.
///
/// # Shapes
/// - `features`: `(N, ..)`, `N >= 2`; f32, f64, bf16 or f16
///
/// # Errors
/// Fewer than two rows, no entries, or values that are not finite.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::geometry::mean_pairwise_cosine;
/// let alike = Tensor::new(&[[1f32, 2.], [2., 4.], [3., 6.]], &Device::Cpu)?;
/// assert!((mean_pairwise_cosine(&alike)? - 1.).abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn mean_pairwise_cosine(features: &Tensor) -> Result<f64> {
    let xs = scaled("mean_pairwise_cosine", "features", features)?;
    let rows = xs.dim(0)? as f64;
    let sizes = xs.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
    let none = sizes.le(0.)?;
    let units = xs.broadcast_div(&none.where_cond(&sizes.ones_like()?, &sizes)?)?;
    // Σ over pairs of ⟨u_i, u_j⟩ is ‖Σ u_i‖², less the pairs of a row with itself.
    let all = units.sum(0)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
    let own = units.sqr()?.sum_all()?.to_scalar::<f64>()?;
    Ok((all - own) / (rows * (rows - 1.)))
}

/// Mean cosine of paired rows of student and teacher, which have the same width: project the student first.
///
/// For widths that differ [`linear_cka`] says how alike the two are. A row of zeros has the cosine 0.
///
/// # Shapes
/// - `student`, `teacher`: `(N, ..)`, the same, `N >= 2`; f32, f64, bf16 or f16
///
/// # Errors
/// Different shapes, fewer than two rows, no entries, or values that are not finite.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::geometry::alignment;
/// let student = Tensor::new(&[[1f32, 0.], [0., 2.]], &Device::Cpu)?;
/// let teacher = Tensor::new(&[[3f32, 0.], [1., 0.]], &Device::Cpu)?;
/// assert_eq!(alignment(&student, &teacher)?, 0.5);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn alignment(student: &Tensor, teacher: &Tensor) -> Result<f64> {
    const OP: &str = "alignment";
    check_rows(OP, student, teacher)?;
    if student.dims() != teacher.dims() {
        bail!(
            "{OP}: expected a teacher of the shape {:?}, got {:?} (project the student, or take linear_cka)",
            student.dims(),
            teacher.dims()
        )
    }
    let (student, teacher) = (scaled(OP, "student", student)?, scaled(OP, "teacher", teacher)?);
    let loss = row_loss(RowLoss::Cosine { eps: 0. }, &student, &teacher, Reduction::Mean)?;
    Ok(1. - loss.to_scalar::<f64>()?)
}

fn check_rows(op: &str, student: &Tensor, teacher: &Tensor) -> Result<()> {
    let (rows, got) = (student.dims().first(), teacher.dims().first());
    if rows != got {
        bail!(
            "{op}: expected as many teacher rows as student rows, got {:?} and {:?}",
            student.dims(),
            teacher.dims()
        )
    }
    Ok(())
}

/// Rows in f64, off the tape, with a largest magnitude of one (zeros stay zeros).
fn scaled(op: &str, name: &str, xs: &Tensor) -> Result<Tensor> {
    match xs.dims() {
        [rows, _, ..] if *rows >= 2 && xs.elem_count() > 0 => {}
        dims => {
            bail!("{op}: expected {name} (N, ..) with N >= 2 and at least one entry, got {dims:?}")
        }
    }
    let xs = xs.detach().to_dtype(DType::F64)?.flatten_from(1)?.contiguous()?;
    let values = xs.flatten_all()?.to_vec1::<f64>()?;
    if let Some(at) = values.iter().position(|x| !x.is_finite()) {
        let width = values.len() / xs.dim(0)?;
        bail!(
            "{op}: expected finite {name}, got {} in row {}, entry {}",
            values[at],
            at / width,
            at % width
        )
    }
    let largest = values.iter().fold(0f64, |m, x| m.max(x.abs()));
    // A true division: the inverse of a subnormal number may be infinite.
    if largest == 0. { Ok(xs) } else { xs.broadcast_div(&Tensor::new(largest, xs.device())?) }
}

/// [`scaled`], less the mean of each column.
fn centred(op: &str, name: &str, xs: &Tensor) -> Result<Tensor> {
    let xs = scaled(op, name, xs)?;
    let centred = xs.broadcast_sub(&xs.mean_keepdim(0)?)?;
    let left = centred.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?;
    if left <= CONSTANT {
        bail!("{op}: expected rows that differ in {name}, got the same one {} times", xs.dim(0)?)
    }
    Ok(centred)
}
