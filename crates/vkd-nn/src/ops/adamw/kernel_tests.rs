//! The kernel of AdamW on the host, against plain tensor ops, which `optim` holds to the CPU's update.

use super::{Step, launch, step};
use candle_core::{DType, Result};
use std::path::Path;
use vkd_testkit::{KernelHost, Sanitizer, Tolerance, assert_close, normal, uniform};

#[test]
fn the_kernel_agrees_with_tensor_ops() -> Result<()> {
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    let shared = ops.join("../../../vkd-norm/src/ops");
    let source = ops.join("adamw/adamw.cu");
    let Some(host) = KernelHost::compile(&source, &[&shared], Sanitizer::Memory)? else {
        return Ok(());
    };
    let numbers = Step {
        beta1: 0.9,
        beta2: 0.999,
        scale: 0.5,
        keep: 0.995,
        step_size: 1e-2,
        root: 3.,
        eps: 1e-8,
    };
    for dtype in [DType::F32, DType::F64] {
        for n in [1, 33, 700] {
            let draw = |seed| normal(&[n + 3], dtype, seed)?.narrow(0, 3, n);
            let (p, g, m) = (draw(1)?, draw(2)?, draw(3)?);
            let v = uniform(&[n], dtype, 4, 0., 1.)?;
            let inputs = [&p, &g, &m, &v];
            let outputs: Vec<_> = (0..3).map(|i| (i, dtype, vec![n])).collect();
            let script = launch::step(numbers, dtype, n)?.script();
            let got = host.run(&script, &inputs, &outputs)?;
            for (got, want) in got.iter().zip(step(numbers, inputs)?) {
                assert_close("adamw", got, &want, Tolerance::for_op(dtype, dtype, 4))?;
            }
        }
    }
    Ok(())
}
