//! The differentiable operations; one folder each: checks and tape, CPU kernel, slow reference.

mod angle;
mod log_softmax;
mod pairwise;
mod pointwise;
mod row_loss;
mod softmax_loss;

pub(crate) use angle::{Angles, angle_loss};
pub use log_softmax::log_softmax;
pub(crate) use pairwise::pairwise_distance;
pub(crate) use pointwise::{Pointwise, pointwise};
pub(crate) use row_loss::{RowLoss, row_loss};
pub(crate) use softmax_loss::{Target, softmax_loss};
