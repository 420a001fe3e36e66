//! Identities of whitening that hold for every batch.

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use proptest::prelude::*;
use vkd_norm::{
    Deficient, Moments, Shrinkage, WhitenConfig, WhitenMethod, Whitener, whiten, whiten_with,
};
use vkd_testkit::{
    Tolerance, assert_close, dimension, holds, max_abs_difference, normal, permutation, scale,
    to_f64,
};

/// The three that factor.
fn factored() -> impl Strategy<Value = WhitenMethod> {
    prop_oneof![Just(WhitenMethod::Cholesky), Just(WhitenMethod::Zca), Just(WhitenMethod::Pca)]
}

fn any_method() -> impl Strategy<Value = WhitenMethod> {
    let newton_schulz =
        (1usize..20).prop_map(|iterations| WhitenMethod::NewtonSchulz { iterations });
    prop_oneof![3 => factored(), 1 => newton_schulz]
}

fn shrinkage() -> impl Strategy<Value = Shrinkage> {
    prop_oneof![
        scale(1e-4, 1.).prop_map(Shrinkage::Fixed),
        scale(1e-4, 1.).prop_map(Shrinkage::Absolute),
        Just(Shrinkage::LedoitWolf),
        Just(Shrinkage::Oas),
    ]
}

fn deficient() -> impl Strategy<Value = Deficient> {
    prop_oneof![Just(Deficient::Full), Just(Deficient::Truncate)]
}

/// Correlated channels with a mean.
fn features(rows: usize, channels: usize, seed: u64) -> Result<Tensor> {
    let mix = normal(&[channels, channels], DType::F64, seed ^ 7)?;
    let xs = normal(&[rows, channels], DType::F64, seed)?;
    let mixed = normal(&[rows, channels], DType::F64, seed ^ 3)?.matmul(&mix)?;
    (xs + (mixed * 0.3)?)? + 1.
}

fn centred(xs: &Tensor) -> Result<Tensor> {
    xs.broadcast_sub(&xs.mean_keepdim(0)?)
}

/// `XᵀX / (N - 1)` of the centred rows.
fn covariance(xs: &Tensor) -> Result<Tensor> {
    let xs = centred(&xs.to_dtype(DType::F64)?)?;
    xs.t()?.matmul(&xs)? / (xs.dim(0)?.max(2) - 1) as f64
}

fn eye(n: usize) -> Result<Tensor> {
    Tensor::eye(n, DType::F64, &Device::Cpu)
}

/// The shrunk covariance, from the intensity that the whitener reports.
fn shrunk(s: &Tensor, whitener: &Whitener) -> Result<Tensor> {
    let d = s.dim(0)?;
    let target = match whitener.config().shrinkage {
        Shrinkage::Absolute(_) => 1.,
        _ => (s * eye(d)?)?.sum_all()?.to_scalar::<f64>()? / d as f64,
    };
    let rho = whitener.intensity();
    (s * (1. - rho))? + (eye(d)? * (rho * target))?
}

fn largest(x: &Tensor) -> Result<f64> {
    x.abs()?.max_all()?.to_scalar::<f64>()
}

