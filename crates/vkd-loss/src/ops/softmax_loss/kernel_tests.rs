//! The kernels of the losses on logits on the host, against the CPU op.

use super::launch::Logits;
use super::{Target, softmax_loss};
use crate::Reduction;
use candle_core::{DType, Device, Result, Tensor, Var};
use std::path::Path;
use vkd_norm::softmax;
use vkd_testkit::{KernelHost, Sanitizer, Tolerance, assert_close, normal, normal_scaled};

const OP: &str = "loss";

fn host(sanitizer: Sanitizer) -> Result<Option<KernelHost>> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = crates.join("src/ops/softmax_loss/softmax_loss.cu");
    KernelHost::compile(&source, &[&crates.join("../vkd-norm/src/ops")], sanitizer)
}

/// Rows one to the last of a target that starts at an offset in its storage.
fn target(kind: Target, rows: usize, classes: usize, dtype: DType) -> Result<Tensor> {
    let whole = match kind {
        Target::Labels { .. } => {
            let labels: Vec<u32> = (0..=rows).map(|i| (i * 7 % classes) as u32).collect();
            Tensor::new(labels, &Device::Cpu)?
        }
        Target::Probabilities => softmax(&normal(&[rows + 1, classes], dtype, 2)?)?,
        Target::Logits { .. } => normal_scaled(&[rows + 1, classes], dtype, 2, 2.)?,
    };
    whole.narrow(0, 1, rows)
}

fn check(
    host: &KernelHost,
    kind: Target,
    dims: [usize; 2],
    dtype: DType,
    reduction: Reduction,
) -> Result<()> {
    let [rows, classes] = dims;
    let divisor = reduction.divisor(rows, rows);
    let sizes = Logits { op: OP, kind, dtype, rows, classes, divisor };
    let logits = normal_scaled(&[rows + 1, classes], dtype, 1, 3.)?.narrow(0, 1, rows)?;
    let target = target(kind, rows, classes, dtype)?;
    let name = format!("{kind:?} {dtype:?} {dims:?}");
    let shape = if divisor.is_some() { vec![] } else { vec![rows] };
    let script = sizes.forward()?.script();
    let loss = host.run(&script, &[&logits, &target], &[(0, dtype, shape)])?.remove(0);
    let var = Var::from_tensor(&logits)?;
    let want = softmax_loss(OP, kind, &var, &target, reduction)?;
    // The arithmetic is in f64; a loss that is nothing but rounding may differ by it.
    let tolerance = Tolerance::for_op(DType::F64, dtype, classes);
    let tolerance = Tolerance { absolute: 1e-13, ..tolerance };
    assert_close(&name, &loss, &want, tolerance)?;
    let grad = normal(want.dims(), dtype, 3)?;
    let grads = (&want * &grad)?.sum_all()?.backward()?;
    let outputs = [(0, dtype, dims.to_vec())];
    let script = sizes.backward()?.script();
    let got = host.run(&script, &[&logits, &target, &grad], &outputs)?.remove(0);
    assert_close(&format!("{name} gradient"), &got, grads.get(&var).unwrap(), tolerance)
}

const KINDS: [Target; 5] = [
    Target::Labels { smoothing: 0. },
    Target::Labels { smoothing: 0.1 },
    Target::Probabilities,
    Target::Logits { temperature: 1. },
    Target::Logits { temperature: 4. },
];

#[test]
fn kernels_agree_with_the_cpu() -> Result<()> {
    let Some(host) = host(Sanitizer::Memory)? else { return Ok(()) };
    for kind in KINDS {
        check(&host, kind, [1, 1], DType::F32, Reduction::Mean)?;
        check(&host, kind, [5, 130], DType::F32, Reduction::None)?;
        check(&host, kind, [11, 7], DType::F64, Reduction::Sum)?;
    }
    // Infinity masks a class that has no weight; a label that is no class gives NaN and reads nothing outside.
    let logits = Tensor::new(&[[1f32, f32::NEG_INFINITY, 3.]], &Device::Cpu)?;
    let kind = Target::Labels { smoothing: 0. };
    let sizes = Logits { op: OP, kind, dtype: DType::F32, rows: 1, classes: 3, divisor: Some(1.) };
    let run = |label: u32| {
        let labels = Tensor::new(&[label], &Device::Cpu)?;
        let script = sizes.forward()?.script();
        host.run(&script, &[&logits, &labels], &[(0, DType::F32, vec![])])?[0].to_scalar::<f32>()
    };
    assert!((run(2)? - (1. + (-2f32).exp()).ln()).abs() < 1e-6);
    assert!(run(3)?.is_nan() && run(u32::MAX)?.is_nan());
    Ok(())
}

#[test]
fn no_two_threads_meet() -> Result<()> {
    let Some(host) = host(Sanitizer::Races)? else { return Ok(()) };
    check(&host, KINDS[4], [3, 261], DType::F32, Reduction::Mean)
}
