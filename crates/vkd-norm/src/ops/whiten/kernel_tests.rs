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

fn config(method: WhitenMethod, shrinkage: Shrinkage) -> WhitenConfig {
    WhitenConfig { method, shrinkage, deficient: Deficient::Full }
}

fn cholesky(shrinkage: Shrinkage) -> WhitenConfig {
    config(WhitenMethod::Cholesky, shrinkage)
}

/// Both passes on the host: rows and gradient.
fn passes(host: &Host, xs: &Tensor, config: WhitenConfig, grad: &Tensor) -> Result<[Tensor; 2]> {
    let (rows, channels) = xs.dims2()?;
    let plan = Plan::new(config, rows, channels).unwrap();
    let (last, kept) = plan.forward(host, xs)?;
    Ok([last.run(host)?.reshape(xs.shape())?, plan.backward(host, &kept, grad)?])
}

/// Both passes against the CPU's in f64, as far as the type can tell.
fn check(host: &Host, xs: &Tensor, config: WhitenConfig, digits: f64) -> Result<()> {
    let (rows, channels) = xs.dims2()?;
    let grad = normal(&[rows, channels], xs.dtype(), 7)?;
    let [ys, dxs] = passes(host, xs, config, &grad)?;
    let var = Var::from_tensor(&xs.to_dtype(DType::F64)?)?;
    let want = whiten(&var, config)?;
    let grads = (&want * grad.to_dtype(DType::F64)?)?.sum_all()?.backward()?;
    let rounding = match xs.dtype() {
        DType::F64 => 0.,
        DType::F32 => f64::from(f32::EPSILON),
        DType::F16 => 2f64.powi(-10),
        _ => 2f64.powi(-7),
    };
    let tolerance = Tolerance::relative(digits.max(rounding));
    let (method, shrinkage) = (config.method, config.shrinkage);
    let what = format!("{:?} {rows} x {channels} {method:?} {shrinkage:?}", xs.dtype());
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
            check(&host, &features(rows, channels, DType::F64)?, cholesky(shrinkage), 1e-10)?;
        }
    }
    // Condition numbers of 1e7 cost as many digits.
    check(&host, &features(9, 40, DType::F64)?, cholesky(Shrinkage::Fixed(1e-6)), 1e-8)?;
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        check(&host, &features(21, 6, dtype)?, cholesky(Shrinkage::Fixed(0.1)), 1e-10)?;
    }
    // A mean far above the deviation costs its own digits only.
    let far = (features(21, 6, DType::F64)? + 1e6)?;
    check(&host, &far, cholesky(Shrinkage::Fixed(1e-2)), 1e-8)
}

const POLYNOMIAL: WhitenMethod = WhitenMethod::NewtonSchulz { iterations: 5 };

/// One compilation of the kernels serves all that is short.
#[test]
fn so_do_those_of_the_other_methods() -> Result<()> {
    let Some(host) = host(Sanitizer::Memory)? else { return Ok(()) };
    methods_agree(&host)?;
    estimates_agree(&host)?;
    rows_without_spread_give_zero(&host)?;
    what_the_cpu_refuses_is_nan(&host)
}

fn methods_agree(host: &Host) -> Result<()> {
    let fixed = Shrinkage::Fixed(1e-2);
    for (rows, channels) in [(4, 1), (5, 7), (13, 6)] {
        let xs = features(rows, channels, DType::F64)?;
        for method in [WhitenMethod::Zca, POLYNOMIAL] {
            check(host, &xs, config(method, fixed), 1e-10)?;
        }
        // Components that rows do not span are no function of them, and have no gradient.
        if rows > channels {
            check(host, &xs, config(WhitenMethod::Pca, fixed), 1e-9)?;
        }
    }
    for method in [WhitenMethod::Zca, WhitenMethod::Pca, POLYNOMIAL] {
        let absolute = config(method, Shrinkage::Absolute(1e-2));
        check(host, &features(9, 3, DType::F32)?, absolute, 1e-7)?;
    }
    // Newton-Schulz takes any shrinkage, and one iteration.
    for (iterations, shrinkage) in [(1, Shrinkage::Fixed(0.)), (2, Shrinkage::Absolute(0.))] {
        let method = WhitenMethod::NewtonSchulz { iterations };
        check(host, &features(5, 7, DType::F64)?, config(method, shrinkage), 1e-10)?;
    }
    let xs = features(30, 4, DType::F64)?;
    check(host, &xs, config(WhitenMethod::Pca, Shrinkage::Fixed(1.)), 1e-9)
}

