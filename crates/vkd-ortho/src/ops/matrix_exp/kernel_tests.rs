//! The kernels of the exponential on the host, against the CPU op.

use super::{launch, matrix_exp};
use crate::ops::kernel_tests::{Host, Pair, frame, host, stays};
use candle_core::{DType, Result, Tensor};
use vkd_testkit::{Sanitizer, normal_scaled};

/// A core that is small against the rest, one that is not, and nothing but a core.
const DIMS: [[usize; 2]; 3] = [[20, 9], [11, 10], [12, 12]];

fn both(host: &Host, raw: &Tensor, grad: &Tensor) -> Result<[Tensor; 2]> {
    let (last, kept) = launch::forward(host, raw)?;
    Ok([frame(&last, host, raw)?, launch::backward(host, &kept, grad)?])
}

#[test]
fn kernels_agree_with_the_cpu() -> Result<()> {
    let Some(host) = host("matrix_exp", Sanitizer::Memory)? else { return Ok(()) };
    let kernels = |raw: &Tensor, grad: &Tensor| both(&host, raw, grad);
    let pair = Pair { name: "matrix_exp", kernels: &kernels, cpu: matrix_exp };
    pair.check_all(&[0.5])?;
    // Matrices that need no doubling, one by cuBLAS, and an odd and an even number of those by the kernel.
    let scales =
        [0.01, 0.1, 2., 4., 40.].map(|scale| normal_scaled(&[1, 9, 5], DType::F64, 3, scale));
    let scales: Vec<Tensor> = scales.into_iter().collect::<Result<_>>()?;
    pair.check(&Tensor::cat(&scales, 0)?, 1e-10)?;
    // Two tiles, the last of them not full.
    pair.check(&normal_scaled(&[21, 17], DType::F64, 3, 1.)?, 1e-10)
}

#[test]
fn large_parameters_stay_on_the_manifold() -> Result<()> {
    let Some(host) = host("matrix_exp", Sanitizer::Memory)? else { return Ok(()) };
    let map = |raw: &Tensor| frame(&launch::forward(&host, raw)?.0, &host, raw);
    stays(DType::F32, &DIMS, &[20., 300.], map)?;
    stays(DType::F64, &DIMS, &[20., 300.], map)?;
    // No result where the doublings do not suffice.
    let far = map(&normal_scaled(&[6, 3], DType::F64, 2, 1e7)?)?.flatten_all()?.to_vec1::<f64>()?;
    assert!(far.iter().all(|x| x.is_nan()), "{far:?}");
    Ok(())
}

#[test]
fn no_two_threads_meet() -> Result<()> {
    let Some(host) = host("matrix_exp", Sanitizer::Races)? else { return Ok(()) };
    let kernels = |raw: &Tensor, grad: &Tensor| both(&host, raw, grad);
    let pair = Pair { name: "matrix_exp", kernels: &kernels, cpu: matrix_exp };
    pair.check(&normal_scaled(&[1, 20, 17], DType::F32, 3, 2.)?, 1e-10)
}
