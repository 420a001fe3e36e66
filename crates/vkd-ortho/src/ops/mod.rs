//! One folder per op: `mod.rs` (checks, tape), `cpu.rs` (the arithmetic), `reference.rs` (the slow twin). `launch.rs`: the
//! steps on a CUDA device. `device.rs`: the maps on others.

mod base_product;
mod cayley;
mod common;
mod device;
mod householder;
#[cfg(test)]
mod kernel_tests;
#[cfg(any(feature = "cuda", test))]
mod kernels;
mod matrix_exp;

#[cfg(feature = "cuda")]
pub(crate) use base_product::cuda::renewed;
#[cfg(any(feature = "cuda", test))]
pub(crate) use base_product::launch::renewal;
pub(crate) use base_product::{base_product, cpu::Wy};
pub use cayley::cayley;
pub use householder::householder_product;
pub use matrix_exp::matrix_exp;

/// Slow differentiable twins of the three maps, from plain tensor operations.
///
/// They share no formula with the fast versions: reflectors one at a time, and `n x n` matrices for the other two.
/// They are the oracle of this crate's tests, and readable definitions. Shapes and values are those of the fast functions;
/// finite values of moderate size are taken for granted.
pub mod reference {
    pub use super::cayley::reference::cayley;
    pub use super::householder::reference::householder_product;
    pub use super::matrix_exp::reference::matrix_exp;
}
