//! From tensors to dense slices and back: the only place where kernels meet storage.
//!
//! Public for vkd-loss and vkd-nn, which share it; no part of the stable interface.

use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, WithDType, bail};

/// Element types of the CPU kernels.
pub trait Real: WithDType + Send + Sync {
    /// The smallest normal number.
    const MIN_POSITIVE: f64;
    /// Distance of 1 to the next number.
    const EPSILON: f64;
    /// The same number.
    fn wide(self) -> f64;
    /// The nearest number of the type.
    fn narrow(value: f64) -> Self;
}

impl Real for f32 {
    const MIN_POSITIVE: f64 = f32::MIN_POSITIVE as f64;
    const EPSILON: f64 = f32::EPSILON as f64;

    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }

    #[inline(always)]
    fn narrow(value: f64) -> Self {
        value as f32
    }
}

impl Real for f64 {
    const MIN_POSITIVE: f64 = f64::MIN_POSITIVE;
    const EPSILON: f64 = f64::EPSILON;

    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }

    #[inline(always)]
    fn narrow(value: f64) -> Self {
        value
    }
}

/// The values behind a contiguous layout, which may start at an offset.
pub fn dense<'a, T: WithDType>(
    op: &'static str,
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<T>()?[start..end]),
        None => bail!("{op}: expected a contiguous layout, got {layout:?}"),
    }
}

/// Applies `f` to f32 or f64; half types go there and back, and both casts are recorded.
pub(crate) fn in_native(xs: &Tensor, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    match xs.dtype() {
        half @ (DType::F16 | DType::BF16) => f(&xs.to_dtype(DType::F32)?)?.to_dtype(half),
        _ => f(xs),
    }
}

/// Hands `f` the CPU storage and layout of a tensor; used by backward passes, which see tensors.
pub fn with_storage<R>(
    op: &'static str,
    tensor: &Tensor,
    f: impl FnOnce(&CpuStorage, &Layout) -> Result<R>,
) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(storage, layout),
        other => bail!("{op}: expected a CPU tensor, got one on {:?}", other.device()),
    }
}

/// Hands `f` the values of contiguous CPU tensors.
pub fn with_slices<T: WithDType, R, const N: usize>(
    op: &'static str,
    tensors: [&Tensor; N],
    f: impl FnOnce([&[T]; N]) -> Result<R>,
) -> Result<R> {
    let guards = tensors.map(Tensor::storage_and_layout);
    let mut slices = [&[] as &[T]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        match &**storage {
            Storage::Cpu(storage) => *slice = dense(op, storage, layout)?,
            other => bail!("{op}: expected a CPU tensor, got one on {:?}", other.device()),
        }
    }
    f(slices)
}
