//! The differentiable operations; one folder each: checks and tape, CPU kernel, slow reference.

mod layer_norm;
mod standardize;
mod whiten;

pub use layer_norm::{layer_norm, layer_norm_affine};
pub(crate) use standardize::{ChannelMoments, channel_moments};
pub use standardize::{Variance, standardize, standardize_masked, standardize_with};
pub(crate) use whiten::{Centred, Fit, apply, check_config};
pub use whiten::{whiten, whiten_cholesky};
