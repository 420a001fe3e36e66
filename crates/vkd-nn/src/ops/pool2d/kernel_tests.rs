//! The kernels of the pools on the host, against the CPU ops.

use super::launch::Pool;
use super::{Pool2dConfig, avg_pool2d, max_pool2d};
use candle_core::{DType, Device, Result, Tensor, Var};
use std::path::Path;
use vkd_norm::program::accumulator;
use vkd_testkit::{KernelHost, Sanitizer, Tolerance, assert_close, normal};

/// Forward and backward of both pools on `xs`.
fn check(host: &KernelHost, xs: &Tensor, config: Pool2dConfig) -> Result<()> {
    let (dtype, dims) = (xs.dtype(), xs.dims().to_vec());
    let geometry = config.geometry("test", xs)?;
    let pool = Pool { op: "test", geometry: &geometry, dtype };
    let result = [dims[0], geometry.output[0], geometry.output[1], dims[3]];
    // Starts at an offset in its storage.
    let grad = normal(&[result[0] + 1, result[1], result[2], result[3]], dtype, 2)?;
    let grad = grad.narrow(0, 1, result[0])?;
    let var = Var::from_tensor(xs)?;
    let run = |program: vkd_norm::program::Program, inputs: &[&Tensor], dims: &[usize]| {
        host.run(&program.script(), inputs, &[(0, dtype, dims.to_vec())])
            .map(|mut all| all.remove(0))
    };
    let covered = geometry.window.kernel.iter().product();
    let tolerance = Tolerance::for_op(accumulator(dtype), dtype, covered);
    let name = format!("{dtype:?} {dims:?} {config:?}");

    let want = max_pool2d(&var, config)?;
    let got = run(pool.max()?, &[xs], &result)?;
    assert_close(&format!("max {name}"), &got, &want, Tolerance::EXACT)?;
    let grads = (&want * &grad)?.sum_all()?.backward()?;
    let got = run(pool.max_backward()?, &[xs, &got, &grad], &dims)?;
    assert_close(&format!("max backward {name}"), &got, grads.get(&var).unwrap(), tolerance)?;

    let want = avg_pool2d(&var, config)?;
    let got = run(pool.average()?, &[xs], &result)?;
    assert_close(&format!("average {name}"), &got, &want, tolerance)?;
    let grads = (&want * &grad)?.sum_all()?.backward()?;
    let got = run(pool.average_backward()?, &[&grad], &dims)?;
    assert_close(&format!("average backward {name}"), &got, grads.get(&var).unwrap(), tolerance)
}

fn window(kernel: (usize, usize), stride: (usize, usize), padding: (usize, usize)) -> Pool2dConfig {
    Pool2dConfig { kernel, stride, padding, ..Pool2dConfig::new(1) }
}

#[test]
fn kernels_agree_with_the_cpu() -> Result<()> {
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    let shared = ops.join("../../../vkd-norm/src/ops");
    let source = ops.join("pool2d/pool2d.cu");
    let Some(host) = KernelHost::compile(&source, &[&shared], Sanitizer::Memory)? else {
        return Ok(());
    };
    let image = |dims: [usize; 4], dtype| -> Result<Tensor> {
        normal(&[dims[0] + 1, dims[1], dims[2], dims[3]], dtype, 1)?.narrow(0, 1, dims[0])
    };
    let configs = [
        Pool2dConfig::new(2),
        window((3, 3), (2, 2), (1, 1)),
        // Steps beyond the window leave pixels out; windows reach over both borders.
        window((2, 5), (3, 1), (1, 2)),
        Pool2dConfig { ceil: true, ..window((3, 2), (2, 3), (1, 0)) },
        Pool2dConfig { ceil: true, count_padding: false, ..window((4, 3), (3, 2), (2, 1)) },
        window((7, 9), (usize::MAX, 1), (0, 0)),
    ];
    for config in configs {
        check(&host, &image([2, 7, 9, 3], DType::F32)?, config)?;
    }
    check(&host, &image([1, 1, 1, 1], DType::F32)?, Pool2dConfig::new(1))?;
    check(&host, &image([3, 5, 4, 35], DType::F32)?, configs[1])?;
    for dtype in [DType::F64, DType::F16, DType::BF16] {
        check(&host, &image([2, 5, 6, 3], dtype)?, configs[1])?;
    }
    // Equal values: the first one takes it all. A NaN, and a window of nothing but the least value, have a pixel too.
    let xs = (normal(&[2, 6, 5, 2], DType::F32, 3)?.sign()? * 0.5)?;
    check(&host, &xs, configs[1])?;
    let config = Pool2dConfig::new(2);
    let xs = [f32::NAN, 1., f32::NAN, 2., f32::NEG_INFINITY, f32::NEG_INFINITY, -3., f32::INFINITY];
    let xs = Var::from_tensor(&Tensor::new(&xs, &Device::Cpu)?.reshape((2, 2, 2, 1))?)?;
    let geometry = config.geometry("test", &xs)?;
    let pool = Pool { op: "test", geometry: &geometry, dtype: DType::F32 };
    let got = host.run(&pool.max()?.script(), &[&xs], &[(0, DType::F32, vec![2, 1, 1, 1])])?;
    let bits = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
    let values = bits(&got[0])?;
    assert!(values[0].is_nan() && values[1] == f32::INFINITY, "{values:?}");
    let grad = Tensor::new(&[5f32, 7.], &Device::Cpu)?.reshape((2, 1, 1, 1))?;
    let outputs = [(0, DType::F32, vec![2, 2, 2, 1])];
    let got = host.run(&pool.max_backward()?.script(), &[&xs, &got[0], &grad], &outputs)?;
    assert_eq!(bits(&got[0])?, [5., 0., 0., 0., 0., 0., 0., 7.]);
    Ok(())
}