/// A random rotation or reflection, by Gram-Schmidt on a Gaussian matrix, twice.
fn rotation(n: usize, seed: u64) -> Result<Tensor> {
    let mut rows: Vec<Vec<f64>> = Vec::new();
    for values in to_f64(&normal(&[n, n], DType::F64, seed)?)?.chunks(n) {
        let mut row = values.to_vec();
        for _ in 0..2 {
            for done in &rows {
                let dot: f64 = row.iter().zip(done).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(done).for_each(|(a, b)| *a -= dot * b);
            }
            let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.iter_mut().for_each(|x| *x /= norm);
        }
        rows.push(row);
    }
    Tensor::new(rows.concat(), &Device::Cpu)?.reshape((n, n))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_matrix_inverts_the_shrunk_covariance(
        method in factored(), shrinkage in shrinkage(), rows in 3usize..60, channels in dimension(24), seed: u64,
    ) {
        holds((|| {
            let xs = features(rows, channels, seed)?;
            let config = WhitenConfig { method, shrinkage, deficient: Deficient::Full };
            let whitener = Whitener::new(&Moments::from_rows(&xs, None)?, config)?;
            let (w, s) = (whitener.matrix()?, shrunk(&covariance(&xs)?, &whitener)?);
            // Ledoit and Wolf may estimate an intensity of nearly nothing for a few rows.
            if whitener.rank() < channels || whitener.intensity() < 1e-6 { return Ok(()) }
            let inverse = w.t()?.matmul(&w)?;
            // Entries cancel by the condition number, which norm(S) norm(S⁻¹) bounds.
            let condition = channels as f64 * largest(&s)? * largest(&inverse)?;
            let tolerance = Tolerance { relative: 0., absolute: 1e-14 * channels as f64 * condition.max(1.) };
            assert_close("W S Wᵀ", &w.matmul(&s)?.matmul(&w.t()?)?, &eye(channels)?, tolerance)?;
            assert_close("WᵀW S", &inverse.matmul(&s)?, &eye(channels)?, tolerance)
        })())?;
    }

    #[test]
    fn the_covariance_of_the_result_is_the_one_that_the_matrix_makes(
        method in any_method(), shrinkage in shrinkage(), deficient in deficient(),
        rows in 2usize..60, channels in dimension(24), seed: u64,
    ) {
        holds((|| {
            let xs = features(rows, channels, seed)?;
            let config = WhitenConfig { method, shrinkage, deficient };
            let whitener = Whitener::new(&Moments::from_rows(&xs, None)?, config)?;
            let w = whitener.matrix()?;
            let want = w.matmul(&covariance(&xs)?)?.matmul(&w.t()?)?;
            let tolerance = Tolerance { relative: 0., absolute: 1e-9 };
            assert_close("batch", &covariance(&whiten(&xs, config)?)?, &want, tolerance)?;
            assert_close("given", &covariance(&whiten_with(&xs, &whitener)?)?, &want, tolerance)
        })())?;
    }

    #[test]
    fn without_shrinkage_the_covariance_is_the_identity_on_what_the_rows_span(
        method in factored(), deficient in deficient(), rows in 2usize..50, channels in dimension(24), seed: u64,
        wide: bool,
    ) {
        let (dtype, accuracy) = if wide { (DType::F64, 1e-10) } else { (DType::F32, 1e-5) };
        holds((|| {
            let xs = features(rows, channels, seed)?.to_dtype(dtype)?;
            let config = WhitenConfig { method, shrinkage: Shrinkage::Fixed(0.), deficient };
            let c = covariance(&whiten(&xs, config)?)?;
            // A square Gaussian matrix may be close to singular: rounding then grows with it.
            let accuracy = if rows <= channels + 2 { 1e3 * accuracy } else { accuracy };
            let tolerance = Tolerance { relative: 0., absolute: accuracy };
            assert_close("projection", &c.matmul(&c)?, &c, tolerance)?;
            let rank = (&c * eye(channels)?)?.sum_all()?.to_scalar::<f64>()?;
            let want = channels.min(rows - 1) as f64;
            if (rank - want).abs() > channels as f64 * accuracy { bail!("expected rank {want}, got {rank}") }
            if method != WhitenMethod::Zca {
                let off = (&c - (&c * eye(channels)?)?)?;
                if largest(&off)? > accuracy { bail!("off the diagonal: {:e}", largest(&off)?) }
            }
            Ok(())
        })())?;
    }

    #[test]
    fn a_channel_far_larger_than_the_others_disturbs_none(
        method in factored(), channels in 2usize..24, extra in 2usize..40, seed: u64, spread in scale(1., 1e8),
    ) {
        holds((|| {
            let mut factors = vec![1f64; channels];
            factors[seed as usize % channels] = spread;
            let xs = features(2 * channels + extra, channels, seed)?
                .broadcast_mul(&Tensor::new(factors, &Device::Cpu)?)?;
            let config = WhitenConfig { method, shrinkage: Shrinkage::Fixed(0.), deficient: Deficient::Full };
            let c = covariance(&whiten(&xs, config)?)?;
            // Cholesky takes each channel in its own unit; eigenvectors carry eps times the ratio of deviations.
            let ratio = if method == WhitenMethod::Cholesky { 1. } else { spread };
            let absolute = 1e-10 + 100. * channels as f64 * f64::EPSILON * ratio;
            assert_close("covariance", &c, &eye(channels)?, Tolerance { relative: 0., absolute })
        })())?;
    }

    #[test]
    fn newton_schulz_reaches_its_stated_residual(
        iterations in 1usize..25, shrinkage in shrinkage(), channels in dimension(16), extra in 2usize..40, seed: u64,
    ) {
        holds((|| {
            let xs = features(channels + extra, channels, seed)?;
            let method = WhitenMethod::NewtonSchulz { iterations };
            let config = WhitenConfig { method, shrinkage, deficient: Deficient::Full };
            let moments = Moments::from_rows(&xs, None)?;
            let whitener = Whitener::new(&moments, config)?;
            let (w, s) = (whitener.matrix()?, shrunk(&covariance(&xs)?, &whitener)?);
            let made = max_abs_difference(&w.matmul(&s)?.matmul(&w.t()?)?, &eye(channels)?)?;
            if (made - whitener.residual()).abs() > 1e-10 { bail!("stated {:e}, is {made:e}", whitener.residual()) }
            // Never above one, and each iteration comes closer to ZCA.
            let zca = Whitener::new(&moments, WhitenConfig { method: WhitenMethod::Zca, ..config })?;
            let next = WhitenMethod::NewtonSchulz { iterations: iterations + 1 };
            let next = Whitener::new(&moments, WhitenConfig { method: next, ..config })?;
            let far = |w: &Whitener| (w.matrix()? - zca.matrix()?)?.sqr()?.sum_all()?.to_scalar::<f64>();
            if made > 1. + 1e-10 || far(&next)? > far(&whitener)? * (1. + 1e-9) + 1e-16 {
                bail!("residual {made:e}, distances {:e} then {:e}", far(&whitener)?, far(&next)?)
            }
            Ok(())
        })())?;
    }

    #[test]
    fn zca_is_the_whitening_closest_to_its_input(
        shrinkage in shrinkage(), rows in 3usize..40, channels in dimension(12), seed: u64,
    ) {
        holds((|| {
            let xs = features(rows, channels, seed)?;
            let zca = WhitenConfig { method: WhitenMethod::Zca, shrinkage, deficient: Deficient::Full };
            let input = centred(&xs)?;
            let far = |y: &Tensor| (y - &input)?.sqr()?.sum_all()?.to_scalar::<f64>();
            let y = whiten(&xs, zca)?;
            let others = [
                whiten(&xs, WhitenConfig { method: WhitenMethod::Cholesky, ..zca })?,
                whiten(&xs, WhitenConfig { method: WhitenMethod::Pca, ..zca })?,
                y.matmul(&rotation(channels, seed ^ 1)?)?,
                y.matmul(&rotation(channels, seed ^ 2)?)?,
            ];
            for other in others {
                // Without shrinkage the optimum is that of the sample; shrunk, the two covariances still commute.
                if far(&y)? > far(&other)? * (1. + 1e-10) { bail!("{} over {}", far(&y)?, far(&other)?) }
            }
            Ok(())
        })())?;
    }

    #[test]
    fn zca_turns_with_its_input(
        shrinkage in shrinkage(), deficient in deficient(), rows in 2usize..40, channels in dimension(12), seed: u64,
    ) {
        holds((|| {
            let xs = features(rows, channels, seed)?;
            let turn = rotation(channels, seed ^ 1)?;
            let config = WhitenConfig { method: WhitenMethod::Zca, shrinkage, deficient };
            let after = whiten(&xs, config)?.matmul(&turn)?;
            assert_close("turned", &whiten(&xs.matmul(&turn)?, config)?, &after, Tolerance::relative(1e-8))
        })())?;
    }

    #[test]
    fn the_order_of_the_batch_does_not_matter(
        method in any_method(), shrinkage in shrinkage(), rows in 2usize..40, channels in dimension(12), seed: u64,
    ) {
        holds((|| {
            let xs = features(rows, channels, seed)?;
            let order = permutation(rows, seed ^ 5)?;
            let config = WhitenConfig { method, shrinkage, deficient: Deficient::Full };
            let after = whiten(&xs, config)?.index_select(&order, 0)?;
            let before = whiten(&xs.index_select(&order, 0)?, config)?;
            assert_close("order", &before, &after, Tolerance::relative(1e-8))
        })())?;
    }

    #[test]
    fn shrinkage_in_proportion_ignores_the_unit(
        method in any_method(), fixed in scale(1e-6, 1.), rows in 2usize..40, channels in dimension(12), seed: u64,
        unit in scale(1e-30, 1e30),
    ) {
        holds((|| {
            let xs = features(rows, channels, seed)?;
            for shrinkage in [Shrinkage::Fixed(fixed), Shrinkage::LedoitWolf, Shrinkage::Oas] {
                let config = WhitenConfig { method, shrinkage, deficient: Deficient::Full };
                let want = whiten(&xs, config)?;
                assert_close("unit", &whiten(&(&xs * unit)?, config)?, &want, Tolerance::relative(1e-8))?;
            }
            Ok(())
        })())?;
    }

    #[test]
    fn a_finite_batch_gives_finite_values_and_gradients(
        method in any_method(), shrinkage in shrinkage(), bare: bool, deficient in deficient(),
        rows in 1usize..20, channels in dimension(12), seed: u64, top in scale(1e-24, 1e29), trouble in 0usize..6,
    ) {
        holds((|| {
            let xs = features(rows, channels, seed)?;
            let (row, column) = (xs.narrow(0, 0, 1)?, xs.narrow(1, 0, 1)?);
            let one = Tensor::full(1f64, (rows, 1), &Device::Cpu)?;
            let xs = match trouble {
                0 => xs,
                // Equal rows, equal channels, a constant one, all constant, one 1e8 times the others.
                1 => Tensor::cat(&[&xs, &row, &row], 0)?,
                2 => Tensor::cat(&[&column, &xs, &column], 1)?,
                3 => Tensor::cat(&[&one, &xs], 1)?,
                4 => row.broadcast_as(xs.shape())?.contiguous()?,
                _ => Tensor::cat(&[&xs, &(&column * 1e8)?], 1)?,
            };
            let xs = Var::from_tensor(&(xs * top)?.to_dtype(DType::F32)?)?;
            let shrinkage = if bare { Shrinkage::Fixed(0.) } else { shrinkage };
            let ys = whiten(&xs, WhitenConfig { method, shrinkage, deficient })?;
            if !to_f64(&ys)?.iter().all(|y| y.is_finite()) { bail!("value not finite") }
            // Not the plain sum: it is 0 whatever the batch, and so is its gradient.
            let cotangent = normal(ys.dims(), DType::F32, seed ^ 9)?;
            match (ys * cotangent)?.sum_all()?.backward() {
                Ok(grads) => match grads.get(&xs) {
                    Some(grad) if to_f64(grad)?.iter().all(|g| g.is_finite()) => Ok(()),
                    _ => bail!("gradient not finite"),
                },
                // The one error: components in no order.
                Err(e) if method == WhitenMethod::Pca && e.to_string().contains("eigengap") => Ok(()),
                Err(e) => Err(e),
            }
        })())?;
    }
}
