//! The kernel of blending on the host, against plain tensor ops.

use super::launch;
use crate::ops::native_dtype;
use candle_core::{DType, Result, Tensor};
use std::path::Path;
use vkd_testkit::{KernelHost, Sanitizer, Tolerance, assert_close, normal};

#[test]
fn the_kernel_agrees_with_tensor_ops() -> Result<()> {
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    let shared = ops.join("../../../vkd-norm/src/ops");
    let source = ops.join("blend/blend.cu");
    let Some(host) = KernelHost::compile(&source, &[&shared], Sanitizer::Memory)? else {
        return Ok(());
    };
    for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
        let own = native_dtype(dtype);
        let (mut tensors, mut sizes, mut want) = (Vec::new(), Vec::new(), Vec::new());
        for (i, n) in [700, 1, 0, 33, 3_000].into_iter().enumerate() {
            let (keep, take) = (1. - 0.1 * i as f64, 0.1 * i as f64 + 0.01);
            let to = normal(&[n + 2], own, 2 * i as u64)?.narrow(0, 2, n)?;
            let from = normal(&[n + 5], dtype, 2 * i as u64 + 1)?.narrow(0, 5, n)?;
            want.push(((&to * keep)? + (from.to_dtype(own)? * take)?)?);
            tensors.extend([to, from]);
            sizes.push((n, keep, take));
        }
        let inputs: Vec<&Tensor> = tensors.iter().collect();
        let changed: Vec<usize> = (0..tensors.len()).step_by(2).collect();
        let script = launch::blend(dtype, &sizes)?.script();
        let got = host.run_in_place(&script, &inputs, &changed)?;
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let tolerance = Tolerance::for_op(own, own, 2);
            assert_close(&format!("blend {dtype:?}, pair {i}"), got, want, tolerance)?;
        }
    }
    Ok(())
}
