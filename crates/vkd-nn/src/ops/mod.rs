//! The ops that the layers are built from, each with an analytic gradient.
//!
//! Every op is a folder: `mod.rs` checks and records, `cpu.rs` computes on slices, `reference.rs` is the slow
//! twin of plain tensor ops that the tests compare with.
//!
//! Off the CPU an op launches its kernel where it has one (see `docs/cuda.md`), and is made of plain tensor ops, or of the
//! ops that it consists of, where it has none.
//!
//! The kernels take f32 and f64 on the CPU. bf16 and f16 are computed in f32: every operand is copied once, at four bytes a value, what
//! an op keeps for its backward pass is f32 too, and the result is rounded once. The tape records both casts, so a gradient
//! is summed in f32 inside an op and has the dtype of its input. A model in a half type halves the memory of its
//! variables, and takes longer than in f32.

pub(crate) mod activation;
pub(crate) mod adamw;
pub(crate) mod attention;
pub(crate) mod blend;
mod conv2d;
mod conv_transpose2d;
mod deformable_attention;
pub(crate) mod gemm;
pub(crate) mod linear;
mod modulate;
mod pixel_shuffle;
mod pool2d;
mod real;
mod shared_stats;
pub(crate) mod squares;
pub(crate) mod sublayer;
mod upsample2d;
mod window;

pub use activation::{Activation, gelu, gelu_tanh, relu, relu6, silu};
pub use attention::{cross_attention, multi_head_attention};
pub use conv_transpose2d::{ConvTranspose2dConfig, conv_transpose2d};
pub use conv2d::{Conv2dConfig, conv2d, conv2d_relu};
pub use deformable_attention::deformable_attention;
pub use linear::linear;
pub use modulate::{modulate, modulate_relu};
pub use pixel_shuffle::{pixel_shuffle, pixel_unshuffle};
pub use pool2d::{Pool2dConfig, avg_pool2d, global_avg_pool2d, max_pool2d};
pub use shared_stats::{shared_gradient, shared_statistics, shared_sums};
pub use sublayer::{Body, sublayer};
pub use upsample2d::{upsample_bilinear2d, upsample_nearest2d};

mod gather_rows;
mod keep;
pub use gather_rows::gather_rows;
pub(crate) use keep::keep;

/// The slow twins, for tests and for reading; same names, same results to rounding.
pub mod reference {
    pub use super::activation::reference::{activate, gelu, gelu_tanh, relu, relu6, silu};
    pub use super::attention::reference::{cross_attention, multi_head_attention};
    pub use super::conv_transpose2d::reference::conv_transpose2d;
    pub use super::conv2d::reference::conv2d;
    pub use super::deformable_attention::reference::deformable_attention;
    pub use super::linear::reference::linear;
    pub use super::modulate::reference::modulate;
    pub use super::pool2d::reference::{avg_pool2d, max_pool2d};
    pub use super::sublayer::reference::sublayer;
    pub use super::upsample2d::reference::{upsample_bilinear2d, upsample_nearest2d};

    pub use super::gather_rows::reference::gather_rows;
    #[cfg(test)]
    pub(crate) use super::keep::reference::keep;
}

use candle_core::{CpuStorage, DType, Error, Layout, Result, Tensor, WithDType, bail};
use rayon::prelude::*;

pub(crate) use real::Real;

/// The values behind a contiguous layout, which may still start at an offset.
pub(crate) fn dense<'a, T: WithDType>(
    op: &'static str,
    s: &'a CpuStorage,
    l: &Layout,
) -> Result<&'a [T]> {
    let (start, end) =
        l.contiguous_offsets().ok_or_else(|| Error::RequiresContiguous { op }.bt())?;
    Ok(&T::cpu_storage_as_slice(s)?[start..end])
}

/// What values of a dtype are computed in: half types in f32.
pub(crate) fn native_dtype(dtype: DType) -> DType {
    if matches!(dtype, DType::F16 | DType::BF16) { DType::F32 } else { dtype }
}

/// `f` of the input, in f32 where it is a half type and cast back; the tape records both casts.
pub(crate) fn in_native(xs: &Tensor, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    // A cast to the dtype that is there already is none.
    f(&xs.to_dtype(native_dtype(xs.dtype()))?)?.to_dtype(xs.dtype())
}

/// Another operand of an op beside its input as [`in_native`] handed it out.
pub(crate) fn native(operand: &Tensor, xs: &Tensor) -> Result<Tensor> {
    operand.to_dtype(xs.dtype())?.contiguous()
}

/// Refuses operands of another dtype than the input's; a half type beside f32 would else be cast without a word.
pub(crate) fn same_dtype(op: &str, xs: &Tensor, others: &[(&str, Option<&Tensor>)]) -> Result<()> {
    for (name, other) in others {
        if let Some(other) = other
            && other.dtype() != xs.dtype()
        {
            bail!("{op}: expected {name} of dtype {:?}, got {:?}", xs.dtype(), other.dtype())
        }
    }
    Ok(())
}

pub(crate) fn unsupported(op: &'static str, s: &CpuStorage) -> Error {
    use candle_core::backend::BackendStorage;
    Error::UnsupportedDTypeForOp(s.dtype(), op).bt()
}

/// From this many values on a pass is spread over the threads; below, waking them costs more than it saves.
pub(crate) const PARALLEL_FROM: usize = 1 << 16;

/// Runs `work(index, chunk)` on consecutive chunks of `out`, in parallel when `out` is large. Chunks are independent, so
/// the result does not depend on the number of threads.
pub(crate) fn for_chunks<T: Send>(
    out: &mut [T],
    chunk: usize,
    work: impl Fn(usize, &mut [T]) + Send + Sync,
) {
    if chunk == 0 {
        return;
    }
    if out.len() >= PARALLEL_FROM && rayon::current_num_threads() > 1 {
        out.par_chunks_mut(chunk).enumerate().for_each(|(i, c)| work(i, c));
    } else {
        out.chunks_mut(chunk).enumerate().for_each(|(i, c)| work(i, c));
    }
}

/// Runs `work(a, b)` on chunks of two slices of one length, in parallel when they are large.
pub(crate) fn for_chunks2<T: Send>(
    a: &mut [T],
    b: &mut [T],
    chunk: usize,
    work: impl Fn(&mut [T], &mut [T]) + Send + Sync,
) {
    if a.len() >= PARALLEL_FROM && rayon::current_num_threads() > 1 {
        let chunks = a.par_chunks_mut(chunk).zip(b.par_chunks_mut(chunk));
        chunks.for_each(|(a, b)| work(a, b));
    } else {
        a.chunks_mut(chunk).zip(b.chunks_mut(chunk)).for_each(|(a, b)| work(a, b));
    }
}

/// `$body`, a `Vec<$t>`, as storage of the dtype of `$s`.
macro_rules! with_dtype {
    ($name:expr, $s:expr, $t:ident => $body:expr) => {
        match $s {
            candle_core::CpuStorage::F32(_) => {
                type $t = f32;
                <f32 as candle_core::WithDType>::to_cpu_storage_owned($body)
            }
            candle_core::CpuStorage::F64(_) => {
                type $t = f64;
                <f64 as candle_core::WithDType>::to_cpu_storage_owned($body)
            }
            _ => return Err(crate::ops::unsupported($name, $s)),
        }
    };
}
pub(crate) use with_dtype;
