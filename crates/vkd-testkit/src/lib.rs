//! Test tools of vkd: tolerances, finite differences, laws, strategies, golden files and CUDA kernels on the host.
//!
//! Invariant: this crate knows candle and proptest and never a vkd crate. What is tested comes in as
//! a closure, so the tools can't share a fault with what they test. Failures are [`Err`] values
//! that carry the place, what was got and what was wanted; tests return them.

mod golden;
mod gradcheck;
mod kernel_host;
mod layouts;
mod linalg;
mod op_case;
mod random;
mod replicas;
mod stiefel;
mod strategies;
mod tolerance;

pub use golden::Golden;
pub use gradcheck::{GradCheck, gradcheck, gradcheck_variables, has_gradient};
pub use kernel_host::{KernelHost, Sanitizer};
pub use layouts::layouts;
pub use linalg::{gram_residual, matmul, solve, transpose};
pub use op_case::OpCase;
pub use random::{normal, normal_scaled, permutation, uniform};
pub use replicas::{Sum, sums_among};
pub use stiefel::{StiefelCases, check_frame, check_stiefel, stiefel_limit};
pub use strategies::{dimension, holds, scale};
pub use tolerance::{Tolerance, assert_close, max_abs_difference, to_f64};
