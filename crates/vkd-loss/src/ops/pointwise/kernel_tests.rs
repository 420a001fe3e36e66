//! The kernels of the losses by element on the host, against the CPU op.

use super::{Pointwise, launch, pointwise};
use crate::Reduction;
use candle_core::{DType, Device, Result, Tensor, Var};
use std::path::Path;
use vkd_testkit::{KernelHost, Sanitizer, Tolerance, assert_close, normal, normal_scaled, uniform};

const KINDS: [Pointwise; 7] = [
    Pointwise::Mse,
    Pointwise::SmoothL1 { beta: 0.7 },
    Pointwise::L1,
    Pointwise::Bce,
    Pointwise::Focal { alpha: 0.25, gamma: 2. },
    Pointwise::Focal { alpha: 0.6, gamma: 0. },
    Pointwise::Focal { alpha: 0.6, gamma: 1.3 },
];

fn host(sanitizer: Sanitizer) -> Result<Option<KernelHost>> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = crates.join("src/ops/pointwise/pointwise.cu");
    KernelHost::compile(&source, &[&crates.join("../vkd-norm/src/ops")], sanitizer)
}

fn check(host: &KernelHost, kind: Pointwise, student: &Tensor, reduction: Reduction) -> Result<()> {
    let (dims, dtype) = (student.dims(), student.dtype());
    let entries = student.elem_count();
    let divisor = reduction.divisor(entries, dims[0]);
    // Starts at an offset in its storage; shares of one where the loss wants them.
    let teacher = uniform(&[dims[0] + 1, dims[1]], dtype, 2, 0., 1.)?.narrow(0, 1, dims[0])?;
    let name = format!("{kind:?} {dtype:?} {dims:?} {reduction:?}");
    let shape = if divisor.is_some() { vec![] } else { dims.to_vec() };
    let script = launch::forward(kind, dtype, entries, divisor)?.script();
    let loss = host.run(&script, &[student, &teacher], &[(0, dtype, shape)])?.remove(0);
    let var = Var::from_tensor(student)?;
    let want = pointwise(kind, &var, &teacher, reduction)?;
    let tolerance = Tolerance::for_op(dtype, dtype, 64);
    assert_close(&name, &loss, &want, tolerance)?;
    let grad = normal(want.dims(), dtype, 3)?;
    let grads = (&want * &grad)?.sum_all()?.backward()?;
    let script = launch::backward(kind, dtype, entries, divisor)?.script();
    let outputs = [(0, dtype, dims.to_vec())];
    let got = host.run(&script, &[student, &teacher, &grad], &outputs)?.remove(0);
    assert_close(&format!("{name} gradient"), &got, grads.get(&var).unwrap(), tolerance)
}

#[test]
fn kernels_agree_with_the_cpu() -> Result<()> {
    let Some(host) = host(Sanitizer::Memory)? else { return Ok(()) };
    for kind in KINDS {
        let xs = |dims: [usize; 2], dtype| normal_scaled(&dims, dtype, 1, 2.);
        check(&host, kind, &xs([1, 1], DType::F32)?, Reduction::Mean)?;
        check(&host, kind, &xs([3, 87], DType::F32)?, Reduction::BatchMean)?;
        check(&host, kind, &xs([3, 87], DType::F32)?, Reduction::None)?;
        check(&host, kind, &xs([11, 7], DType::F64)?, Reduction::Sum)?;
        let extremes = Tensor::new(&[[90f32, -90.], [0., 700.]], &Device::Cpu)?;
        check(&host, kind, &extremes, Reduction::None)?;
    }
    // More entries than the blocks of a sum have threads.
    let many = normal(&[3, 11_003], DType::F32, 5)?;
    check(&host, Pointwise::Mse, &many, Reduction::Mean)
}

#[test]
fn no_two_threads_meet() -> Result<()> {
    let Some(host) = host(Sanitizer::Races)? else { return Ok(()) };
    check(&host, Pointwise::Mse, &normal(&[3, 287], DType::F32, 1)?, Reduction::Mean)
}
