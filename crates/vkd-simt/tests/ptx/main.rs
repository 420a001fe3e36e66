//! PTX written by hand, run and compared with Rust's own arithmetic.

mod bench;
mod control;
mod convert;
mod faults;
mod files;
mod integers;
mod memory;
mod numbers;
mod support;
