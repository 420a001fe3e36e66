//! The kernels of RMS norm on the host, against the CPU op.

use super::{launch, rms_norm};
use crate::ops::program::accumulator;
use candle_core::{DType, Result, Tensor, Var};
use std::path::Path;
use vkd_testkit::{KernelHost, Sanitizer, Tolerance, assert_close, normal, normal_scaled};

const EPS: f64 = 1e-5;

fn host(sanitizer: Sanitizer) -> Result<Option<KernelHost>> {
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    KernelHost::compile(&ops.join("rms_norm/rms_norm.cu"), &[&ops], sanitizer)
}

fn check(host: &KernelHost, xs: &Tensor) -> Result<()> {
    let ((rows, channels), dtype) = (xs.dims2()?, xs.dtype());
    let grad = normal(&[rows + 1, channels], dtype, 2)?.narrow(0, 1, rows)?;
    let weight = normal(&[channels], dtype, 3)?;
    let tolerance = Tolerance::for_op(accumulator(dtype), dtype, channels.max(rows));
    let vars = [Var::from_tensor(xs)?, Var::from_tensor(&weight)?];
    let want = rms_norm(&vars[0], &vars[1], EPS)?;
    let outputs = [(0, dtype, vec![rows, channels]), (1, dtype, vec![channels])];
    let script = launch::forward(dtype, rows, channels, EPS)?.script();
    let got = host.run(&script, &[xs, &weight], &outputs[..1])?;
    assert_close(&format!("{dtype:?}"), &got[0], &want, tolerance)?;
    let grads = (&want * &grad)?.sum_all()?.backward()?;
    let script = launch::backward(dtype, rows, channels, EPS)?.script();
    let got = host.run(&script, &[xs, &weight, &grad], &outputs)?;
    // The two terms of the gradient may cancel: their rounding is in proportion to themselves.
    let wide = xs.to_dtype(DType::F64)?;
    let rms = (wide.sqr()?.mean_keepdim(1)? + EPS)?.sqrt()?;
    let term = grad.to_dtype(DType::F64)?.broadcast_mul(&weight.to_dtype(DType::F64)?)?;
    let largest = term.broadcast_div(&rms)?.abs()?.max_all()?.to_scalar::<f64>()?;
    let tolerance = Tolerance { absolute: tolerance.relative * largest, ..tolerance };
    for (got, var) in got.iter().zip(&vars) {
        assert_close(&format!("{dtype:?} gradient"), got, grads.get(var).unwrap(), tolerance)?;
    }
    Ok(())
}

/// Starts at an offset in its storage.
fn input(dims: [usize; 2], dtype: DType) -> Result<Tensor> {
    normal(&[dims[0] + 1, dims[1]], dtype, 1)?.narrow(0, 1, dims[0])
}

#[test]
fn kernels_agree_with_the_cpu() -> Result<()> {
    let Some(host) = host(Sanitizer::Memory)? else { return Ok(()) };
    for dims in [[1, 1], [1, 37], [19, 1], [5, 130], [2, 6149]] {
        check(&host, &input(dims, DType::F32)?)?;
    }
    for dtype in [DType::F64, DType::F16, DType::BF16] {
        check(&host, &input([18, 33], dtype)?)?;
    }
    // Squares that overflow f32.
    check(&host, &normal_scaled(&[3, 70], DType::F32, 6, 1e25)?)
}

#[test]
fn no_two_threads_meet() -> Result<()> {
    let Some(host) = host(Sanitizer::Races)? else { return Ok(()) };
    check(&host, &input([3, 261], DType::F32)?)
}
