//! The losses that a distillation paper compares with, each from its publication's formula.
//!
//! Every function takes `(student, teacher)`, refuses a teacher that carries a gradient, and returns one number unless a
//! [`Reduction`](crate::Reduction) says otherwise. Where the code that people compare with departs from the paper, both are
//! offered and [`Form`] chooses. Losses on logits and on rows of features compute in f64 and return the input's dtype (f32
//! for half types); losses on maps reduce the map in the dtype and go on in f64. A NaN or infinity in the input is an
//! error that names the tensor, where the loss is one number on the CPU. Outer weights are the caller's:
//! [`weighted_sum`](crate::weighted_sum).
//!
//! CRD (arXiv:1910.10699) is left out: its memory bank of negatives is state, which a pure function can't hold, and without
//! the bank it is another loss.

mod attention;
mod cckd;
mod deit;
mod dist;
mod dkd;
mod fitnets;
mod hinton;
mod kd_dlgan;
mod logit_standardization;
mod pkt;
mod rkd;
mod spkd;
mod tensor;
mod vid;

pub use attention::attention_transfer;
pub use cckd::{CckdConfig, CckdKernel, cckd};
pub use deit::{deit_hard, deit_soft};
pub use dist::{DistConfig, dist};
pub use dkd::{DkdConfig, DkdParts, dkd, dkd_parts};
pub use fitnets::fitnets;
pub use hinton::hinton;
pub use kd_dlgan::{kd_dlgan_features, kd_dlgan_texts};
pub use logit_standardization::logit_standardization;
pub use pkt::pkt;
pub use rkd::{rkd_angle, rkd_distance};
pub use spkd::{RowNorm, spkd};
pub use vid::vid;

/// Which of two definitions, where a paper and the code that people compare with differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As the publication writes it.
    Paper,
    /// As the code does it that the function names.
    Code,
}
