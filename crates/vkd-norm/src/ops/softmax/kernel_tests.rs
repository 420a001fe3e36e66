//! The kernels of softmax on the host, against the CPU op.

use super::{launch, log_softmax, softmax};
use candle_core::{DType, Device, Result, Tensor, Var};
use std::f64::consts::LN_2;
use std::path::Path;
use vkd_testkit::{KernelHost, Sanitizer, Tolerance, assert_close, normal, to_f64};

fn host(sanitizer: Sanitizer) -> Result<Option<KernelHost>> {
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    KernelHost::compile(&ops.join("softmax/softmax.cu"), &[&ops], sanitizer)
}

fn check(host: &KernelHost, dims: [usize; 2], dtype: DType) -> Result<()> {
    let [rows, classes] = dims;
    // Starts at an offset in its storage.
    let xs = (normal(&[rows + 1, classes], dtype, 1)?.narrow(0, 1, rows)? * 3.)?;
    let grad = normal(&[rows + 1, classes], dtype, 2)?.narrow(0, 1, rows)?;
    let outputs = [(0, dtype, dims.to_vec())];
    for log in [false, true] {
        let tolerance = match dtype {
            DType::F64 => Tolerance::for_op(dtype, dtype, classes),
            _ => Tolerance::for_op(DType::F32, dtype, classes),
        };
        let var = Var::from_tensor(&xs)?;
        let want = if log { log_softmax(&var)? } else { softmax(&var)? };
        let script = launch::forward(dtype, rows, classes, log)?.script();
        let ys = host.run(&script, &[&xs], &outputs)?.remove(0);
        assert_close(&format!("{dtype:?} log {log}"), &ys, &want, tolerance)?;
        let grads = (&want * &grad)?.sum_all()?.backward()?;
        let script = launch::backward(dtype, rows, classes, log)?.script();
        // From the CPU's output, so that only the pass itself is compared.
        let got = host.run(&script, &[&want.detach(), &grad], &outputs)?.remove(0);
        let want = grads.get(&var).unwrap();
        assert_close(&format!("{dtype:?} log {log} gradient"), &got, want, tolerance)?;
    }
    Ok(())
}

#[test]
fn kernels_agree_with_the_cpu() -> Result<()> {
    let Some(host) = host(Sanitizer::Memory)? else { return Ok(()) };
    for dims in [[1, 1], [1, 37], [19, 1], [5, 130], [2, 6149]] {
        check(&host, dims, DType::F32)?;
    }
    for dtype in [DType::F64, DType::F16, DType::BF16] {
        check(&host, [3, 71], dtype)?;
    }
    // Extremes, a masked class, and what must make its row NaN.
    let rows = [
        [1e4f32, -1e4, 0.],
        [0., f32::NEG_INFINITY, 0.],
        [0., f32::NAN, 1.],
        [0., f32::INFINITY, 1.],
    ];
    let xs = Tensor::new(&rows, &Device::Cpu)?;
    for (log, want) in [
        (false, [1., 0., 0., 0.5, 0., 0.5]),
        (true, [0., -2e4, -1e4, -LN_2, f64::NEG_INFINITY, -LN_2]),
    ] {
        let script = launch::forward(DType::F32, 4, 3, log)?.script();
        let ys = to_f64(&host.run(&script, &[&xs], &[(0, DType::F32, vec![4, 3])])?[0])?;
        for (got, want) in ys.iter().zip(want) {
            assert!(*got == want || (got - want).abs() < 1e-6, "{ys:?}");
        }
        assert!(ys[6..].iter().all(|y| y.is_nan()), "{ys:?}");
    }
    Ok(())
}

#[test]
fn no_two_threads_meet() -> Result<()> {
    let Some(host) = host(Sanitizer::Races)? else { return Ok(()) };
    check(&host, [3, 261], DType::F32)
}
