//! Feature normalisers for distillation on candle: layer norm, per-channel standardise and whitening.
//!
//! V_kD (arXiv:2403.06213) compares a student with teacher features that have been normalised: over the channels of
//! each sample in classification, over the batch in detection, whitened in generation. This crate holds the three, each
//! as a free function and as a variant of [`Normalizer`]; what layers that train normalise by, [`layer_norm_affine`],
//! [`batch_norm`], [`group_norm`], [`rms_norm`] and [`softmax`]; and what a detector's tokens need:
//! [`standardize_masked`] leaves out padding, [`RunningStats`] and [`standardize_with`] serve evaluation.
//!
//! [`whiten`] takes its covariance from the batch; [`Moments`] gathers one over a data set, over workers or as a running
//! estimate, and a [`Whitener`] made of it whitens with [`whiten_with`].
//!
//! Where replicas share a batch, [`standardize_synchronised`] and [`whiten_synchronised`] take the statistics of all their rows;
//! a [`Context`] with [`Replicas`] makes a [`Normalizer`] do so.
//!
//! Invariants: every function is differentiable and never cuts candle's tape; statistics are taken
//! relative to a value near the mean; a result is the same bit for bit with any number of threads; whitening a finite batch
//! never gives NaN, whatever its rank. Second derivatives are out of scope: candle detaches incoming
//! gradients. f32 and f64, and half types through f32; on a device without a kernel, plain tensor ops are used.
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
mod checks;
mod context;
#[doc(hidden)]
pub mod dense;
#[doc(hidden)]
pub mod lanes;
mod moments;
mod normalizer;
mod ops;
mod replicas;
#[doc(hidden)]
pub mod row_stats;
mod running;
mod whiten;

pub use context::{Context, stream};
pub use moments::Moments;
pub use normalizer::Normalizer;
pub use ops::flags;
/// Layer norm on slices, for the fused sub-layer of vkd-nn; no part of the stable interface.
#[doc(hidden)]
pub use ops::layer_norm_rows;
/// Launches on a device as data, for the ops of vkd-loss and vkd-nn; no part of the stable interface.
#[doc(hidden)]
pub use ops::program;
pub use ops::{
    ChannelStats, Variance, batch_norm, batch_norm_with, group_norm, layer_norm, layer_norm_affine,
    log_softmax, rms_norm, softmax, standardize, standardize_masked, standardize_synchronised,
    standardize_with, whiten, whiten_cholesky, whiten_synchronised,
};
#[doc(hidden)]
pub use ops::{log_sum_exp, softmax_row};
pub use replicas::{Replicas, SumOverReplicas};
pub use running::RunningStats;
pub use whiten::{Deficient, Shrinkage, WhitenConfig, WhitenMethod, Whitener, whiten_with};
