//! Feature normalisers for distillation on candle: layer norm, per-channel standardise and whitening.
//!
//! V_kD (arXiv:2403.06213) compares a student with teacher features that have been normalised: over the channels of
//! each sample in classification, over the batch in detection, whitened in generation. This crate holds the three, each
//! as a free function and as a variant of [`Normalizer`], and [`layer_norm_affine`] for layers that train.
//!
//! Invariants: every function is differentiable and never cuts candle's tape; statistics take two
//! passes; a result is the same bit for bit with any number of threads; a covariance that can't be
//! factored is an error, never NaN. Second derivatives are out of scope: candle detaches incoming
//! gradients. f32 and f64; on a device without a kernel, plain tensor ops are used.
//!
//! ```
//! use candle_core::{DType, Device, Tensor, Var};
//! use vkd_norm::{layer_norm, standardize, whiten_cholesky};
//!
//! let features = Var::new(&[[1f64, 2.], [3., 1.], [0., 4.], [2., 2.]], &Device::Cpu)?;
//! for normed in [layer_norm(&features, 1e-5)?, standardize(&features, 1e-6)?, whiten_cholesky(&features, 1e-4)?] {
//!     assert_eq!((normed.dims(), normed.dtype()), (&[4, 2][..], DType::F64));
//!     let grads = normed.sqr()?.sum_all()?.backward()?;
//!     assert!(grads.get(&features).is_some());
//! }
//! # Ok::<(), candle_core::Error>(())
//! ```

#[doc(hidden)]
pub mod blocks;
mod context;
#[doc(hidden)]
pub mod dense;
#[doc(hidden)]
pub mod lanes;
mod normalizer;
mod ops;
#[doc(hidden)]
pub mod row_stats;
mod running;

pub use context::{Context, stream};
pub use normalizer::Normalizer;
/// Layer norm on slices, for the fused sub-layer of vkd-nn; no part of the stable interface.
#[doc(hidden)]
pub use ops::layer_norm::cpu as layer_norm_rows;
pub use ops::{
    Variance, layer_norm, layer_norm_affine, standardize, standardize_masked, standardize_with,
    whiten_cholesky,
};
pub use running::RunningStats;
