//! The ops that the layers are built from, each with an analytic gradient.
//!
//! Every op is a folder: `mod.rs` checks and records, `cpu.rs` computes on slices, `reference.rs` is the slow
//! twin of plain tensor ops that the tests compare with. f32 and f64 on the CPU.

mod add_bias;
mod attention;
mod conv2d;
mod conv_transpose2d;
mod gelu;
pub(crate) mod gemm;
mod pixel_shuffle;
mod pool2d;
mod real;
mod relu;
mod upsample2d;
mod window;

pub use add_bias::add_bias;
pub use attention::multi_head_attention;
pub use conv_transpose2d::{ConvTranspose2dConfig, conv_transpose2d};
pub use conv2d::{Conv2dConfig, conv2d, conv2d_relu};
pub use gelu::gelu;
pub use pixel_shuffle::{pixel_shuffle, pixel_unshuffle};
pub use pool2d::{Pool2dConfig, avg_pool2d, global_avg_pool2d, max_pool2d};
pub use relu::relu;
pub use upsample2d::{upsample_bilinear2d, upsample_nearest2d};

/// The slow twins, for tests and for reading; same names, same results to rounding.
pub mod reference {
    pub use super::add_bias::reference::add_bias;
    pub use super::attention::reference::multi_head_attention;
    pub use super::conv_transpose2d::reference::conv_transpose2d;
    pub use super::conv2d::reference::conv2d;
    pub use super::gelu::reference::gelu;
    pub use super::pool2d::reference::{avg_pool2d, max_pool2d};
    pub use super::relu::reference::relu;
    pub use super::upsample2d::reference::{upsample_bilinear2d, upsample_nearest2d};
}

use candle_core::{CpuStorage, Error, Layout, Result, WithDType};
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

/// `out[i] = f(a[i])`.
pub(crate) fn map1<T: Real>(a: &[T], f: impl Fn(T) -> T + Send + Sync) -> Vec<T> {
    const CHUNK: usize = 1 << 14;
    let mut out = vec![T::zero(); a.len()];
    for_chunks(&mut out, CHUNK, |i, out| {
        for (o, a) in out.iter_mut().zip(&a[i * CHUNK..]) {
            *o = f(*a);
        }
    });
    out
}

/// `out[i] = f(a[i], b[i])`.
pub(crate) fn map2<T: Real>(a: &[T], b: &[T], f: impl Fn(T, T) -> T + Send + Sync) -> Vec<T> {
    const CHUNK: usize = 1 << 14;
    let mut out = vec![T::zero(); a.len()];
    for_chunks(&mut out, CHUNK, |i, out| {
        for ((o, a), b) in out.iter_mut().zip(&a[i * CHUNK..]).zip(&b[i * CHUNK..]) {
            *o = f(*a, *b);
        }
    });
    out
}

/// The two custom ops of an elementwise function: the forward op, whose backward applies `$backward(x, upstream)`.
macro_rules! elementwise {
    ($name:literal, $forward:path, $backward:path) => {
        struct Forward;
        struct Backward;

        impl candle_core::CustomOp1 for Forward {
            fn name(&self) -> &'static str {
                $name
            }

            fn cpu_fwd(
                &self,
                s: &candle_core::CpuStorage,
                l: &candle_core::Layout,
            ) -> candle_core::Result<(candle_core::CpuStorage, candle_core::Shape)> {
                use candle_core::{CpuStorage, WithDType};
                let out = match s {
                    CpuStorage::F32(_) => f32::to_cpu_storage_owned(crate::ops::map1(
                        crate::ops::dense::<f32>($name, s, l)?,
                        $forward,
                    )),
                    CpuStorage::F64(_) => f64::to_cpu_storage_owned(crate::ops::map1(
                        crate::ops::dense::<f64>($name, s, l)?,
                        $forward,
                    )),
                    _ => return Err(crate::ops::unsupported($name, s)),
                };
                Ok((out, l.shape().clone()))
            }

            fn bwd(
                &self,
                arg: &candle_core::Tensor,
                _res: &candle_core::Tensor,
                grad: &candle_core::Tensor,
            ) -> candle_core::Result<Option<candle_core::Tensor>> {
                Ok(Some(arg.contiguous()?.apply_op2_no_bwd(&grad.contiguous()?, &Backward)?))
            }
        }

        impl candle_core::CustomOp2 for Backward {
            fn name(&self) -> &'static str {
                concat!($name, "-bwd")
            }

            fn cpu_fwd(
                &self,
                s1: &candle_core::CpuStorage,
                l1: &candle_core::Layout,
                s2: &candle_core::CpuStorage,
                l2: &candle_core::Layout,
            ) -> candle_core::Result<(candle_core::CpuStorage, candle_core::Shape)> {
                use candle_core::{CpuStorage, WithDType};
                let out = match s1 {
                    CpuStorage::F32(_) => f32::to_cpu_storage_owned(crate::ops::map2(
                        crate::ops::dense::<f32>($name, s1, l1)?,
                        crate::ops::dense::<f32>($name, s2, l2)?,
                        $backward,
                    )),
                    CpuStorage::F64(_) => f64::to_cpu_storage_owned(crate::ops::map2(
                        crate::ops::dense::<f64>($name, s1, l1)?,
                        crate::ops::dense::<f64>($name, s2, l2)?,
                        $backward,
                    )),
                    _ => return Err(crate::ops::unsupported($name, s1)),
                };
                Ok((out, l1.shape().clone()))
            }
        }
    };
}
pub(crate) use elementwise;

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
