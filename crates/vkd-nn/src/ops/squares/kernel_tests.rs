//! The kernels of sums of squares on the host, against plain tensor ops.

use super::launch;
use candle_core::{DType, Result, Tensor};
use std::path::Path;
use vkd_testkit::{KernelHost, Sanitizer, Tolerance, assert_close, normal};

fn check(host: &KernelHost, dtype: DType, entries: &[usize]) -> Result<()> {
    let draw = |(i, n): (usize, &usize)| normal(&[n + 3], dtype, i as u64)?.narrow(0, 3, *n);
    let tensors = entries.iter().enumerate().map(draw).collect::<Result<Vec<_>>>()?;
    let inputs: Vec<&Tensor> = tensors.iter().collect();
    let outputs = [(0, DType::F64, vec![entries.len()])];
    let got = host.run(&launch::squares(dtype, entries)?.script(), &inputs, &outputs)?;
    for (i, tensor) in tensors.iter().enumerate() {
        let want = tensor.to_dtype(DType::F64)?.sqr()?.sum_all()?;
        // Of f32 the squares are exact in f64, and every sum is in f64.
        let tolerance = Tolerance::for_op(DType::F64, DType::F64, entries[i]);
        assert_close(&format!("squares {dtype:?}, tensor {i}"), &got[0].get(i)?, &want, tolerance)?;
    }
    Ok(())
}

fn host(sanitizer: Sanitizer) -> Result<Option<KernelHost>> {
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    let shared = ops.join("../../../vkd-norm/src/ops");
    KernelHost::compile(&ops.join("squares/squares.cu"), &[&shared], sanitizer)
}

#[test]
fn kernels_agree_with_tensor_ops() -> Result<()> {
    let Some(host) = host(Sanitizer::Memory)? else { return Ok(()) };
    for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
        check(&host, dtype, &[1, 700, 0, 33, 3000])?;
    }
    Ok(())
}

#[test]
fn no_two_threads_meet() -> Result<()> {
    let Some(host) = host(Sanitizer::Races)? else { return Ok(()) };
    check(&host, DType::F32, &[5, 3000])
}
