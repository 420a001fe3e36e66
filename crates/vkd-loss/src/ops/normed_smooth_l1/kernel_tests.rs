//! The kernels of the fused loss on the host, against the CPU op.

use super::{Terms, launch, smooth_l1_layer_norm};
use candle_core::{DType, Device, Result, Tensor, Var};
use std::path::{Path, PathBuf};
use vkd_norm::program::accumulator;
use vkd_testkit::{KernelHost, Sanitizer, Tolerance, assert_close, normal, normal_scaled};

fn host(sanitizer: Sanitizer) -> Result<Option<KernelHost>> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source: PathBuf = crates.join("src/ops/normed_smooth_l1/normed_smooth_l1.cu");
    KernelHost::compile(&source, &[&crates.join("../vkd-norm/src/ops")], sanitizer)
}

fn check(host: &KernelHost, dims: [usize; 2], dtype: DType, beta: f64) -> Result<()> {
    let [rows, channels] = dims;
    let terms = Terms { channels, beta, eps: 1e-5 };
    // Both start at an offset in their storage.
    let student = normal_scaled(&[rows + 1, channels], dtype, 1, 1.5)?.narrow(0, 1, rows)?;
    let teacher = normal(&[rows + 2, channels], dtype, 2)?.narrow(0, 2, rows)?;
    let own = accumulator(dtype);
    let name = format!("{dtype:?} {dims:?}");
    let script = launch::forward(terms, dtype, rows)?.script();
    let loss = host.run(&script, &[&student, &teacher], &[(0, own, vec![])])?.remove(0);
    let var = Var::from_tensor(&student)?;
    let want = smooth_l1_layer_norm(&var, &teacher, beta, 1e-5)?;
    assert_close(&name, &loss, &want, Tolerance::for_op(own, own, channels))?;
    let grads = (&want * 3.)?.backward()?;
    let grad = Tensor::new(3f64, &Device::Cpu)?.to_dtype(own)?;
    let script = launch::backward(terms, dtype, rows)?.script();
    let outputs = [(0, dtype, dims.to_vec())];
    let got = host.run(&script, &[&student, &teacher, &grad], &outputs)?.remove(0);
    let tolerance = Tolerance::for_op(own, dtype, channels);
    // Gradients of this size are among the smallest of f16, whose spacing is fixed.
    let spacing = if dtype == DType::F16 { 2f64.powi(-24) } else { 0. };
    let tolerance = Tolerance { absolute: spacing, ..tolerance };
    assert_close(&format!("{name} gradient"), &got, grads.get(&var).unwrap(), tolerance)
}

#[test]
fn kernels_agree_with_the_cpu() -> Result<()> {
    let Some(host) = host(Sanitizer::Memory)? else { return Ok(()) };
    for dims in [[1, 1], [1, 37], [19, 1], [5, 130], [2, 6149]] {
        check(&host, dims, DType::F32, 1.)?;
    }
    for dtype in [DType::F64, DType::F16, DType::BF16] {
        check(&host, [3, 71], dtype, 0.3)?;
    }
    Ok(())
}

#[test]
fn rows_are_shared_among_blocks() -> Result<()> {
    let Some(host) = host(Sanitizer::Memory)? else { return Ok(()) };
    // More rows than blocks.
    check(&host, [1100, 3], DType::F32, 1.)
}

#[test]
fn no_two_threads_meet() -> Result<()> {
    let Some(host) = host(Sanitizer::Races)? else { return Ok(()) };
    check(&host, [3, 261], DType::F32, 1.)
}
