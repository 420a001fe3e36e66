//! Moments: merged, shifted, decayed, masked, kept in a file; and whitenings made of them.

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use proptest::prelude::*;
use vkd_norm::{
    Context, Deficient, Moments, Normalizer, Shrinkage, WhitenConfig, WhitenMethod, Whitener,
    whiten, whiten_with,
};
use vkd_testkit::{Tolerance, assert_close, dimension, gradcheck, holds, normal, scale, to_f64};

/// Deviations of about 1 around a mean of about `mean`.
fn features(rows: usize, channels: usize, seed: u64, mean: f64) -> Result<Tensor> {
    let means = (normal(&[1, channels], DType::F64, seed ^ 9)? * mean)?;
    normal(&[rows, channels], DType::F64, seed)?.broadcast_add(&means)
}

/// Equal to rounding: `mean` is what the values were rounded at.
fn same(what: &str, got: &Moments, want: &Moments, mean: f64) -> Result<()> {
    let vector = |m: &Moments| Tensor::new(m.mean(), &Device::Cpu);
    if (got.count() - want.count()).abs() > 1e-12 * want.count() {
        bail!("{what}: expected {} rows, got {}", want.count(), got.count())
    }
    // Sums of up to a hundred terms; a mean that is off by its own rounding moves nothing else.
    let absolute = 64. * f64::EPSILON * (1. + mean);
    assert_close(what, &vector(got)?, &vector(want)?, Tolerance { relative: 0., absolute })?;
    let tolerance = Tolerance::relative(1e-13 + 16. * f64::EPSILON * mean);
    assert_close(what, &got.covariance(false)?, &want.covariance(false)?, tolerance)?;
    // The two higher sums show in the intensity of Ledoit and Wolf.
    let config = WhitenConfig { shrinkage: Shrinkage::LedoitWolf, ..Default::default() };
    let intensity = |m| Ok::<_, candle_core::Error>(Whitener::new(m, config)?.intensity());
    let (got, want) = (intensity(got)?, intensity(want)?);
    if (got - want).abs() > 1e-11 + 1e3 * f64::EPSILON * mean {
        bail!("{what}: expected intensity {want}, got {got}")
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn merged_halves_are_the_whole(
        one in 1usize..40, other in 1usize..40, channels in dimension(12), seed: u64, mean in scale(1e-3, 1e6),
    ) {
        holds((|| {
            let xs = features(one + other, channels, seed, mean)?;
            let mut half = Moments::from_rows(&xs.narrow(0, 0, one)?, None)?;
            half.merge(&Moments::from_rows(&xs.narrow(0, one, other)?, None)?)?;
            let whole = Moments::from_rows(&xs, None)?;
            same("halves", &half, &whole, mean)?;
            // One row at a time, into nothing.
            let mut stream = Moments::new(channels)?;
            for row in 0..one + other {
                stream.merge(&Moments::from_rows(&xs.narrow(0, row, 1)?, None)?)?;
            }
            same("stream", &stream, &whole, mean)
        })())?;
    }

    #[test]
    fn sums_about_a_shift_add_up(
        one in 1usize..40, other in 1usize..40, channels in dimension(12), seed: u64, mean in scale(1e-3, 1e6),
        off in -2f64..2.,
    ) {
        holds((|| {
            let xs = features(one + other, channels, seed, mean)?;
            let parts = [xs.narrow(0, 0, one)?, xs.narrow(0, one, other)?];
            let parts = [Moments::from_rows(&parts[0], None)?, Moments::from_rows(&parts[1], None)?];
            // Near the mean, as one worker's mean would be.
            let shift: Vec<f64> = parts[0].mean().iter().map(|m| m + off).collect();
            let total: Vec<f64> = parts[0].to_sums(&shift)?.iter().zip(parts[1].to_sums(&shift)?)
                .map(|(a, b)| a + b).collect();
            assert_eq!(total.len(), channels * channels + 2 * channels + 3);
            same("sums", &Moments::from_sums(&total, &shift)?, &Moments::from_rows(&xs, None)?, mean)
        })())?;
    }

    #[test]
    fn a_masked_row_is_not_there(rows in 1usize..40, channels in dimension(12), seed: u64) {
        holds((|| {
            let xs = features(rows, channels, seed, 1.)?;
            let kept: Vec<u8> = (0..rows).map(|i| u8::from((seed >> (i % 64)) & 1 == 1)).collect();
            let index: Vec<u32> = (0..rows as u32).filter(|&i| kept[i as usize] != 0).collect();
            let masked = Moments::from_rows(&xs, Some(&Tensor::new(kept, &Device::Cpu)?))?;
            let want = if index.is_empty() {
                Moments::new(channels)?
            } else {
                Moments::from_rows(&xs.index_select(&Tensor::new(index, &Device::Cpu)?, 0)?, None)?
            };
            assert_eq!(masked, want);
            Ok(())
        })())?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn weighed_rows_are_what_the_weights_say(
        rows in 1usize..12, channels in dimension(5), seed: u64, keep in 0.05f64..1.,
    ) {
        holds((|| {
            // One row at a time, each step weighing the older ones: small `keep` leaves a weight of little more than one row.
            let xs = features(rows, channels, seed, 1.)?;
            let mut running = Moments::new(channels)?;
            for row in 0..rows {
                running.decay(keep)?;
                running.merge(&Moments::from_rows(&xs.narrow(0, row, 1)?, None)?)?;
            }
            let weights: Vec<f64> = (0..rows).map(|i| keep.powi((rows - 1 - i) as i32)).collect();
            let total: f64 = weights.iter().sum();
            let squares: f64 = weights.iter().map(|w| w * w).sum();
            let weights = Tensor::from_vec(weights, (rows, 1), &Device::Cpu)?;
            let mean = (xs.broadcast_mul(&weights)?.sum_keepdim(0)? / total)?;
            let centred = xs.broadcast_sub(&mean)?;
            let scatter = centred.t()?.matmul(&centred.broadcast_mul(&weights)?)?;
            let over = if rows == 1 { total } else { total - squares / total };
            // A dozen steps, and a divisor that is a small difference where little more than one row counts.
            let absolute = 1e-13 * (1. + total / over);
            let allowed = Tolerance { relative: 1e-13, absolute };
            assert_close("unbiased", &running.covariance(true)?, &(scatter / over)?, allowed)?;
            let kish = total * total / squares;
            let got = running.effective_count();
            if (got - kish).abs() > 1e-12 * kish { bail!("expected {kish} rows, got {got}") }
            // The sums carry it over workers.
            let sums = running.to_sums(running.mean())?;
            let back = Moments::from_sums(&sums, running.mean())?;
            assert_close("sums", &back.covariance(true)?, &running.covariance(true)?, allowed)
        })())?;
    }
}

#[test]
fn the_weight_of_all_rows_does_not_matter() -> Result<()> {
    let xs = features(30, 6, 1, 1.)?;
    let plain = Moments::from_rows(&xs, None)?;
    let mut light = plain.clone();
    light.decay(1. / 32.)?;
    assert!(light.count() < 1. && light.effective_count() == 30.);
    for shrinkage in [Shrinkage::LedoitWolf, Shrinkage::Oas, Shrinkage::Fixed(0.1)] {
        let config = WhitenConfig { shrinkage, ..Default::default() };
        let (got, want) = (Whitener::new(&light, config)?, Whitener::new(&plain, config)?);
        assert!((got.intensity() - want.intensity()).abs() < 1e-14, "{shrinkage:?}");
        assert_close("matrix", &got.matrix()?, &want.matrix()?, Tolerance::relative(1e-13))?;
    }
    Ok(())
}

#[test]
fn a_decayed_estimate_forgets() -> Result<()> {
    let (old, new) = (features(30, 3, 1, 5.)?, features(20, 3, 2, -5.)?);
    let mut running = Moments::from_rows(&old, None)?;
    running.decay(0.5)?;
    running.merge(&Moments::from_rows(&new, None)?)?;
    assert_eq!(running.count(), 35.);
    let want = ((old.sum(0)? * 0.5)? + new.sum(0)?)? / 35.;
    let mean = Tensor::new(running.mean(), &Device::Cpu)?;
    assert_close("mean", &mean, &want?, Tolerance::relative(1e-14))?;
    // Weights in the second moments too.
    let square = |xs: &Tensor, weight: f64| {
        let xs = xs.broadcast_sub(&mean)?;
        xs.t()?.matmul(&xs)? * weight
    };
    // Weights squared: 30 of a quarter and 20 of one, over their sum.
    let want = ((square(&old, 0.5)? + square(&new, 1.)?)? / (35. - 27.5 / 35.))?;
    assert_close("covariance", &running.covariance(true)?, &want, Tolerance::relative(1e-13))?;
    running.decay(0.)?;
    running.merge(&Moments::from_rows(&new, None)?)?;
    assert_eq!(running, Moments::from_rows(&new, None)?);
    for keep in [-0.1, 1.1, f64::NAN] {
        assert!(running.decay(keep).unwrap_err().to_string().contains("0 <= keep <= 1"));
    }
    Ok(())
}

#[test]
fn a_file_gives_back_the_same_bits() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("teacher.safetensors");
    let moments = Moments::from_rows(&features(17, 5, 3, 1e3)?, None)?;
    moments.save(&path)?;
    // Over one that is there.
    moments.save(&path)?;
    assert_eq!(Moments::load(&path)?, moments);
    assert_eq!(std::fs::read_dir(folder.path())?.count(), 1);
    Ok(())
}

#[test]
fn a_file_that_does_not_fit_is_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("teacher.safetensors");
    let load = || {
        let e = Moments::load(&path).unwrap_err().to_string();
        assert!(e.contains("teacher.safetensors"), "{e}");
        e
    };
    load();
    let moments = Moments::from_rows(&features(17, 5, 3, 1.)?, None)?;
    moments.save(&path)?;
    let bytes = std::fs::read(&path)?;
    std::fs::write(&path, &bytes[..bytes.len() - 1])?;
    assert!(load().contains("expected a safetensors file"));
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?;
    let wrong = |name: &str, tensor: Option<Tensor>| -> Result<String> {
        let mut tensors = tensors.clone();
        match tensor {
            Some(tensor) => tensors.insert(name.to_owned(), tensor),
            None => tensors.remove(name),
        };
        candle_core::safetensors::save(&tensors, &path)?;
        Ok(load())
    };
    assert!(wrong("scatter", None)?.contains("expected a tensor scatter"));
    let small = Tensor::zeros((4, 4), DType::F64, &Device::Cpu)?;
    assert!(wrong("scatter", Some(small))?.contains("expected scatter [5, 5] of F64, got [4, 4]"));
    let single = tensors["mean"].to_dtype(DType::F32)?;
    assert!(wrong("mean", Some(single))?.contains("of F64, got [5] of F32"));
    let negative = Tensor::new(-1f64, &Device::Cpu)?;
    assert!(wrong("count", Some(negative))?.contains("expected a count >= 0, got -1"));
    let mut values = to_f64(&tensors["scatter"])?;
    values[1] += 1.;
    let skew = Tensor::from_vec(values.clone(), (5, 5), &Device::Cpu)?;
    assert!(wrong("scatter", Some(skew))?.contains("symmetric scatter"));
    values[0] = f64::NAN;
    let nan = Tensor::from_vec(values, (5, 5), &Device::Cpu)?;
    assert!(wrong("scatter", Some(nan))?.contains("NaN in channel 0"));
    let nowhere = folder.path().join("none").join("teacher.safetensors");
    assert!(moments.save(&nowhere).unwrap_err().to_string().contains("teacher.safetensors"));
    Ok(())
}