const ESTIMATES: [Shrinkage; 2] = [Shrinkage::LedoitWolf, Shrinkage::Oas];

fn estimates_agree(host: &Host) -> Result<()> {
    for shrinkage in ESTIMATES {
        for (rows, channels) in [(4, 1), (3, 5), (40, 6)] {
            let xs = features(rows, channels, DType::F64)?;
            check(host, &xs, cholesky(shrinkage), 1e-9)?;
        }
    }
    let xs = features(17, 5, DType::F64)?;
    check(host, &xs, config(WhitenMethod::Zca, Shrinkage::LedoitWolf), 1e-9)?;
    check(host, &xs, config(WhitenMethod::Pca, Shrinkage::Oas), 1e-9)?;
    check(host, &xs, config(POLYNOMIAL, Shrinkage::LedoitWolf), 1e-9)?;
    check(host, &features(17, 5, DType::BF16)?, cholesky(Shrinkage::LedoitWolf), 1e-9)?;
    // Estimates that are cut off no longer move.
    check(host, &normal(&[6, 9], DType::F64, 4)?, cholesky(Shrinkage::Oas), 1e-9)
}

fn rows_without_spread_give_zero(host: &Host) -> Result<()> {
    let level = Tensor::full(2.5f64, (4, 5), &Device::Cpu)?;
    let one = normal(&[1, 5], DType::F64, 3)?;
    check(host, &one, cholesky(Shrinkage::Fixed(1e-2)), 0.)?;
    check(host, &one, cholesky(Shrinkage::Oas), 0.)?;
    for method in [WhitenMethod::Cholesky, WhitenMethod::Zca, WhitenMethod::Pca, POLYNOMIAL] {
        check(host, &level, config(method, Shrinkage::LedoitWolf), 0.)?;
        // A target of its own lifts them all the same; components are then no function of the rows.
        if method != WhitenMethod::Pca {
            check(host, &level, config(method, Shrinkage::Absolute(1e-2)), 1e-12)?;
        }
    }
    check(host, &level, config(WhitenMethod::Zca, Shrinkage::Fixed(1e-2)), 0.)
}

fn what_the_cpu_refuses_is_nan(host: &Host) -> Result<()> {
    let is_nan = |x: &Tensor| -> Result<bool> {
        Ok(x.flatten_all()?.to_vec1::<f64>()?.iter().any(|x| x.is_nan()))
    };
    let grad = normal(&[5, 7], DType::F64, 7)?;
    // Components that no rows decide: rows are whitened, and have no gradient.
    let xs = features(5, 7, DType::F64)?;
    let principal = config(WhitenMethod::Pca, Shrinkage::Fixed(1e-2));
    let [ys, dxs] = passes(host, &xs, principal, &grad)?;
    assert_close("components", &ys, &whiten(&xs, principal)?, Tolerance::relative(1e-9))?;
    assert!(is_nan(&dxs)?);
    // Fourth powers that leave f64, and a value that is none.
    let far = (&xs * 1e90)?;
    assert!(whiten(&far, cholesky(Shrinkage::Oas)).is_err());
    assert!(is_nan(&passes(host, &far, cholesky(Shrinkage::Oas), &grad)?[0])?);
    let mut values = xs.flatten_all()?.to_vec1::<f64>()?;
    values[9] = f64::NAN;
    let broken = Tensor::from_vec(values, (5, 7), &Device::Cpu)?;
    for method in [WhitenMethod::Cholesky, WhitenMethod::Zca, POLYNOMIAL] {
        let [ys, dxs] = passes(host, &broken, config(method, Shrinkage::LedoitWolf), &grad)?;
        assert!(is_nan(&ys)? && is_nan(&dxs)?, "{method:?}");
    }
    Ok(())
}

