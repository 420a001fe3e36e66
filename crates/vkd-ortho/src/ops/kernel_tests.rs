//! The kernels of the three maps on the host, with candle's own products between them, against the CPU ops.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use crate::stiefel_residual;
use candle_core::{DType, Result, Tensor, Var};
use std::path::Path;
use vkd_norm::program::{Last, Program, Runner};
use vkd_testkit::{KernelHost, Sanitizer, Tolerance, assert_close, normal, normal_scaled};

/// Kernels that run on the host.
pub(super) struct Host(KernelHost);

impl Runner for Host {
    fn run(&self, program: &Program, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        self.0.run(&program.script(), inputs, &program.outputs())
    }
}

/// The kernels of `ops/<op>/<op>.cu`.
pub(super) fn host(op: &str, sanitizer: Sanitizer) -> Result<Option<Host>> {
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    let shared = ops.join("../../../vkd-norm/src/ops");
    Ok(KernelHost::compile(&ops.join(op).join(format!("{op}.cu")), &[&shared], sanitizer)?
        .map(Host))
}

/// A map and its gradient, for a parameter and the gradient of its frame, in two ways.
pub(super) struct Pair<'a> {
    pub(super) name: &'a str,
    pub(super) kernels: &'a dyn Fn(&Tensor, &Tensor) -> Result<[Tensor; 2]>,
    pub(super) cpu: fn(&Tensor) -> Result<Tensor>,
}

impl Pair<'_> {
    /// Frame and gradient of `raw`, which must come near the CPU's in f64 as far as its own type can tell.
    pub(super) fn check(&self, raw: &Tensor, digits: f64) -> Result<()> {
        let dtype = raw.dtype();
        let grad = normal(raw.dims(), dtype, 9)?;
        let [q, dx] = (self.kernels)(raw, &grad)?;
        assert_eq!((q.dtype(), q.dims()), (dtype, raw.dims()));
        let var = Var::from_tensor(&raw.to_dtype(DType::F64)?)?;
        let want = (self.cpu)(&var)?;
        let grads = (&want * grad.to_dtype(DType::F64)?)?.sum_all()?.backward()?;
        let rounding = match dtype {
            DType::F64 => 0.,
            DType::F32 => f64::from(f32::EPSILON),
            DType::F16 => 2f64.powi(-10),
            _ => 2f64.powi(-7),
        };
        let tolerance = Tolerance::relative(digits.max(rounding));
        let what = format!("{} {dtype:?} {:?}", self.name, raw.dims());
        assert_close(&what, &q.to_dtype(DType::F64)?, &want, tolerance)?;
        let of = format!("{what} gradient");
        assert_close(&of, &dx.to_dtype(DType::F64)?, grads.get(&var).unwrap(), tolerance)
    }

    /// Odd sizes, batches, types, an offset in the storage, and what must not be read.
    pub(super) fn check_all(&self, scales: &[f64]) -> Result<()> {
        for dims in
            [vec![1, 1], vec![5, 1], vec![7, 7], vec![67, 33], vec![3, 21, 10], vec![2, 2, 9, 4]]
        {
            for scale in scales {
                self.check(&normal_scaled(&dims, DType::F64, 1, *scale)?, 1e-11)?;
            }
        }
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let raw = normal_scaled(&[4, 13, 6], dtype, 2, 0.3)?.narrow(0, 1, 3)?;
            self.check(&raw, 1e-11)?;
        }
        self.check(&Tensor::zeros((6, 3), DType::F64, &candle_core::Device::Cpu)?, 1e-14)?;
        let mut rows = vec![vec![f64::NAN; 3]; 5];
        (0..5).for_each(|i| (0..i.min(3)).for_each(|j| rows[i][j] = 0.1 * (i + j) as f64));
        self.check(&Tensor::new(rows, &candle_core::Device::Cpu)?, 1e-12)
    }
}

/// The frame that the last program of a forward pass writes.
pub(super) fn frame(last: &Last, host: &Host, like: &Tensor) -> Result<Tensor> {
    last.run(host)?.reshape(like.shape())
}

/// The laws of a type at sizes where the core is large against the rest, for entries about as large as `scales`.
pub(super) fn stays(
    dtype: DType,
    all: &[[usize; 2]],
    scales: &[f64],
    map: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<()> {
    let law = if dtype == DType::F64 { 1e-13 } else { 1e-6 };
    for dims in all {
        for scale in scales {
            let residual = stiefel_residual(&map(&normal_scaled(dims, dtype, 2, *scale)?)?)?;
            assert!(residual <= law, "{dims:?} {dtype:?} at {scale}: {residual:e}");
        }
    }
    Ok(())
}
