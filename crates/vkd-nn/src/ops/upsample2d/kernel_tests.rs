//! The kernels of resampling on the host, against the CPU op.

use super::cpu::Mode;
use super::{geometry, launch, upsample_bilinear2d, upsample_nearest2d};
use candle_core::{DType, Device, Result, Tensor, Var};
use std::path::Path;
use vkd_norm::program::accumulator;
use vkd_testkit::{KernelHost, Sanitizer, Tolerance, assert_close, normal};

const MODES: [Mode; 3] = [Mode::Nearest, Mode::Edges, Mode::Corners];

fn upsample(xs: &Tensor, size: (usize, usize), mode: Mode) -> Result<Tensor> {
    match mode {
        Mode::Nearest => upsample_nearest2d(xs, size),
        Mode::Edges => upsample_bilinear2d(xs, size, false),
        Mode::Corners => upsample_bilinear2d(xs, size, true),
    }
}

fn check(host: &KernelHost, xs: &Tensor, size: (usize, usize), mode: Mode) -> Result<()> {
    let (dtype, dims) = (xs.dtype(), xs.dims().to_vec());
    let g = geometry("test", xs, size, mode)?;
    // Starts at an offset in its storage.
    let grad = normal(&[dims[0] + 1, size.0, size.1, dims[3]], dtype, 2)?.narrow(0, 1, dims[0])?;
    let var = Var::from_tensor(xs)?;
    let want = upsample(&var, size, mode)?;
    let name = format!("{mode:?} {dtype:?} {dims:?} to {size:?}");
    let tolerance = Tolerance::for_op(accumulator(dtype), dtype, 4);
    let outputs = [(0, dtype, want.dims().to_vec())];
    let got = host.run(&launch::forward(&g, dtype)?.script(), &[xs], &outputs)?;
    assert_close(&name, &got[0], &want, tolerance)?;
    let grads = (&want * &grad)?.sum_all()?.backward()?;
    // A pixel sums as many results as there are for one, and the two around it.
    let terms = (size.0.div_ceil(dims[1]) + 2) * (size.1.div_ceil(dims[2]) + 2);
    let tolerance = Tolerance::for_op(accumulator(dtype), dtype, terms);
    let outputs = [(0, dtype, dims)];
    let got = host.run(&launch::backward(&g, dtype)?.script(), &[&grad], &outputs)?;
    assert_close(&format!("{name} gradient"), &got[0], grads.get(&var).unwrap(), tolerance)
}

#[test]
fn kernels_agree_with_the_cpu() -> Result<()> {
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    let shared = ops.join("../../../vkd-norm/src/ops");
    let source = ops.join("upsample2d/upsample2d.cu");
    let Some(host) = KernelHost::compile(&source, &[&shared], Sanitizer::Memory)? else {
        return Ok(());
    };
    let image = |dims: [usize; 4], dtype| -> Result<Tensor> {
        normal(&[dims[0] + 1, dims[1], dims[2], dims[3]], dtype, 1)?.narrow(0, 1, dims[0])
    };
    for mode in MODES {
        for (dims, size) in [
            ([2, 3, 4, 3], (7, 8)),
            ([1, 1, 1, 1], (3, 1)),
            // Smaller: pixels that no result reads.
            ([2, 9, 11, 2], (2, 3)),
            ([1, 6, 5, 37], (12, 1)),
            ([1, 2, 2, 1], (2, 2)),
        ] {
            check(&host, &image(dims, DType::F32)?, size, mode)?;
        }
        for dtype in [DType::F64, DType::F16, DType::BF16] {
            check(&host, &image([2, 3, 5, 3], dtype)?, (6, 7), mode)?;
        }
        // What has no share in a result is not read: an infinite pixel stays alone.
        let xs = Tensor::new(&[1f32, f32::INFINITY, 2.], &Device::Cpu)?.reshape((1, 3, 1, 1))?;
        let g = geometry("test", &xs, (3, 1), mode)?;
        let outputs = [(0, DType::F32, vec![3])];
        let got = host.run(&launch::forward(&g, DType::F32)?.script(), &[&xs], &outputs)?;
        assert_eq!(got[0].to_vec1::<f32>()?, [1., f32::INFINITY, 2.]);
    }
    Ok(())
}
