//! The differentiable operations; one folder each: checks and tape, CPU kernel, slow reference.

pub mod layer_norm;
mod standardize;
mod whiten;

pub use layer_norm::{layer_norm, layer_norm_affine};
pub(crate) use standardize::{Moments, moments};
pub use standardize::{Variance, standardize, standardize_masked, standardize_with};
pub use whiten::whiten_cholesky;
