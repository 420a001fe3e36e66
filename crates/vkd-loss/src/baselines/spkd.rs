//! Similarity-preserving distillation.

use super::tensor::{Pair, divide_rows, magnitude, scaled_gram, unit_rows};
use candle_core::{D, Result, Tensor};

/// What makes a row of the similarities have size one in [`spkd`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowNorm {
    /// Euclidean, as published.
    L2,
    /// Sum of magnitudes, as torchdistill has it.
    L1,
}

/// Similarity-preserving distillation: the inner products of all pairs of samples, compared.
///
/// ```text
/// ‖G_student − G_teacher‖² / B²,   G = X Xᵀ with every row brought to size one
/// ```
///
/// # Shapes
/// - `student`: `(B, ..)`, `teacher`: `(B, ..)`, rank two at least and one entry at least; dimensions after the first are
///   flattened; f32, f64, or a half type, which is computed in f32
/// - output: rank 0
///
/// # Gradient
/// Flows to `student`.
///
/// # Numerics
/// Inner products in the dtype, the rest in f64, of features over their largest magnitude: their size does not matter, in f32
/// from 1e-37 to 1e38. Zero at equality. Features that are rotated, or mapped by a matrix with orthonormal
/// columns, keep their inner products, and with them the loss: V_kD's argument for its projector. A row of zeros,
/// or one at right angles to all larger ones and 1e-12 of their size, counts as zeros, without gradient.
///
/// # Errors
/// Different batches or dtypes, no entries, a tracked teacher (detach it), rank under two, another dtype, or a NaN or
/// infinity in the input.
///
/// # References
/// Tung and Mori, arXiv:1907.09682.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::baselines::{RowNorm, spkd};
/// let student = Tensor::new(&[[3f32, 0.], [0., 3.]], &Device::Cpu)?;
/// let teacher = Tensor::new(&[[0f32, 1., 0.], [0., 0., -1.]], &Device::Cpu)?;
/// assert_eq!(spkd(&student, &teacher, RowNorm::L2)?.to_scalar::<f32>()?, 0.);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn spkd(student: &Tensor, teacher: &Tensor, norm: RowNorm) -> Result<Tensor> {
    let pair = Pair::samples("spkd", student, teacher)?;
    let similar = |xs: &Tensor| {
        let gram = scaled_gram(xs)?;
        match norm {
            RowNorm::L2 => unit_rows(&gram),
            RowNorm::L1 => {
                let sizes = magnitude(&gram)?.sum_keepdim(D::Minus1)?;
                divide_rows(&gram, &sizes, &sizes.ones_like()?.affine(1e-12, 0.)?.detach())
            }
        }
    };
    pair.finish(&(similar(&pair.student)? - similar(&pair.teacher)?)?.sqr()?.mean_all()?)
}
