//! The kernels of batch norm and group norm on the host, against the CPU op.

use super::cpu::Grid;
use super::launch::Channels;
use super::{batch_norm, batch_norm_with, group_norm};
use crate::ops::program::accumulator;
use candle_core::{DType, Device, Result, Tensor, Var};
use std::path::Path;
use vkd_testkit::{KernelHost, Sanitizer, Tolerance, assert_close, normal, uniform};

const EPS: f64 = 1e-5;

fn host(sanitizer: Sanitizer) -> Result<Option<KernelHost>> {
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    KernelHost::compile(&ops.join("channel_norm/channel_norm.cu"), &[&ops], sanitizer)
}

/// How one case takes its statistics.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Batch,
    With,
    Group(usize),
}

fn check(host: &KernelHost, kind: Kind, dims: [usize; 3], dtype: DType, mean: f64) -> Result<()> {
    let [samples, rows, width] = dims;
    let grid = match kind {
        Kind::Group(groups) => Grid { samples, rows, channels: width, groups },
        _ => Grid { samples: 1, rows: samples * rows, channels: width, groups: width },
    };
    let channels = Channels { op: "test", grid, dtype, eps: EPS };
    // Starts at an offset in its storage.
    let xs = (normal(&[samples + 1, rows, width], dtype, 1)?.narrow(0, 1, samples)? + mean)?;
    let grad = normal(&[samples + 1, rows, width], dtype, 2)?.narrow(0, 1, samples)?;
    let vars = [
        Var::from_tensor(&xs)?,
        Var::from_tensor(&normal(&[width], dtype, 3)?)?,
        Var::from_tensor(&normal(&[width], dtype, 4)?)?,
    ];
    let [x, w, b] = vars.each_ref().map(|v| v.as_tensor());
    let of_mean = normal(&[width], DType::F64, 5)?;
    let of_variance = uniform(&[width], DType::F64, 6, 0.5, 2.)?;
    let (want, given) = match kind {
        Kind::Batch => (batch_norm(x, w, b, EPS)?.0, None),
        Kind::Group(groups) => (group_norm(x, groups, w, b, EPS)?, None),
        Kind::With => {
            let of = [of_mean.to_dtype(dtype)?, of_variance.to_dtype(dtype)?];
            (batch_norm_with(x, w, b, &of[0], &of[1], EPS)?, Some(of))
        }
    };
    let name = format!("{kind:?} {dtype:?} {dims:?}");
    let own = given.is_none();
    let whole = (0, dtype, dims.to_vec());
    let sets = grid.samples * grid.groups;
    let mut outputs = vec![whole.clone(), (1, DType::F64, vec![sets, 2])];
    if own {
        outputs.push((2, DType::F64, vec![2, sets]));
    }
    let inputs: Vec<&Tensor> = [x, w, b].into_iter().chain(given.iter().flatten()).collect();
    let program = channels.forward(given.as_ref().map(|[mean, _]| mean.dtype()))?;
    let got = host.run(&program.script(), &inputs, &outputs)?;
    let tolerance = Tolerance::for_op(accumulator(dtype), dtype, samples * rows.max(width));
    assert_close(&name, &got[0], &want, tolerance)?;
    if matches!(kind, Kind::Batch) {
        // What running statistics take. The kernel sums in f64; the CPU's are relative to a value near the mean.
        let stats = batch_norm(x, w, b, EPS)?.1;
        let tolerance = Tolerance::for_op(accumulator(dtype), DType::F64, samples * rows);
        assert_close(&format!("{name} mean"), &got[2].get(0)?, stats.mean(), tolerance)?;
        assert_close(&format!("{name} variance"), &got[2].get(1)?, stats.biased(), tolerance)?;
    }
    let stats = &got[1];
    let grads = (&want * &grad)?.sum_all()?.backward()?;
    let outputs = [whole, (1, dtype, vec![2, width])];
    let script = channels.backward(own)?.script();
    let got = host.run(&script, &[x, w, &grad, stats], &outputs)?;
    let of = |i: usize| grads.get(&vars[i]).unwrap();
    assert_close(&format!("{name} dx"), &got[0], of(0), tolerance)?;
    assert_close(&format!("{name} gain"), &got[1].get(0)?, of(1), tolerance)?;
    assert_close(&format!("{name} bias"), &got[1].get(1)?, of(2), tolerance)
}

#[test]
fn kernels_agree_with_the_cpu() -> Result<()> {
    let Some(host) = host(Sanitizer::Memory)? else { return Ok(()) };
    for dims in [[4, 1, 1], [3, 7, 10], [1, 40, 261]] {
        for kind in [Kind::Batch, Kind::With] {
            check(&host, kind, dims, DType::F32, 0.)?;
        }
    }
    for groups in [1, 5, 10] {
        check(&host, Kind::Group(groups), [3, 35, 10], DType::F32, 0.)?;
    }
    for dtype in [DType::F64, DType::F16, DType::BF16] {
        check(&host, Kind::Batch, [2, 9, 6], dtype, 0.)?;
        check(&host, Kind::Group(2), [2, 9, 6], dtype, 0.)?;
    }
    check(&host, Kind::Batch, [2, 30, 3], DType::F32, 1e4)?;
    // A constant channel gives the bias.
    let grid = Grid { samples: 1, rows: 5, channels: 2, groups: 2 };
    let channels = Channels { op: "test", grid, dtype: DType::F32, eps: EPS };
    let xs = Tensor::full(3.3f32, (5, 2), &Device::Cpu)?;
    let (w, b) = (normal(&[2], DType::F32, 1)?, normal(&[2], DType::F32, 2)?);
    let script = channels.forward(None)?.script();
    let got = host.run(&script, &[&xs, &w, &b], &[(0, DType::F32, vec![5, 2])])?;
    assert_close("constant", &got[0], &b.broadcast_as((5, 2))?, Tolerance::EXACT)
}

#[test]
fn no_two_threads_meet() -> Result<()> {
    let Some(host) = host(Sanitizer::Races)? else { return Ok(()) };
    check(&host, Kind::Group(2), [2, 20, 40], DType::F32, 0.)
}
