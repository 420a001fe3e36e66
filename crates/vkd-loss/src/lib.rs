//! Distillation losses on candle, differentiable and in (student, teacher) order.
//!
//! V_kD (arXiv:2403.06213) trains with three terms: cross entropy with the labels, the divergence of the class
//! distributions, and distance between projected student features and normalised teacher features. This crate holds them
//! as pure functions, with a [`Reduction`] that is always written out; [`weighted_sum`] adds named terms, and
//! [`smooth_l1_layer_norm`] normalises the teacher on the way. Detectors have [`sigmoid_focal`], [`l1`], [`giou`] and [`boxes`], discriminators
//! [`hinge_real`], [`hinge_generated`] and [`lecam`]. [`baselines`] holds the losses
//! that a paper compares with, and [`geometry`] the numbers that a report gives about features.
//!
//! Invariants: the student comes first and alone receives a gradient; a teacher that candle tracks is an error where
//! candle can tell (a variable, or computed from one), so detach it. f16 and bf16 are computed in f32, with the cast on
//! the tape, and give an f32 loss. Input that makes no sense is an error with row and value. So is a NaN or infinity in an
//! input, by the tensor's name, where it shows without a pass of its own: in a loss that is one number on the CPU. Single
//! entries ([`Reduction::None`]) and losses on devices carry it on, and so does a loss that overflows from finite input.
//! The losses of this page are one fused pass in each direction on the CPU, and plain tensor ops elsewhere, where labels and
//! probabilities are not checked; the baselines are tensor ops around them. Second derivatives are out of scope: candle
//! detaches incoming gradients.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use vkd_loss::{Reduction::Mean, cross_entropy, kl, smooth_l1};
//!
//! let logits = Var::new(&[[1f32, -1.], [0., 2.]], &Device::Cpu)?;
//! let features = Var::new(&[[0.1f32, 0.2, 0.3], [0.4, 0.5, 0.6]], &Device::Cpu)?;
//! let teacher_logits = Tensor::new(&[[2f32, -2.], [1., 1.]], &Device::Cpu)?;
//! let teacher_features = features.detach().neg()?;
//! let labels = Tensor::new(&[0u32, 1], &Device::Cpu)?;
//!
//! let task = cross_entropy(&logits, &labels, 0.1, Mean)?;
//! let soft = kl(&logits, &teacher_logits, 1., Mean)?;
//! let feature = smooth_l1(&features, &teacher_features, 1., Mean)?;
//! let grads = ((task + soft)? + feature)?.backward()?;
//! assert!(grads.get(&logits).is_some() && grads.get(&features).is_some());
//! # Ok::<(), candle_core::Error>(())
//! ```

mod adversarial;
pub mod baselines;
mod bce;
pub mod boxes;
mod checks;
mod cosine;
mod cross_entropy;
mod dense;
mod focal;
pub mod geometry;
mod giou;
mod kl;
mod l1;
mod mse;
mod ops;
mod reduction;
mod smooth_l1;
mod token_l2;
mod weighted_sum;

pub use adversarial::{hinge_generated, hinge_generator, hinge_real, lecam, lecam_at};
pub use bce::bce_with_logits;
pub use cosine::cosine;
pub use cross_entropy::{cross_entropy, soft_cross_entropy};
pub use focal::{FocalConfig, sigmoid_focal};
pub use giou::giou;
pub use kl::kl;
pub use l1::l1;
pub use mse::mse;
pub use ops::smooth_l1_layer_norm;
pub use reduction::Reduction;
pub use smooth_l1::smooth_l1;
pub use token_l2::token_l2;
pub use vkd_norm::log_softmax;
pub use weighted_sum::{Term, weighted_sum};
