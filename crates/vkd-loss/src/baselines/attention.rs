//! Attention transfer.

use super::Form;
use super::tensor::{Pair, magnitude, rescaled, unit_rows};
use crate::Reduction::Mean;
use crate::ops::{Pointwise, RowLoss, pointwise, row_loss};
use candle_core::{DType, Result, Tensor, bail};

/// Attention transfer: the maps of where channels are large, compared sample by sample.
///
/// The map of a sample is the mean over channels of `|x|^power`, flattened and brought to length one. [`Form::Paper`]
/// is the Euclidean distance of the two maps, mean over samples; [`Form::Code`], the published code's, is their squared
/// difference, mean over all entries.
///
/// # Shapes
/// - `student`: `(B, C, H, W)`, `teacher`: `(B, C', H', W')`, at least one entry; f32, f64, or a half type, which is computed
///   in f32. Where one map is larger, each side by a whole factor, it is averaged over blocks first; maps of which each is
///   the larger one in one direction are refused.
/// - output: rank 0
///
/// # Gradient
/// Flows to `student`.
///
/// # Numerics
/// Powers in the dtype, the rest in f64. Zero at equality, where the paper's form has no gradient (it defines none). A sample
/// of zeros counts as a map of zeros and has no gradient. A sample is taken over its largest magnitude first, so that its
/// size does not matter, in f32 from 1e-37 to 1e37.
///
/// # Errors
/// `power` under 1 or not finite, a size that is no whole multiple of the other, or larger in one direction only, different batches or dtypes, no
/// entries, a tracked teacher (detach it), a rank other than four, another dtype, or a NaN or infinity in the input.
///
/// # References
/// Zagoruyko and Komodakis, arXiv:1612.03928, equation 2, whose factor β/2 is the caller's weight.
///
/// # Example
/// ```
/// # use candle_core::{DType, Device, Tensor}; use vkd_loss::baselines::{Form, attention_transfer};
/// let student = Tensor::ones((2, 3, 4, 4), DType::F32, &Device::Cpu)?;
/// let teacher = Tensor::ones((2, 7, 2, 2), DType::F32, &Device::Cpu)?;
/// let loss = attention_transfer(&student, &teacher, 2., Form::Code)?;
/// assert!(loss.to_scalar::<f32>()? < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn attention_transfer(
    student: &Tensor,
    teacher: &Tensor,
    power: f64,
    form: Form,
) -> Result<Tensor> {
    const OP: &str = "attention_transfer";
    if !(power >= 1. && power.is_finite()) {
        bail!("{OP}: expected a finite power of at least 1, got {power}")
    }
    let pair = Pair::maps(OP, student, teacher)?;
    let (_, _, sh, sw) = student.dims4()?;
    let (_, _, th, tw) = teacher.dims4()?;
    if (sh > th && sw < tw) || (sh < th && sw > tw) {
        bail!("{OP}: expected one map to be the larger both ways, got {sh}x{sw} and {th}x{tw}")
    }
    let (h, w) = (sh.min(th), sw.min(tw));
    let map = |xs: &Tensor| unit_rows(&attention(&pool(OP, xs, h, w)?, power)?);
    let (student, teacher) = (map(&pair.student)?, map(&pair.teacher)?);
    pair.finish(&match form {
        Form::Paper => row_loss(RowLoss::Distance, &student, &teacher, Mean)?,
        Form::Code => pointwise(Pointwise::Mse, &student, &teacher, Mean)?,
    })
}

/// Means of blocks, down to `(h, w)`.
fn pool(op: &str, xs: &Tensor, h: usize, w: usize) -> Result<Tensor> {
    let (b, c, height, width) = xs.dims4()?;
    if height % h != 0 || width % w != 0 {
        bail!("{op}: expected a map of a whole multiple of {h}x{w}, got {height}x{width}")
    }
    if (height, width) == (h, w) {
        return Ok(xs.clone());
    }
    xs.reshape((b * c, h, height / h, w, width / w))?.mean(4)?.mean(2)?.reshape((b, c, h, w))
}

/// Mean over channels of `|x|^power`, up to a factor for each sample: `(B, HW)`, in f64.
fn attention(xs: &Tensor, power: f64) -> Result<Tensor> {
    let xs = rescaled(&xs.flatten_from(1)?)?.reshape(xs.shape())?;
    let strength = if power == 2. { xs.sqr()? } else { magnitude(&xs)?.powf(power)? };
    strength.mean(1)?.flatten_from(1)?.to_dtype(DType::F64)
}
