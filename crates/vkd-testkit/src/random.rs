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

/// A seeded order of `0..n`, as U32 indices.
pub fn permutation(n: usize, seed: u64) -> Result<Tensor> {
    let keys = normal(&[n], DType::F64, seed)?.to_vec1::<f64>()?;
    let mut order: Vec<u32> = (0..n as u32).collect();
    order.sort_by(|&a, &b| keys[a as usize].total_cmp(&keys[b as usize]));
    Tensor::new(order, &Device::Cpu)
}

fn draw(dims: &[usize], dtype: DType, mut next: impl FnMut() -> f64) -> Result<Tensor> {
    let values: Vec<f64> = (0..dims.iter().product()).map(|_| next()).collect();
    Tensor::from_vec(values, dims, &Device::Cpu)?.to_dtype(dtype)
}