#[test]
fn bad_rows_are_named() -> Result<()> {
    let message = |r: Result<Moments>| r.unwrap_err().to_string();
    let xs = normal(&[4, 3], DType::F32, 1)?;
    assert!(message(Moments::from_rows(&xs.unsqueeze(0)?, None)).contains("expected (N, d)"));
    assert!(message(Moments::from_rows(&xs, Some(&xs))).contains("a mask (4,) of u8, got [4, 3]"));
    assert!(Moments::from_rows(&xs.to_dtype(DType::F16)?, None).is_err());
    let none = Tensor::zeros((0, 3), DType::U32, &Device::Cpu)?;
    assert!(message(Moments::from_rows(&none, None)).contains("moments"));
    let mut values = to_f64(&xs)?;
    values[7] = f64::INFINITY;
    let bad = Tensor::from_vec(values, (4, 3), &Device::Cpu)?;
    assert!(message(Moments::from_rows(&bad, None)).contains("got inf at row 2, channel 1"));
    // A masked row may hold anything.
    let mask = Tensor::new(&[1u8, 1, 0, 1], &Device::Cpu)?;
    assert_eq!(Moments::from_rows(&bad, Some(&mask))?.count(), 3.);
    assert!(message(Moments::new(0)).contains("at least one channel"));
    let mut moments = Moments::new(3)?;
    assert!(moments.covariance(true).unwrap_err().to_string().contains("at least one row"));
    assert!(
        moments
            .merge(&Moments::new(2)?)
            .unwrap_err()
            .to_string()
            .contains("expected 3 channels, got 2")
    );
    assert!(
        moments.to_sums(&[0.]).unwrap_err().to_string().contains("a shift of 3 channels, got 1")
    );
    assert!(
        message(Moments::from_sums(&[1., 2.], &[0.]))
            .contains("expected 6 sums for 1 channels, got 2")
    );
    assert!(
        message(Moments::from_sums(&[2., 0., -4., 0., 0., 2.], &[0.])).contains("scatter -4e0")
    );
    // Count, sums, outer products, cubic, quartic of two channels: each out of place in turn.
    let sums = Moments::from_rows(&features(6, 2, 1, 0.)?, None)?.to_sums(&[0., 0.])?;
    assert!(Moments::from_sums(&sums, &[0., 0.]).is_ok());
    for (at, value, want) in [
        (4, sums[4] + 1., "expected a symmetric scatter"),
        (7, f64::NAN, "expected a finite cubic"),
        (9, f64::NAN, "expected a finite quartic"),
        (9, f64::INFINITY, "expected a finite quartic"),
        (9, -1e6, "expected a finite quartic"),
        (10, -1., "expected squares of weights >= 0"),
        (10, 7., "no more than the count 6, got 7"),
        (10, f64::NAN, "expected squares of weights >= 0"),
    ] {
        let mut sums = sums.clone();
        sums[at] = value;
        let e = message(Moments::from_sums(&sums, &[0., 0.]));
        assert!(e.contains(want), "{at} {value}: {e}");
    }
    let e = Whitener::new(&moments, WhitenConfig::default()).unwrap_err().to_string();
    assert!(e.contains("whitener: expected moments of at least one row"), "{e}");
    Ok(())
}

