//! The differentiable operations; one folder each: checks and tape, CPU kernel, slow reference.

mod angle;
mod normed_smooth_l1;
mod pairwise;
mod pointwise;
mod row_loss;
mod softmax_loss;

pub(crate) use angle::angle_loss;
pub use normed_smooth_l1::smooth_l1_layer_norm;
pub(crate) use pairwise::pairwise_distance;
pub(crate) use pointwise::{Pointwise, pointwise};
pub(crate) use row_loss::{RowLoss, row_loss};
pub(crate) use softmax_loss::{Target, softmax_loss};