#[test]
fn what_the_rows_decide_stays_on_the_host() {
    let served = |config, channels| Plan::new(config, 50, channels).is_some();
    let factors = [WhitenMethod::Cholesky, WhitenMethod::Zca, WhitenMethod::Pca];
    for method in factors {
        for shrinkage in [Shrinkage::Fixed(1e-4), Shrinkage::LedoitWolf, Shrinkage::Oas] {
            assert!(served(config(method, shrinkage), 8), "{method:?} {shrinkage:?}");
            for deficient in [Deficient::Truncate, Deficient::Refuse] {
                assert!(!served(WhitenConfig { deficient, ..config(method, shrinkage) }, 8));
            }
        }
        for shrinkage in [Shrinkage::Fixed(0.), Shrinkage::Fixed(1e-13), Shrinkage::Absolute(0.)] {
            assert!(!served(config(method, shrinkage), 8), "{method:?} {shrinkage:?}");
        }
        let wide = config(method, Shrinkage::Fixed(1e-4));
        assert_eq!(served(wide, 1025), method == WhitenMethod::Cholesky);
    }
    for deficient in [Deficient::Full, Deficient::Truncate, Deficient::Refuse] {
        let all = WhitenConfig { deficient, ..config(POLYNOMIAL, Shrinkage::Fixed(0.)) };
        assert_eq!(served(all, 8), deficient != Deficient::Refuse);
    }
}

#[test]
#[ignore = "several seconds on the host; `cargo xtask ci --full` runs it"]
fn all_configurations_agree_with_the_cpu() -> Result<()> {
    let Some(host) = host(Sanitizer::Memory)? else { return Ok(()) };
    for shrinkage in [Shrinkage::Fixed(1e-2), Shrinkage::LedoitWolf, Shrinkage::Oas] {
        for (rows, channels) in [(1, 4), (9, 3), (19, 12), (6, 11)] {
            let xs = features(rows, channels, DType::F64)?;
            for method in [WhitenMethod::Cholesky, WhitenMethod::Zca, POLYNOMIAL] {
                check(&host, &xs, config(method, shrinkage), 1e-9)?;
            }
            if rows > channels {
                check(&host, &xs, config(WhitenMethod::Pca, shrinkage), 1e-9)?;
            }
        }
    }
    for (rows, channels) in [(19, 33), (90, 70)] {
        let xs = features(rows, channels, DType::F64)?;
        for shrinkage in [Shrinkage::Fixed(1e-3), Shrinkage::LedoitWolf] {
            check(&host, &xs, config(WhitenMethod::Zca, shrinkage), 1e-9)?;
        }
    }
    let xs = features(90, 70, DType::F64)?;
    check(&host, &xs, config(WhitenMethod::Pca, Shrinkage::Fixed(1e-2)), 1e-8)?;
    check(&host, &xs, config(POLYNOMIAL, Shrinkage::Oas), 1e-10)
}

#[test]
fn no_two_threads_meet() -> Result<()> {
    let Some(host) = host(Sanitizer::Races)? else { return Ok(()) };
    check(&host, &features(40, 70, DType::F64)?, cholesky(Shrinkage::Fixed(1e-2)), 1e-10)?;
    let xs = features(9, 5, DType::F64)?;
    check(&host, &xs, config(WhitenMethod::Zca, Shrinkage::LedoitWolf), 1e-9)?;
    check(&host, &xs, config(POLYNOMIAL, Shrinkage::Oas), 1e-9)
}
