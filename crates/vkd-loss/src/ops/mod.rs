//! The differentiable operations; one folder each: checks and tape, CPU kernel, slow reference.

mod normed_smooth_l1;
mod pointwise;
mod softmax_loss;

pub use normed_smooth_l1::smooth_l1_layer_norm;
pub(crate) use pointwise::{Pointwise, pointwise};
pub(crate) use softmax_loss::{Target, softmax_loss};
