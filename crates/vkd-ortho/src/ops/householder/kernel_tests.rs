//! The kernels of the product of reflectors on the host, against the CPU op.

use super::{householder_product, launch};
use crate::ops::kernel_tests::{Host, Pair, frame, host, stays};
use candle_core::{DType, Result, Tensor};
use vkd_testkit::{Sanitizer, normal_scaled};

/// A core that is small against the rest, one that is not, and nothing but a core.
const DIMS: [[usize; 2]; 3] = [[60, 34], [36, 35], [37, 37]];

fn both(host: &Host, raw: &Tensor, grad: &Tensor) -> Result<[Tensor; 2]> {
    let (last, kept) = launch::forward(host, raw)?;
    Ok([frame(&last, host, raw)?, launch::backward(host, &kept, grad)?])
}

#[test]
fn kernels_agree_with_the_cpu() -> Result<()> {
    let Some(host) = host("householder", Sanitizer::Memory)? else { return Ok(()) };
    let kernels = |raw: &Tensor, grad: &Tensor| both(&host, raw, grad);
    let pair = Pair { name: "householder", kernels: &kernels, cpu: householder_product };
    pair.check_all(&[0.1, 1.])?;
    // Three tiles of the triangle, the last of them not full.
    pair.check(&normal_scaled(&[80, 70], DType::F64, 3, 0.2)?, 1e-11)
}

#[test]
fn large_parameters_stay_on_the_manifold() -> Result<()> {
    let Some(host) = host("householder", Sanitizer::Memory)? else { return Ok(()) };
    let map = |raw: &Tensor| frame(&launch::forward(&host, raw)?.0, &host, raw);
    stays(DType::F32, &DIMS, &[20., 3e4], map)?;
    stays(DType::F64, &DIMS, &[20., 3e4], map)
}

#[test]
fn no_two_threads_meet() -> Result<()> {
    let Some(host) = host("householder", Sanitizer::Races)? else { return Ok(()) };
    let kernels = |raw: &Tensor, grad: &Tensor| both(&host, raw, grad);
    let pair = Pair { name: "householder", kernels: &kernels, cpu: householder_product };
    pair.check(&normal_scaled(&[2, 39, 34], DType::F64, 3, 0.2)?, 1e-11)
}
