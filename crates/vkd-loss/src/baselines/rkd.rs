//! Relational knowledge distillation.

use super::tensor::Pair;
use crate::Reduction;
use crate::ops::{Pointwise, angle_loss, pairwise_distance, pointwise};
use candle_core::{Result, Tensor};

/// The paper's Huber loss.
const HUBER: Pointwise = Pointwise::SmoothL1 { beta: 1. };

/// Relational distillation by distance: smooth-L1 (beta 1) between the two matrices of distances of all pairs of samples, each
/// divided by the mean of its positive entries.
///
/// [`Reduction::Sum`] is the paper's (a sample with itself adds nothing); [`Reduction::Mean`], over all `B²` entries, the
/// published code's; [`Reduction::BatchMean`] divides the sum by `B`; [`Reduction::None`] gives the `(B, B)` entries.
///
/// # Shapes
/// - `student`: `(B, C)`, `teacher`: `(B, C')`, at least one entry; f32, f64, or a half type, which is computed in f32
/// - output: rank 0, or `(B, B)` with [`Reduction::None`]
///
/// # Gradient
/// Flows to `student`; two samples that coincide pull in no direction.
///
/// # Numerics
/// In f64, from the differences. Zero at equality. Translation, rotation and scale of the features change nothing, however
/// small or close together they are; the published code, which has inner products in f32, takes squared distances under
/// 1e-12 for 1e-12. Where all samples coincide all entries are zero.
///
/// # Errors
/// Different batches or dtypes, no entries, a tracked teacher (detach it), a shape other than `(B, C)`, another
/// dtype, or a NaN or infinity in the input.
///
/// # References
/// Park et al., arXiv:1904.05068, section 3.2.1.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::{Reduction, baselines::rkd_distance};
/// let student = Tensor::new(&[[0f64, 0.], [3., 4.], [6., 8.]], &Device::Cpu)?;
/// let teacher = Tensor::new(&[[1f64], [2.], [3.]], &Device::Cpu)?;
/// assert!(rkd_distance(&student, &teacher, Reduction::Mean)?.to_scalar::<f64>()? < 1e-15);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn rkd_distance(student: &Tensor, teacher: &Tensor, reduction: Reduction) -> Result<Tensor> {
    let pair = Pair::rows("rkd_distance", student, teacher)?;
    let relations = |xs: &Tensor| {
        let distances = pairwise_distance(xs)?;
        let count = distances.detach().gt(0.)?.to_dtype(distances.dtype())?.sum_all()?;
        let count = count.maximum(1.)?;
        let mean = (distances.sum_all()? / count)?;
        // Without a positive distance there is nothing to divide.
        let none = mean.le(0.)?;
        distances.broadcast_div(&none.where_cond(&mean.ones_like()?, &mean)?)
    };
    let (student, teacher) = (relations(&pair.student)?, relations(&pair.teacher)?);
    pair.finish(&pointwise(HUBER, &student, &teacher, reduction)?)
}

/// Relational distillation by angle: smooth-L1 (beta 1) between the cosines of the angles that all triples of samples form.
///
/// With `e_ij` the unit vector from sample i to sample j, entry (i, j, k) compares `⟨e_ij, e_ik⟩`. Entries with equal indices
/// add nothing. [`Reduction::Sum`] is the paper's, [`Reduction::Mean`], over all `B³` entries, the published code's.
///
/// # Shapes
/// - `student`: `(B, C)`, `teacher`: `(B, C')`, at least one entry; f32, f64, or a half type, which is computed in f32
/// - output: rank 0, or `(B, B, B)` with [`Reduction::None`]
///
/// # Gradient
/// Flows to `student`; two samples that coincide pull in no direction.
///
/// # Numerics
/// In f64, on the CPU a row of triples at a time, so that memory grows with `B²`; elsewhere with `B³`. Zero at equality.
/// Translation, rotation and scale change nothing. Cosines come from the three distances, each from the differences: the
/// one at i of a far sample k and of j next to i is off by about `1e-16 · d_ik / d_ij`, all others by 1e-16.
///
/// # Errors
/// As [`rkd_distance`].
///
/// # References
/// Park et al., arXiv:1904.05068, section 3.2.2.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::{Reduction, baselines::rkd_angle};
/// let student = Tensor::new(&[[0f64, 0.], [1., 0.], [0., 1.]], &Device::Cpu)?;
/// let teacher = student.affine(7., 1.)?;
/// assert!(rkd_angle(&student, &teacher, Reduction::Mean)?.to_scalar::<f64>()? < 1e-15);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn rkd_angle(student: &Tensor, teacher: &Tensor, reduction: Reduction) -> Result<Tensor> {
    let pair = Pair::rows("rkd_angle", student, teacher)?;
    let (student, teacher) = (pairwise_distance(&pair.student)?, pairwise_distance(&pair.teacher)?);
    pair.finish(&angle_loss(&student, &teacher, reduction)?)
}
