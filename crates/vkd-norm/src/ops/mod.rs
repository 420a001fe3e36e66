//! The differentiable operations; one folder each: checks and tape, CPU kernel, slow reference.

mod centre;
mod channel_norm;
pub mod flags;
mod layer_norm;
#[doc(hidden)]
pub mod program;
mod rms_norm;
mod softmax;
mod standardize;
mod whiten;

pub use channel_norm::{ChannelStats, batch_norm, batch_norm_with, group_norm};
pub use layer_norm::cpu as layer_norm_rows;
pub use layer_norm::{layer_norm, layer_norm_affine};
pub use rms_norm::rms_norm;
pub use softmax::{log_softmax, log_sum_exp, softmax, softmax_row};
pub(crate) use standardize::{ChannelMoments, channel_moments};
pub use standardize::{
    Variance, standardize, standardize_masked, standardize_synchronised, standardize_with,
};
pub(crate) use whiten::{Centred, Fit, apply, check_config};
pub use whiten::{whiten, whiten_cholesky, whiten_synchronised};
