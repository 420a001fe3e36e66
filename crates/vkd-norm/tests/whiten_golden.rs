//! ZCA, PCA and Newton-Schulz against recorded results of other programs, value and gradient; Cholesky is in `golden.rs`.

use candle_core::{DType, Result, Tensor, Var, bail};
use vkd_norm::{
    Deficient, Moments, Shrinkage, WhitenConfig, WhitenMethod, Whitener, whiten, whiten_with,
};
use vkd_testkit::{Golden, Tolerance, assert_close};

const CASES: [&str; 3] = ["n64", "n16", "n10"];

fn config(golden: &Golden, method: WhitenMethod, deficient: Deficient) -> Result<WhitenConfig> {
    let eps = golden.get("eps")?.to_scalar::<f64>()?;
    Ok(WhitenConfig { method, shrinkage: Shrinkage::Absolute(eps), deficient })
}

/// Output and gradient of `sum(whiten(x) * cot)`.
fn run(x: &Tensor, cot: &Tensor, config: WhitenConfig, dtype: DType) -> Result<(Tensor, Tensor)> {
    let var = Var::from_tensor(&x.to_dtype(dtype)?)?;
    let y = whiten(&var, config)?;
    let grads = (&y * cot.to_dtype(dtype)?)?.sum_all()?.backward()?;
    let Some(grad) = grads.get(&var) else { bail!("no gradient") };
    Ok((y.detach(), grad.clone()))
}

#[test]
fn zca() -> Result<()> {
    let golden = Golden::open("whitening")?;
    for case in CASES {
        let get = |key: &str| golden.get(&format!("{case}.{key}"));
        // On the batch itself nothing lies in the directions that truncation leaves out.
        for deficient in [Deficient::Full, Deficient::Truncate] {
            let config = config(&golden, WhitenMethod::Zca, deficient)?;
            // Condition numbers up to 4e6 set the f64 figures; in f32 only the storage rounds.
            for (dtype, tolerance) in [(DType::F64, 1e-9), (DType::F32, 1e-6)] {
                let what = format!("{case} {deficient:?} {dtype:?}");
                let (y, grad) = run(&get("x")?, &get("cot")?, config, dtype)?;
                let tolerance = Tolerance::relative(tolerance);
                assert_close(&what, &y, &get("zca.y")?, tolerance)?;
                assert_close(&format!("{what} gradient"), &grad, &get("zca.grad_x")?, tolerance)?;
            }
        }
    }
    Ok(())
}

#[test]
fn pca() -> Result<()> {
    let golden = Golden::open("whitening")?;
    for case in CASES {
        let get = |key: &str| golden.get(&format!("{case}.{key}"));
        for deficient in [Deficient::Full, Deficient::Truncate] {
            let config = config(&golden, WhitenMethod::Pca, deficient)?;
            let y = whiten(&get("x")?.to_dtype(DType::F64)?, config)?;
            assert_close(case, &y, &get("pca.y")?, Tolerance::relative(1e-9))?;
        }
    }
    Ok(())
}

#[test]
fn components_and_newton_schulz_with_their_gradients() -> Result<()> {
    let golden = Golden::open("norm_loss")?;
    let get = |key: &str| golden.get(&format!("whiten.{key}"));
    let shrinkage = Shrinkage::Absolute(get("eps")?.to_scalar::<f64>()?);
    for (name, method) in [
        ("pca", WhitenMethod::Pca),
        ("iternorm5", WhitenMethod::NewtonSchulz { iterations: 5 }),
        ("iternorm9", WhitenMethod::NewtonSchulz { iterations: 9 }),
    ] {
        for deficient in [Deficient::Full, Deficient::Truncate] {
            let config = WhitenConfig { method, shrinkage, deficient };
            for (dtype, tolerance) in [(DType::F64, 1e-11), (DType::F32, 1e-6)] {
                let (y, grad) = run(&get("x")?, &get("cot")?, config, dtype)?;
                let what = format!("{name} {deficient:?} {dtype:?}");
                let allowed = Tolerance::relative(tolerance);
                assert_close(&what, &y, &get(&format!("{name}.y"))?, allowed)?;
                let want = get(&format!("{name}.grad"))?;
                assert_close(&format!("{what} gradient"), &grad, &want, allowed)?;
            }
        }
    }
    Ok(())
}

#[test]
fn matrices_mean_and_covariance_from_moments() -> Result<()> {
    let golden = Golden::open("whitening")?;
    for case in CASES {
        let get = |key: &str| golden.get(&format!("{case}.{key}"));
        let x = get("x")?.to_dtype(DType::F64)?;
        let moments = Moments::from_rows(&x, None)?;
        let mean = Tensor::new(moments.mean(), x.device())?;
        assert_close("mean", &mean, &get("mean")?.flatten_all()?, Tolerance::relative(1e-14))?;
        let covariance = moments.covariance(true)?;
        assert_close("covariance", &covariance, &get("cov")?, Tolerance::relative(1e-13))?;
        for (name, method) in [
            ("cholesky", WhitenMethod::Cholesky),
            ("zca", WhitenMethod::Zca),
            ("pca", WhitenMethod::Pca),
        ] {
            let whitener = Whitener::new(&moments, config(&golden, method, Deficient::Full)?)?;
            let y = whiten_with(&x, &whitener)?;
            assert_close(name, &y, &get(&format!("{name}.y"))?, Tolerance::relative(1e-9))?;
            // In n10 several directions share the eigenvalue eps, where the recorded basis is arbitrary.
            if name != "pca" || case != "n10" {
                let w = get(&format!("{name}.w"))?;
                assert_close(name, &whitener.matrix()?, &w, Tolerance::relative(1e-9))?;
            }
            // Measured in f64 from entries that cancel by the condition number.
            assert!(
                whitener.residual() < 4. * 4e6 * f64::EPSILON,
                "{name} {case}: {:e}",
                whitener.residual()
            );
            assert_eq!(whitener.rank(), 16);
        }
    }
    Ok(())
}
