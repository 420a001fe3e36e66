//! The C functions of the driver, of cuBLAS and of cuRAND that a program on candle calls. All work is done in the caller's thread before the
//! call returns, so a stream is a handle and no more.

mod context;
mod counts;
mod cublas;
mod curand;
mod error;
mod launch;
mod memory;
mod module;
mod state;
mod stream;
