//! The kernels of whitening on the host, with candle's own products between them, against the CPU op.

use super::launch::Plan;
use super::whiten;
use crate::ops::program::{Program, Runner};
use crate::{Deficient, Shrinkage, WhitenConfig, WhitenMethod};
use candle_core::{DType, Device, Result, Tensor, Var};
use std::path::Path;
use vkd_testkit::{KernelHost, Sanitizer, Tolerance, assert_close, normal};

struct Host(KernelHost);

impl Runner for Host {
    fn run(&self, program: &Program, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        self.0.run(&program.script(), inputs, &program.outputs())
    }
}

fn host(sanitizer: Sanitizer) -> Result<Option<Host>> {
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    Ok(KernelHost::compile(&ops.join("whiten/whiten.cu"), &[&ops], sanitizer)?.map(Host))
}

fn config(shrinkage: Shrinkage) -> WhitenConfig {
    WhitenConfig { method: WhitenMethod::Cholesky, shrinkage, deficient: Deficient::Full }
}

/// Both passes against the CPU's in f64, as far as the type can tell.
fn check(host: &Host, xs: &Tensor, shrinkage: Shrinkage, digits: f64) -> Result<()> {
    let (rows, channels) = xs.dims2()?;
    let plan = Plan::new(config(shrinkage), rows, channels).unwrap();
    let grad = normal(&[rows, channels], xs.dtype(), 7)?;
    let (last, kept) = plan.forward(host, xs)?;
    let ys = last.run(host)?.reshape(xs.shape())?;
    let dxs = plan.backward(host, &kept, &grad)?;
    let var = Var::from_tensor(&xs.to_dtype(DType::F64)?)?;
    let want = whiten(&var, config(shrinkage))?;
    let grads = (&want * grad.to_dtype(DType::F64)?)?.sum_all()?.backward()?;
    let rounding = match xs.dtype() {
        DType::F64 => 0.,
        DType::F32 => f64::from(f32::EPSILON),
        DType::F16 => 2f64.powi(-10),
        _ => 2f64.powi(-7),
    };
    let tolerance = Tolerance::relative(digits.max(rounding));
    let what = format!("{:?} {rows} x {channels} {shrinkage:?}", xs.dtype());
    assert_eq!((ys.dtype(), dxs.dtype()), (xs.dtype(), xs.dtype()));
    assert_close(&what, &ys.to_dtype(DType::F64)?, &want, tolerance)?;
    let of = format!("{what} gradient");
    assert_close(&of, &dxs.to_dtype(DType::F64)?, grads.get(&var).unwrap(), tolerance)
}

/// Correlated rows about a mean that start at an offset in their storage.
fn features(rows: usize, channels: usize, dtype: DType) -> Result<Tensor> {
    let xs = normal(&[rows + 1, channels], DType::F64, 1)?;
    let mix = (normal(&[channels, channels], DType::F64, 2)? * 0.3)?;
    ((&xs + xs.matmul(&mix)?)? + 0.7)?.to_dtype(dtype)?.narrow(0, 1, rows)
}

#[test]
fn kernels_agree_with_the_cpu() -> Result<()> {
    let Some(host) = host(Sanitizer::Memory)? else { return Ok(()) };
    for (rows, channels) in [(4, 1), (9, 3), (33, 7), (5, 7), (19, 33), (80, 70)] {
        for shrinkage in [Shrinkage::Fixed(1e-2), Shrinkage::Absolute(1e-2)] {
            check(&host, &features(rows, channels, DType::F64)?, shrinkage, 1e-10)?;
        }
    }
    // Condition numbers of 1e7 cost as many digits.
    check(&host, &features(9, 40, DType::F64)?, Shrinkage::Fixed(1e-6), 1e-8)?;
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        check(&host, &features(21, 6, dtype)?, Shrinkage::Fixed(0.1), 1e-10)?;
    }
    // Nothing spread: zero, and so is its gradient. A mean far above the deviation costs its own digits only.
    let level = Tensor::full(2.5f64, (4, 5), &Device::Cpu)?;
    check(&host, &level, Shrinkage::Fixed(1e-2), 0.)?;
    check(&host, &normal(&[1, 5], DType::F64, 3)?, Shrinkage::Fixed(1e-2), 0.)?;
    let far = (features(21, 6, DType::F64)? + 1e6)?;
    check(&host, &far, Shrinkage::Fixed(1e-2), 1e-8)
}

#[test]
fn what_the_rows_decide_stays_on_the_host() {
    let served = |config| Plan::new(config, 50, 8).is_some();
    let base = WhitenConfig::default();
    assert!(served(base));
    for shrinkage in [
        Shrinkage::Fixed(0.),
        Shrinkage::Fixed(1e-13),
        Shrinkage::Absolute(0.),
        Shrinkage::LedoitWolf,
        Shrinkage::Oas,
    ] {
        assert!(!served(WhitenConfig { shrinkage, ..base }), "{shrinkage:?}");
    }
    for deficient in [Deficient::Truncate, Deficient::Refuse] {
        assert!(!served(WhitenConfig { deficient, ..base }), "{deficient:?}");
    }
    for method in
        [WhitenMethod::Zca, WhitenMethod::Pca, WhitenMethod::NewtonSchulz { iterations: 5 }]
    {
        assert!(!served(WhitenConfig { method, ..base }), "{method:?}");
    }
}

#[test]
fn no_two_threads_meet() -> Result<()> {
    let Some(host) = host(Sanitizer::Races)? else { return Ok(()) };
    check(&host, &features(40, 70, DType::F64)?, Shrinkage::Fixed(1e-2), 1e-10)
}