#[test]
fn a_whitener_of_a_batch_whitens_that_batch() -> Result<()> {
    // Widths and depths around one block of rows, and rank-deficient ones.
    for (rows, channels) in [(300, 20), (129, 5), (12, 20), (1, 3)] {
        let xs = features(rows, channels, 4, 10.)?;
        let moments = Moments::from_rows(&xs, None)?;
        for method in [
            WhitenMethod::Cholesky,
            WhitenMethod::Zca,
            WhitenMethod::Pca,
            WhitenMethod::NewtonSchulz { iterations: 5 },
        ] {
            for deficient in [Deficient::Full, Deficient::Truncate] {
                let config = WhitenConfig { method, shrinkage: Shrinkage::Fixed(1e-2), deficient };
                let whitener = Whitener::new(&moments, config)?;
                let (got, want) = (whiten_with(&xs, &whitener)?, whiten(&xs, config)?);
                let tolerance = Tolerance { relative: 1e-10, absolute: 1e-12 };
                assert_close(&format!("{config:?} {rows}x{channels}"), &got, &want, tolerance)?;
                gradcheck(|x| whiten_with(&x[0], &whitener), &[xs.narrow(0, 0, rows.min(3))?])?;
            }
        }
    }
    Ok(())
}

#[test]
fn truncation_forgets_what_the_rows_do_not_span() -> Result<()> {
    // Rows in a plane of a space of five; another row off that plane.
    let plane = normal(&[2, 5], DType::F64, 2)?;
    let xs = normal(&[40, 2], DType::F64, 1)?.matmul(&plane)?;
    let moments = Moments::from_rows(&xs, None)?;
    for method in [WhitenMethod::Cholesky, WhitenMethod::Zca, WhitenMethod::Pca] {
        let config =
            |deficient| WhitenConfig { method, shrinkage: Shrinkage::Fixed(1e-4), deficient };
        let whitener = Whitener::new(&moments, config(Deficient::Truncate))?;
        assert_eq!(whitener.rank(), 2, "{method:?}");
        assert!(whitener.residual() < 1e-12, "{method:?}: {:e}", whitener.residual());
        assert_eq!(Whitener::new(&moments, config(Deficient::Full))?.rank(), 5);
        let e = Whitener::new(&moments, config(Deficient::Refuse)).unwrap_err().to_string();
        assert!(e.contains("whitener: expected rows that span") && e.contains("N = 40"), "{e}");
    }
    Ok(())
}

