//! Seeded inputs: candle's CPU generator can't be seeded, so tests draw here.

use candle_core::{DType, Device, Result, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// Standard normal values on the CPU, the same for the same shape and seed.
pub fn normal(dims: &[usize], dtype: DType, seed: u64) -> Result<Tensor> {
    normal_scaled(dims, dtype, seed, 1.)
}

/// Normal values with standard deviation `scale`.
pub fn normal_scaled(dims: &[usize], dtype: DType, seed: u64, scale: f64) -> Result<Tensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    draw(dims, dtype, || scale * rng.sample::<f64, _>(StandardNormal))
}

/// Uniform values in `[low, high)`.
pub fn uniform(dims: &[usize], dtype: DType, seed: u64, low: f64, high: f64) -> Result<Tensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    draw(dims, dtype, || rng.random_range(low..high))
}

fn draw(dims: &[usize], dtype: DType, mut next: impl FnMut() -> f64) -> Result<Tensor> {
    let values: Vec<f64> = (0..dims.iter().product()).map(|_| next()).collect();
    Tensor::from_vec(values, dims, &Device::Cpu)?.to_dtype(dtype)
}
