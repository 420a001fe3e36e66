//! `a = keep·a + take·b` of many tensors on a CUDA device, in place and in one launch. The CPU's is in `optim`.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod kernel_tests;
#[cfg(any(feature = "cuda", test))]
mod launch;

use candle_core::Tensor;

/// What is written and what is taken in, of one shape, with the factors of both.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) to: Tensor,
    pub(crate) from: Tensor,
    pub(crate) keep: f64,
    pub(crate) take: f64,
}

/// Blends pairs of dense tensors on one CUDA device, of which all that is taken in is of one dtype and all that is written of the one that
/// it is computed in. What is written may not stand twice.
#[cfg(feature = "cuda")]
pub(crate) fn blend_in_place(pairs: &[&Pair]) -> candle_core::Result<()> {
    match pairs.first() {
        Some(first) => cuda::blend(first.from.dtype(), pairs),
        None => Ok(()),
    }
}