#[test]
fn layouts_and_dtypes_of_a_whitener() -> Result<()> {
    let rows = features(50, 6, 4, 1.)?;
    let whitener = Whitener::new(&Moments::from_rows(&rows, None)?, WhitenConfig::default())?;
    let want = whiten_with(&rows, &whitener)?;
    let turned = rows.t()?.contiguous()?.t()?;
    assert_close("strided", &whiten_with(&turned, &whitener)?, &want, Tolerance::EXACT)?;
    let single = Var::from_tensor(&rows.to_dtype(DType::F32)?)?;
    let y = whiten_with(&single, &whitener)?;
    assert_eq!(y.dtype(), DType::F32);
    assert_close("f32", &y, &want, Tolerance::relative(1e-6))?;
    assert!(y.sum_all()?.backward()?.get(&single).is_some());
    let e = whiten_with(&rows.narrow(1, 0, 4)?, &whitener).unwrap_err().to_string();
    assert!(e.contains("whiten_with: expected (N, 6), got [50, 4]"), "{e}");
    let half = whiten_with(&rows.to_dtype(DType::BF16)?, &whitener)?;
    assert_eq!(half.dtype(), DType::BF16);
    assert!(whiten_with(&rows.to_dtype(DType::U32)?, &whitener).is_err());
    // In the slot of a tap.
    let slot = Normalizer::Precomputed(whitener.clone());
    assert_eq!(slot, Normalizer::Precomputed(whitener));
    assert_close("slot", &slot.forward(&rows, &Context::eval())?, &want, Tolerance::EXACT)?;
    assert!(format!("{slot:?}").contains("rank: 6"), "{slot:?}");
    Ok(())
}

#[test]
fn names_of_the_slot() -> Result<()> {
    let xs = features(9, 4, 1, 1.)?;
    for (name, method) in [
        ("whiten", WhitenMethod::Cholesky),
        ("whiten_cholesky", WhitenMethod::Cholesky),
        ("whiten_zca", WhitenMethod::Zca),
        ("whiten_pca", WhitenMethod::Pca),
        ("whiten_newton_schulz", WhitenMethod::NewtonSchulz { iterations: 5 }),
    ] {
        let normalizer: Normalizer = name.parse()?;
        let Normalizer::Whiten(config) = normalizer else { bail!("{name}: {normalizer:?}") };
        assert_eq!(config.method, method);
        let y = normalizer.forward(&xs, &Context::eval())?;
        assert_close(name, &y, &whiten(&xs, config)?, Tolerance::EXACT)?;
    }
    Ok(())
}
