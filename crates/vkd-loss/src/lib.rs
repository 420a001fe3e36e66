//! Distillation losses on candle, differentiable and in (student, teacher) order.
//!
//! V_kD (arXiv:2403.06213) trains with three terms: cross entropy with the labels, the divergence of the class
//! distributions, and smooth-L1 between projected student features and normalised teacher features. This crate holds
//! them as pure functions that return a rank-0 tensor.
//!
//! Invariants: the student comes first and alone receives a gradient; a teacher that candle tracks is an error where
//! candle can tell (a variable, or computed from one), so detach it; input that makes no sense is an error with row
//! and value, while NaN and infinity in features and logits propagate to the loss, where a trainer sees them. Each loss is one
//! fused pass in each direction on the CPU, and plain tensor ops elsewhere, where labels and probabilities are not
//! checked. Second derivatives are out of scope: candle detaches incoming gradients.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use vkd_loss::{cross_entropy, kl, smooth_l1};
//!
//! let logits = Var::new(&[[1f32, -1.], [0., 2.]], &Device::Cpu)?;
//! let features = Var::new(&[[0.1f32, 0.2, 0.3], [0.4, 0.5, 0.6]], &Device::Cpu)?;
//! let teacher_logits = Tensor::new(&[[2f32, -2.], [1., 1.]], &Device::Cpu)?;
//! let teacher_features = features.detach().neg()?;
//! let labels = Tensor::new(&[0u32, 1], &Device::Cpu)?;
//!
//! let task = cross_entropy(&logits, &labels, 0.1)?;
//! let soft = kl(&logits, &teacher_logits, 1.)?;
//! let feature = smooth_l1(&features, &teacher_features, 1.)?;
//! let grads = ((task + soft)? + feature)?.backward()?;
//! assert!(grads.get(&logits).is_some() && grads.get(&features).is_some());
//! # Ok::<(), candle_core::Error>(())
//! ```

mod cross_entropy;
mod dense;
mod kl;
mod mse;
mod ops;
mod smooth_l1;

pub use cross_entropy::{cross_entropy, soft_cross_entropy};
pub use kl::kl;
pub use mse::mse;
pub use ops::smooth_l1_layer_norm;
pub use smooth_l1::smooth_l1;
pub use vkd_norm::log_softmax;
