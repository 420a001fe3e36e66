//! The kernels of the activations on the host, against the CPU op.

use super::{Activation, activate, launch};
use candle_core::{DType, Device, Result, Tensor, Var};
use std::path::Path;
use vkd_testkit::{KernelHost, Sanitizer, Tolerance, assert_close, normal, normal_scaled};

const ALL: [Activation; 6] = [
    Activation::Identity,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
    Activation::Relu6,
    Activation::Silu,
];

fn check(host: &KernelHost, activation: Activation, xs: &Tensor) -> Result<()> {
    let (dims, dtype, entries) = (xs.dims(), xs.dtype(), xs.elem_count());
    let grad = normal(dims, dtype, 2)?;
    let outputs = [(0, dtype, dims.to_vec())];
    let var = Var::from_tensor(xs)?;
    let want = activate(&var, activation)?;
    let own = if dtype == DType::F64 { dtype } else { DType::F32 };
    // The CPU's own fit of the error function is good to 4e-7.
    let tolerance = Tolerance {
        absolute: if dtype == DType::F64 { 0. } else { 1e-6 },
        ..Tolerance::for_op(own, dtype, 1)
    };
    let name = format!("{activation:?} {dtype:?} {dims:?}");
    let script = launch::forward(activation, dtype, entries)?.script();
    assert_close(&name, &host.run(&script, &[xs], &outputs)?[0], &want, tolerance)?;
    let grads = (&want * &grad)?.sum_all()?.backward()?;
    let script = launch::backward(activation, dtype, entries)?.script();
    let got = host.run(&script, &[xs, &grad], &outputs)?;
    assert_close(&format!("{name} gradient"), &got[0], grads.get(&var).unwrap(), tolerance)
}

#[test]
fn kernels_agree_with_the_cpu() -> Result<()> {
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    let shared = ops.join("../../../vkd-norm/src/ops");
    let source = ops.join("activation/activation.cu");
    let Some(host) = KernelHost::compile(&source, &[&shared], Sanitizer::Memory)? else {
        return Ok(());
    };
    for activation in ALL {
        // At an offset, and no multiple of a block.
        let xs = normal_scaled(&[4, 109], DType::F32, 1, 3.)?.narrow(0, 1, 3)?;
        check(&host, activation, &xs)?;
        check(&host, activation, &normal_scaled(&[1], DType::F64, 1, 3.)?)?;
        check(
            &host,
            activation,
            &Tensor::new(&[0f32, -0., 6., 90., -90., 1e4, -1e4], &Device::Cpu)?,
        )?;
    }
    for dtype in [DType::F64, DType::F16, DType::BF16] {
        check(&host, Activation::Gelu, &normal_scaled(&[7, 5], dtype, 1, 2.)?)?;
    }
    Ok(())
}
