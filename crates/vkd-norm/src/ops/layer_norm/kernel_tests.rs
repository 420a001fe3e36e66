//! The kernels of layer norm on the host, against the CPU op.

use super::launch::Rows;
use super::{layer_norm, layer_norm_affine};
use crate::ops::program::accumulator;
use candle_core::{DType, Result, Tensor, Var};
use std::path::Path;
use vkd_testkit::{KernelHost, Sanitizer, Tolerance, assert_close, normal, normal_scaled};

fn host(sanitizer: Sanitizer) -> Result<Option<KernelHost>> {
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    KernelHost::compile(&ops.join("layer_norm/layer_norm.cu"), &[&ops], sanitizer)
}

/// A tensor that starts at an offset in its storage.
fn offset(dims: [usize; 2], dtype: DType, seed: u64) -> Result<Tensor> {
    normal(&[dims[0] + 1, dims[1]], dtype, seed)?.narrow(0, 1, dims[0])
}

/// Both passes, with and without gain and bias, against the CPU op.
fn check(host: &KernelHost, xs: &Tensor, eps: f64) -> Result<()> {
    let (rows, channels) = xs.dims2()?;
    let dtype = xs.dtype();
    let sizes = Rows { dtype, rows, channels, eps };
    let grad = offset([rows, channels], dtype, 2)?;
    let weight = normal(&[channels], dtype, 3)?;
    let bias = normal(&[channels], dtype, 4)?;
    let tolerance = Tolerance::for_op(accumulator(dtype), dtype, channels.max(rows));
    let whole = (0, dtype, vec![rows, channels]);
    let vars = [Var::from_tensor(xs)?, Var::from_tensor(&weight)?, Var::from_tensor(&bias)?];

    let want = layer_norm(&vars[0], eps)?;
    let got = host.run(&sizes.forward(false)?.script(), &[xs], std::slice::from_ref(&whole))?;
    assert_close(&format!("{dtype:?} plain"), &got[0], &want, tolerance)?;
    let grads = (&want * &grad)?.sum_all()?.backward()?;
    let script = sizes.backward(false)?.script();
    let got = host.run(&script, &[xs, &grad], std::slice::from_ref(&whole))?;
    let want = grads.get(&vars[0]).unwrap();
    assert_close(&format!("{dtype:?} plain gradient"), &got[0], want, tolerance)?;

    let want = layer_norm_affine(&vars[0], &vars[1], &vars[2], eps)?;
    let inputs = [xs, &weight, &bias];
    let got = host.run(&sizes.forward(true)?.script(), &inputs, std::slice::from_ref(&whole))?;
    assert_close(&format!("{dtype:?} affine"), &got[0], &want, tolerance)?;
    let grads = (&want * &grad)?.sum_all()?.backward()?;
    let outputs = [whole, (1, dtype, vec![2, channels])];
    let got = host.run(&sizes.backward(true)?.script(), &[xs, &weight, &grad], &outputs)?;
    let of = |i: usize| grads.get(&vars[i]).unwrap();
    assert_close(&format!("{dtype:?} dx"), &got[0], of(0), tolerance)?;
    assert_close(&format!("{dtype:?} gain"), &got[1].get(0)?, of(1), tolerance)?;
    assert_close(&format!("{dtype:?} bias"), &got[1].get(1)?, of(2), tolerance)
}

#[test]
fn kernels_agree_with_the_cpu() -> Result<()> {
    let Some(host) = host(Sanitizer::Memory)? else { return Ok(()) };
    for dims in [[1, 1], [1, 37], [19, 1], [5, 130]] {
        check(&host, &offset(dims, DType::F32, 1)?, 1e-5)?;
    }
    for dtype in [DType::F64, DType::F16, DType::BF16] {
        check(&host, &offset([18, 33], dtype, 1)?, 1e-5)?;
    }
    // Longer than shared memory holds.
    check(&host, &normal(&[2, 6149], DType::F32, 1)?, 1e-5)?;
    check(&host, &(normal(&[3, 70], DType::F32, 1)? + 1e4)?, 1e-5)?;
    let far = (normal(&[3, 70], DType::F32, 5)? + 1e4)?;
    let sizes = Rows { dtype: DType::F32, rows: 3, channels: 70, eps: 1e-5 };
    let run = |xs: &Tensor| {
        let script = sizes.forward(false)?.script();
        host.run(&script, &[xs], &[(0, DType::F32, vec![3, 70])])
    };
    let want = layer_norm(&far.to_dtype(DType::F64)?, 1e-5)?;
    assert_close("far", &run(&far)?[0], &want, Tolerance::relative(1e-6))?;
    // Squares that overflow f32.
    let large = normal_scaled(&[3, 70], DType::F32, 6, 1e25)?;
    let want = layer_norm(&large.to_dtype(DType::F64)?, 1e-5)?;
    assert_close("large", &run(&large)?[0], &want, Tolerance::relative(1e-6))?;
    let constant = Tensor::full(3.3f32, (3, 70), large.device())?;
    assert_close("constant", &run(&constant)?[0], &constant.zeros_like()?, Tolerance::EXACT)
}

#[test]
fn no_two_threads_meet() -> Result<()> {
    let Some(host) = host(Sanitizer::Races)? else { return Ok(()) };
    check(&host, &offset([3, 261], DType::F32, 1)?, 1e-5)
}
