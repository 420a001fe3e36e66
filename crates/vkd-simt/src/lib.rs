//! A driver of CUDA that runs kernels on the CPU. Loaded in place of `libcuda`, `libcublas` and `libcurand`, it lets a program that was
//! built for a GPU run whole where there is none: the PTX that nvcc made is interpreted, products are made on the CPU, and every access
//! of memory is checked. It is slow, and says nothing of time; it is for tests.

mod blas;
mod driver;
mod fault;
mod memory;
mod ptx;

pub use fault::Fault;
pub use memory::{Memory, Usage};
pub use ptx::{Kernel, Launch, Module};
