//! Probabilistic knowledge transfer.

use super::Form;
use super::tensor::{Pair, gram, lengths};
use candle_core::{D, DType, Result, Tensor, bail};

/// Keeps lengths, sums and logarithms from zero; for the first and the last as in the published code.
const EPS: f64 = 1e-7;

/// Probabilistic knowledge transfer: divergence of who is whose neighbour in the batch.
///
/// The similarity of two samples is `(1 + cosine) / 2`; a sample's similarities, divided by their sum, are its distribution
/// over the batch. With `t` and `s` those of teacher and student, an entry is `t · log((t + 1e-7) / (s + 1e-7))`.
/// [`Form::Paper`] leaves out a sample's similarity with itself and sums; [`Form::Code`], the published code's, keeps it and takes
/// the mean over all `B²` entries.
///
/// # Shapes
/// - `student`: `(B, C)`, `teacher`: `(B, C')`, at least one entry; f32, f64, or a half type, which is computed in f32
/// - output: rank 0
///
/// # Gradient
/// Flows to `student`.
///
/// # Numerics
/// In f64. Zero at equality; the guards of 1e-7 move the least value away from there by as much. Rows are divided by their length plus 1e-7:
/// rotation leaves the loss as it is, and so does scale while rows are much longer than that. A row of zeros has the cosine 0
/// with all others.
///
/// # Errors
/// Fewer than two rows with [`Form::Paper`], different batches or dtypes, no entries, a tracked teacher (detach
/// it), a shape other than `(B, C)`, another dtype, or a NaN or infinity in the input.
///
/// # References
/// Passalis and Tefas, arXiv:1803.10837.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::baselines::{Form, pkt};
/// let student = Tensor::new(&[[1f32, 0.], [0., 1.], [1., 1.]], &Device::Cpu)?;
/// let rotated = Tensor::new(&[[0f32, 1.], [-1., 0.], [-1., 1.]], &Device::Cpu)?;
/// assert!(pkt(&student, &rotated, Form::Code)?.to_scalar::<f32>()?.abs() < 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn pkt(student: &Tensor, teacher: &Tensor, form: Form) -> Result<Tensor> {
    let pair = Pair::rows("pkt", student, teacher)?;
    let batch = pair.student.dim(0)?;
    let others = match form {
        Form::Paper if batch < 2 => bail!("pkt: expected at least two rows, got {batch}"),
        Form::Paper => (1. - Tensor::eye(batch, DType::F64, student.device())?)?,
        Form::Code => Tensor::ones((batch, batch), DType::F64, student.device())?,
    };
    let neighbours = |xs: &Tensor| -> Result<Tensor> {
        let similar = gram(&xs.broadcast_div(&(lengths(xs)? + EPS)?)?)?.affine(0.5, 0.5)?;
        let similar = (similar * &others)?;
        let total = similar.sum_keepdim(D::Minus1)?.maximum(EPS)?;
        similar.broadcast_div(&total)
    };
    let (student, teacher) = (neighbours(&pair.student)?, neighbours(&pair.teacher)?);
    let ratio = ((&teacher + EPS)? / (student + EPS)?)?;
    let entries = (teacher * ratio.log()?)?;
    pair.finish(&match form {
        Form::Paper => entries.sum_all()?,
        Form::Code => entries.mean_all()?,
    })
}
