//! The kernel of AdamW on the host, against plain tensor ops, which `optim` holds to the CPU's update.

use super::{Step, launch, step};
use crate::ops::native_dtype;
use candle_core::{DType, Device, Result, Tensor};
use std::path::Path;
use vkd_testkit::{KernelHost, Sanitizer, Tolerance, assert_close, normal, uniform};

fn numbers(i: usize) -> Step {
    Step {
        beta1: 0.9,
        beta2: 0.999,
        scale: 0.5,
        keep: 1. - 0.005 * i as f64,
        step_size: 1e-2 * (i + 1) as f64,
        root: 3.,
        eps: 1e-8,
    }
}

#[test]
fn the_kernel_agrees_with_tensor_ops() -> Result<()> {
    check(None)?;
    check(Some(0.25))
}

#[test]
fn a_factor_that_is_no_number_changes_nothing() -> Result<()> {
    check(Some(f64::NAN))
}

/// One step, its gradients times a factor that lies on the device.
fn check(clip: Option<f64>) -> Result<()> {
    let skipped = clip.is_some_and(f64::is_nan);
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    let shared = ops.join("../../../vkd-norm/src/ops");
    let source = ops.join("adamw/adamw.cu");
    let Some(host) = KernelHost::compile(&source, &[&shared], Sanitizer::Memory)? else {
        return Ok(());
    };
    for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
        let own = native_dtype(dtype);
        let half = own != dtype;
        let (mut tensors, mut sizes, mut want) = (Vec::new(), Vec::new(), Vec::new());
        // Small and large ones side by side; no entry of a larger one may be left out.
        for (i, n) in [1, 700, 33, 0, 3_000].into_iter().enumerate() {
            let seed = 10 * i as u64;
            let draw = |seed, dtype| normal(&[n + 3], dtype, seed)?.narrow(0, 3, n);
            let (g, m) = (draw(seed + 1, own)?, draw(seed + 2, own)?);
            let v = uniform(&[n], own, seed + 3, 0., 1.)?;
            // Of a half type every other value is not its master's: it was set from outside.
            let master = draw(seed + 4, own)?;
            let value = master.to_dtype(dtype)?;
            let odd: Vec<u8> = (0..n).map(|i| u8::from(i % 2 == 1)).collect();
            let odd = Tensor::from_vec(odd, n, &Device::Cpu)?;
            let value = odd.where_cond(&value.affine(1., 1.)?, &value)?;
            let kept = value.to_dtype(own)?;
            let from = if half { odd.where_cond(&kept, &master)? } else { kept };
            if skipped {
                want.extend([value.clone(), m.clone(), v.clone()]);
                want.extend(half.then(|| master.clone()));
            } else {
                let clipped = Step { scale: numbers(i).scale * clip.unwrap_or(1.), ..numbers(i) };
                let [p, new_m, new_v] = step(clipped, [&from, &g, &m, &v])?;
                want.extend([p.to_dtype(dtype)?, new_m, new_v]);
                want.extend(half.then_some(p));
            }
            tensors.extend([value, g, m, v]);
            tensors.extend(half.then_some(master));
            sizes.push((n, numbers(i)));
        }
        let each = if half { 5 } else { 4 };
        let changed: Vec<usize> = (0..tensors.len()).filter(|i| i % each != 1).collect();
        let clip = clip.map(|factor| Tensor::new(factor, &Device::Cpu)).transpose()?;
        let inputs: Vec<&Tensor> = tensors.iter().chain(&clip).collect();
        let program = launch::steps(dtype, &sizes, clip.is_some())?;
        let got = host.run_in_place(&program.script(), &inputs, &changed)?;
        for ((at, got), want) in changed.iter().zip(&got).zip(&want) {
            let tolerance = match skipped {
                true => Tolerance::EXACT,
                false => Tolerance::for_op(own, want.dtype(), 4),
            };
            assert_close(&format!("adamw {dtype:?}, tensor {at}"), got, want, tolerance)?;
        }
    }
    Ok(())
}
