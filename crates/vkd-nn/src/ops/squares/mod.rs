//! Sums of squares of many tensors on a CUDA device, in two launches. The CPU's are in `optim`.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod kernel_tests;
#[cfg(any(feature = "cuda", test))]
mod launch;

/// The sum of squares of each of some dense tensors of one dtype on one CUDA device, in f64 and there.
#[cfg(feature = "cuda")]
pub(crate) fn squares(
    tensors: &[&candle_core::Tensor],
) -> candle_core::Result<candle_core::Tensor> {
    match tensors.first() {
        Some(first) => cuda::squares(first.dtype(), tensors),
        None => candle_core::bail!("squares: expected a tensor, got none"),
    }
}
