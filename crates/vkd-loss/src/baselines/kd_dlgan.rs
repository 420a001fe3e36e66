//! KD-DLGAN: a discriminator learns from CLIP.

use super::tensor::{Pair, unit_rows};
use crate::{Reduction, token_l2};
use candle_core::{DType, Result, Tensor, bail};

/// Mean distance of the teacher's rows to the discriminator's features of the same images, plus that to its features of the
/// other domain: what the published code calls a reversed triplet loss, which attracts to both.
///
/// The whole term is this once with the teacher's features of real images as `teacher` (and `own` real, `other` generated) and once the
/// other way round, each times 10.
///
/// # Shapes
/// - `own`, `other`, `teacher`: `(B, C)`; f32, f64, or a half type, which is computed in f32
/// - output: rank 0
///
/// # Gradient
/// Flows to `own` and `other`; zero where a distance is zero.
///
/// # Errors
/// Those of [`token_l2`].
///
/// # References
/// Cui et al., *KD-DLGAN: Data Limited Image Generation via Knowledge Distillation*, arXiv:2303.17158; its code, `train_fns.py`.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::baselines::kd_dlgan_features;
/// let row = |x: f32, y: f32| Tensor::new(&[[x, y]], &Device::Cpu);
/// let loss = kd_dlgan_features(&row(3., 4.)?, &row(0., 2.)?, &row(0., 0.)?)?;
/// assert_eq!(loss.to_scalar::<f32>()?, 7.);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn kd_dlgan_features(own: &Tensor, other: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    token_l2(own, teacher, Reduction::Mean)? + token_l2(other, teacher, Reduction::Mean)?
}

/// `Σ ‖n(D Tᵀ) − n(C Tᵀ)‖²` with the discriminator's rows D, the teacher's C, those of the class texts T, and `n` which gives a row the
/// length one: how alike the images lie to the texts. Summed over the batch, not averaged, as in the published code.
///
/// Its third term compares the teacher with itself and moves nothing; it is left out.
///
/// # Shapes
/// - `student`, `teacher`: `(B, C)`; `texts`: `(K, C)`; f32, f64, or a half type, which is computed in f32
/// - output: rank 0
///
/// # Gradient
/// Flows to `student`; a row of similarities no longer than 1e-12 counts as zero, without gradient.
///
/// # Errors
/// Other shapes or dtypes, a tracked teacher or text (detach it), or a NaN or infinity in the rows.
///
/// # References
/// As [`kd_dlgan_features`].
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::baselines::kd_dlgan_texts;
/// let texts = Tensor::new(&[[1f32, 0.], [0., 1.]], &Device::Cpu)?;
/// let (student, teacher) = (Tensor::new(&[[5f32, 0.]], &Device::Cpu)?, Tensor::new(&[[0f32, 2.]], &Device::Cpu)?);
/// assert_eq!(kd_dlgan_texts(&student, &teacher, &texts)?.to_scalar::<f32>()?, 2.);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn kd_dlgan_texts(student: &Tensor, teacher: &Tensor, texts: &Tensor) -> Result<Tensor> {
    const OP: &str = "kd_dlgan_texts";
    let width = student.dims().last().copied().unwrap_or(0);
    if texts.rank() != 2 || texts.dim(0)? == 0 || texts.dim(1)? != width {
        bail!("{OP}: expected texts (K, {width}), got {:?}", texts.dims())
    }
    if texts.track_op() {
        bail!("{OP}: expected texts without gradient, got a tracked tensor; detach it")
    }
    let pair = Pair::rows(OP, student, teacher)?;
    let texts = texts.to_dtype(DType::F64)?.t()?;
    let similar = |rows: &Tensor| unit_rows(&rows.matmul(&texts)?);
    pair.finish(&(similar(&pair.student)? - similar(&pair.teacher)?)?.sqr()?.sum_all()?)
}
