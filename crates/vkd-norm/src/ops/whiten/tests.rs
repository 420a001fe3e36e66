//! Whiten: against its twins, finite differences, in every layout, and at its edges.

use super::{reference, whiten, whiten_cholesky};
use crate::{Deficient, Shrinkage, WhitenConfig, WhitenMethod};
use candle_core::{DType, Device, Result, Tensor, Var};
use vkd_testkit::{OpCase, Tolerance, assert_close, gradcheck, normal, to_f64};

const METHODS: [WhitenMethod; 4] = [
    WhitenMethod::Cholesky,
    WhitenMethod::Zca,
    WhitenMethod::Pca,
    WhitenMethod::NewtonSchulz { iterations: 5 },
];

const SHRINKAGES: [Shrinkage; 5] = [
    Shrinkage::Fixed(0.),
    Shrinkage::Fixed(0.2),
    Shrinkage::Absolute(0.1),
    Shrinkage::LedoitWolf,
    Shrinkage::Oas,
];

/// In f64 the twin's elimination or iteration and the kernel's factors differ by rounding times the condition number,
/// 1e3 at most here; in f32 only the storage rounds.
fn case<'a>(inputs: &'a [Tensor]) -> OpCase<'a> {
    OpCase { what: "whiten", inputs, active: 1, f64_tolerance: 1e-9, f32_tolerance: 1e-6 }
}

fn config(method: WhitenMethod, shrinkage: Shrinkage) -> WhitenConfig {
    WhitenConfig { method, shrinkage, deficient: Deficient::Full }
}

/// Channels of variance from 0.2 to 2, correlated, with a mean.
fn features(rows: usize, channels: usize, seed: u64) -> Result<Tensor> {
    let scales: Vec<f64> = (0..channels).map(|j| 0.5 + j as f64 / channels as f64).collect();
    let xs = normal(&[rows, channels], DType::F64, seed)?;
    let mix = (normal(&[channels, channels], DType::F64, seed ^ 77)? * 0.2)?;
    (&xs + xs.matmul(&mix)?)?.broadcast_mul(&Tensor::new(scales, &Device::Cpu)?)? + 0.7
}

#[test]
fn agrees_with_its_twin() -> Result<()> {
    for method in METHODS {
        if method == WhitenMethod::Pca {
            continue;
        }
        for shrinkage in SHRINKAGES {
            let config = config(method, shrinkage);
            for (dims, seed) in [([2, 1], 1), ([9, 3], 2), ([33, 7], 3), ([70, 33], 4)] {
                // A single channel is its own target: the twin's estimate is 0 / 0.
                let estimated = matches!(shrinkage, Shrinkage::LedoitWolf | Shrinkage::Oas);
                if estimated && dims[1] == 1 {
                    continue;
                }
                let inputs = [features(dims[0], dims[1], seed)?];
                case(&inputs)
                    .check(|x| whiten(&x[0], config), |x| reference::whiten(&x[0], config))?;
            }
            // Fewer rows than channels: the shrinkage carries it.
            if shrinkage != Shrinkage::Fixed(0.) {
                let inputs = [features(5, 7, 5)?];
                case(&inputs)
                    .check(|x| whiten(&x[0], config), |x| reference::whiten(&x[0], config))?;
            }
        }
    }
    Ok(())
}

#[test]
fn gradients_of_every_method_shrinkage_and_rank() -> Result<()> {
    for method in METHODS {
        for shrinkage in SHRINKAGES {
            for deficient in [Deficient::Full, Deficient::Truncate] {
                for (rows, channels) in [(12, 4), (5, 5), (4, 7), (2, 3)] {
                    let config = WhitenConfig { method, shrinkage, deficient };
                    // Components that the rows don't span are in no order: see the test of the eigengap.
                    let full = deficient == Deficient::Full;
                    if method == WhitenMethod::Pca && full && rows < channels {
                        continue;
                    }
                    let xs = features(rows, channels, 9)?;
                    gradcheck(|x| whiten(&x[0], config), &[xs]).map_err(|e| {
                        candle_core::Error::Msg(format!("{config:?} {rows}x{channels}: {e}"))
                    })?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn harness_has_teeth() -> Result<()> {
    for method in METHODS {
        if method == WhitenMethod::Pca {
            continue;
        }
        let config = config(method, Shrinkage::LedoitWolf);
        for dims in [[6, 3], [33, 7]] {
            let inputs = [features(dims[0], dims[1], 1)?];
            case(&inputs)
                .has_teeth(|x| whiten(&x[0], config), |x| reference::whiten(&x[0], config))?;
        }
    }
    Ok(())
}

#[test]
fn finite_differences_have_teeth_for_components() -> Result<()> {
    let config = config(WhitenMethod::Pca, Shrinkage::LedoitWolf);
    let inputs = [features(12, 4, 1)?];
    gradcheck(|x| whiten(&x[0], config), &inputs)?;
    let off = |x: &[Tensor]| -> Result<Tensor> {
        let y = whiten(&x[0], config)?;
        let fixed = y.detach();
        (y * 1.01)? - (fixed * 0.01)?
    };
    assert!(gradcheck(off, &inputs).is_err());
    Ok(())
}

/// Value and gradient of `sum(y * cot)`.
fn step(xs: &Tensor, config: WhitenConfig) -> Result<[Vec<f64>; 2]> {
    let var = Var::from_tensor(xs)?;
    let y = whiten(&var, config)?;
    let cot = normal(xs.dims(), xs.dtype(), 21)?;
    let grads = (&y * cot)?.sum_all()?.backward()?;
    match grads.get(&var) {
        Some(grad) => Ok([to_f64(&y)?, to_f64(grad)?]),
        None => candle_core::bail!("no gradient"),
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() -> Result<()> {
    // Past the size from which products share their work.
    let xs = features(1500, 96, 3)?.to_dtype(DType::F32)?;
    let estimated = METHODS.map(|method| config(method, Shrinkage::LedoitWolf));
    for config in estimated.into_iter().chain([WhitenConfig::default()]) {
        let run = |threads| -> Result<[Vec<f64>; 2]> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.map_err(candle_core::Error::wrap)?.install(|| step(&xs, config))
        };
        let one = run(1)?;
        assert_eq!(one, run(2)?, "{config:?}");
        assert_eq!(one, run(5)?, "{config:?}");
    }
    Ok(())
}

#[test]
fn factors_are_not_of_a_tensor_that_was_overwritten() -> Result<()> {
    let config = config(WhitenMethod::Zca, Shrinkage::Fixed(0.1));
    let (before, after) = (features(9, 4, 1)?, features(9, 4, 2)?);
    let cot = normal(&[9, 4], DType::F64, 21)?;
    let var = Var::from_tensor(&before)?;
    let loss = (whiten(&var, config)? * &cot)?.sum_all()?;
    // Twice the same: the first pass frees what was kept.
    let first = to_f64(loss.backward()?.get(&var).unwrap())?;
    assert_eq!(first, to_f64(loss.backward()?.get(&var).unwrap())?);
    assert_eq!(first, step(&before, config)?[1]);
    let loss = (whiten(&var, config)? * &cot)?.sum_all()?;
    var.set(&after)?;
    assert_eq!(to_f64(loss.backward()?.get(&var).unwrap())?, step(&after, config)?[1]);
    // A column with its signs turned, an even number of them.
    for (rows, channels) in [(16, 8), (32, 4), (16, 2)] {
        let before = features(rows, channels, 3)?;
        let mut signs = vec![1f64; channels];
        signs[1] = -1.;
        let after = before.broadcast_mul(&Tensor::new(signs, &Device::Cpu)?)?;
        let cot = normal(&[rows, channels], DType::F64, 21)?;
        let var = Var::from_tensor(&before)?;
        let loss = (whiten(&var, config)? * &cot)?.sum_all()?;
        var.set(&after)?;
        assert_eq!(to_f64(loss.backward()?.get(&var).unwrap())?, step(&after, config)?[1]);
    }
    Ok(())
}

#[test]
fn estimated_intensities_are_the_published_ones() -> Result<()> {
    // Computed apart, from the definitions: Ledoit and Wolf's b² / d² as sums over the rows, and equation 23 of
    // Chen et al., on x_ij = sin(3 i + j²) + j.
    let values: Vec<f64> = (0..24)
        .map(|at| ((3 * (at / 4) + (at % 4) * (at % 4)) as f64).sin() + (at % 4) as f64)
        .collect();
    let xs = Tensor::from_vec(values, (6, 4), &Device::Cpu)?;
    let moments = crate::Moments::from_rows(&xs, None)?;
    for (shrinkage, want) in
        [(Shrinkage::LedoitWolf, 0.061373655880597136), (Shrinkage::Oas, 0.3911393074864869)]
    {
        let whitener = crate::Whitener::new(&moments, config(WhitenMethod::Zca, shrinkage))?;
        let got = whitener.intensity();
        assert!((got - want).abs() < 1e-12, "{shrinkage:?}: {got}, expected {want}");
    }
    Ok(())
}

#[test]
fn refused_rows_are_named() -> Result<()> {
    let config = |method| WhitenConfig {
        method,
        shrinkage: Shrinkage::Fixed(0.1),
        deficient: Deficient::Refuse,
    };
    let refuse = |xs: &Tensor, method| whiten(xs, config(method)).unwrap_err().to_string();
    // A channel that is the sum of the others; a constant one; fewer rows than channels.
    let free = features(40, 3, 1)?;
    let sum = Tensor::cat(&[&free, &free.sum_keepdim(1)?], 1)?;
    let constant = Tensor::cat(&[&Tensor::full(2f64, (40, 1), &Device::Cpu)?, &free], 1)?;
    for method in METHODS {
        let e = refuse(&sum, method);
        assert!(e.contains("channel 3 with N = 40 rows, d = 4 channels"), "{e}");
        assert!(!e.contains("N <= d"), "{e}");
        let e = refuse(&constant, method);
        assert!(e.contains("got pivot 0e0 (share of the variance) at channel 0"), "{e}");
        let e = refuse(&features(5, 7, 2)?, method);
        assert!(e.contains("N = 5 rows, d = 7 channels; N <= d has rank at most 4"), "{e}");
        let e = refuse(&features(5, 5, 2)?, method);
        assert!(e.contains("N <= d has rank at most 4"), "{e}");
        assert!(refuse(&features(1, 2, 2)?, method).contains("rank at most 0"));
        whiten(&free, config(method))?;
    }
    Ok(())
}

#[test]
fn without_spread_the_result_is_zero() -> Result<()> {
    let one = features(1, 3, 1)?;
    let equal = one.broadcast_as((4, 3))?.contiguous()?;
    for method in METHODS {
        for shrinkage in SHRINKAGES {
            for xs in [&one, &equal] {
                let config = config(method, shrinkage);
                let y = to_f64(&whiten(xs, config)?)?;
                assert!(y.iter().all(|&y| y == 0.), "{config:?}: {y:?}");
                // Components of a multiple of the identity are in no order.
                if method != WhitenMethod::Pca {
                    assert!(step(xs, config)?[1].iter().all(|g| g.is_finite()), "{config:?}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn truncated_cholesky_gives_zero_for_all_but_independent_channels() -> Result<()> {
    let xs = features(5, 7, 4)?;
    let deficient = Deficient::Truncate;
    let config = WhitenConfig {
        method: WhitenMethod::Cholesky,
        shrinkage: Shrinkage::Fixed(0.1),
        deficient,
    };
    let y = whiten(&xs, config)?;
    let zero = y.abs()?.sum(0)?.to_vec1::<f64>()?.into_iter().filter(|&s| s == 0.).count();
    assert_eq!(zero, 3);
    let whitener = crate::Whitener::new(&crate::Moments::from_rows(&xs, None)?, config)?;
    assert_eq!(whitener.rank(), 4);
    assert!(whitener.residual() < 1e-12);
    Ok(())
}

#[test]
fn components_in_no_order_have_no_gradient() -> Result<()> {
    // Two channels of equal variance that are not correlated; fewer rows than channels, carried by the shrinkage.
    let square = Tensor::new(&[[1f64, 0.], [-1., 0.], [0., 1.], [0., -1.]], &Device::Cpu)?;
    for (xs, indices) in [(square, "0 ("), (features(4, 7, 1)?, "3 (")] {
        let mut config = config(WhitenMethod::Pca, Shrinkage::Fixed(0.1));
        whiten(&xs, config)?;
        let e = step(&xs, config).unwrap_err().to_string();
        assert!(e.contains("whiten: expected an eigengap above 1e-9"), "{e}");
        assert!(e.contains(&format!("between eigenvalues {indices}")), "{e}");
        config.method = WhitenMethod::Zca;
        step(&xs, config)?;
    }
    Ok(())
}

#[test]
fn bad_arguments_are_named() -> Result<()> {
    let xs = normal(&[9, 4], DType::F32, 1)?;
    for eps in [-1e-9, 1., f64::NAN] {
        let e = whiten_cholesky(&xs, eps).unwrap_err().to_string();
        assert!(e.contains("whiten_cholesky: expected 0 <= eps < 1"), "{e}");
        let e = whiten(&xs, config(WhitenMethod::Zca, Shrinkage::Absolute(eps)));
        assert!(e.unwrap_err().to_string().contains("whiten: expected a shrinkage 0 <= eps < 1"));
    }
    for rho in [-1e-9, 1.1, f64::NAN] {
        let e = whiten(&xs, config(WhitenMethod::Zca, Shrinkage::Fixed(rho)));
        assert!(e.unwrap_err().to_string().contains("whiten: expected a shrinkage 0 <= rho <= 1"));
    }
    let none = WhitenMethod::NewtonSchulz { iterations: 0 };
    let e = whiten(&xs, config(none, Shrinkage::Oas)).unwrap_err().to_string();
    assert!(e.contains("at least one Newton-Schulz iteration, got 0"), "{e}");
    let e = whiten_cholesky(&xs.narrow(0, 0, 0)?, 0.).unwrap_err().to_string();
    assert!(e.contains("N >= 1") && e.contains("[0, 4]"), "{e}");
    assert!(whiten_cholesky(&xs.to_dtype(DType::U32)?, 0.).is_err());
    for bad in [f32::NAN, f32::INFINITY] {
        let mut values = vec![0f32; 12];
        values[5] = bad;
        let xs = Tensor::from_vec(values, (4, 3), &Device::Cpu)?;
        let e = whiten_cholesky(&xs, 0.1).unwrap_err().to_string();
        assert!(e.contains("not finite in channel 2"), "{e}");
    }
    // An intensity that can't be estimated is no 0 or 1.
    for (shrinkage, unit) in [
        (Shrinkage::LedoitWolf, 1e100),
        (Shrinkage::LedoitWolf, 1e-100),
        (Shrinkage::Oas, 1e100),
        (Shrinkage::Oas, 1e-100),
    ] {
        let xs = (features(9, 3, 1)? * unit)?;
        let e = whiten(&xs, config(WhitenMethod::Cholesky, shrinkage)).unwrap_err().to_string();
        assert!(e.contains("whiten: expected fourth powers in the range of f64"), "{e}");
    }
    // Finite, but not its square.
    let e =
        whiten(&(features(4, 3, 1)? * 1e200)?, WhitenConfig::default()).unwrap_err().to_string();
    assert!(e.contains("not finite in channel 0"), "{e}");
    Ok(())
}

#[test]
fn f32_gradients_do_not_feel_the_condition_number() -> Result<()> {
    // Correlated channels, deviations over three decades: condition numbers of 1e7 and more.
    for (rows, channels) in [(600, 120), (240, 120), (90, 100)] {
        let scales: Vec<f64> =
            (0..channels).map(|j| 10f64.powf(3. * j as f64 / channels as f64)).collect();
        let xs = features(rows, channels, 8)?.broadcast_mul(&Tensor::new(scales, &Device::Cpu)?)?;
        let xs = xs.to_dtype(DType::F32)?;
        let cot = normal(&[rows, channels], DType::F32, 21)?;
        for shrinkage in [Shrinkage::Fixed(1e-7), Shrinkage::Fixed(0.1), Shrinkage::Absolute(1e-3)]
        {
            let run = |dtype| -> Result<Tensor> {
                let var = Var::from_tensor(&xs.to_dtype(dtype)?)?;
                let y = whiten(&var, config(WhitenMethod::Cholesky, shrinkage))?;
                let grads = (y * cot.to_dtype(dtype)?)?.sum_all()?.backward()?;
                Ok(grads.get(&var).unwrap().clone())
            };
            // Some roundings of f32, one after the other; measured: 4e-7 at most, at 4096 x 512 too.
            let tolerance = Tolerance::relative(1e-6);
            let what = format!("{rows}x{channels} {shrinkage:?}");
            assert_close(&what, &run(DType::F32)?, &run(DType::F64)?, tolerance)?;
        }
    }
    Ok(())
}

/// The gradient of `whiten` at `xs` in `dtype`, of an incoming `cot`.
fn cholesky_gradient(xs: &Tensor, cot: &Tensor, rho: f64, dtype: DType) -> Result<Tensor> {
    let var = Var::from_tensor(&xs.to_dtype(dtype)?)?;
    let y = whiten(&var, config(WhitenMethod::Cholesky, Shrinkage::Fixed(rho)))?;
    let grads = (y * cot.to_dtype(dtype)?)?.sum_all()?.backward()?;
    grads.get(&var).unwrap().to_dtype(DType::F64)
}

#[test]
fn f32_gradients_hold_their_digits_in_every_unit() -> Result<()> {
    let (xs, cot) = (features(96, 12, 5)?, normal(&[96, 12], DType::F64, 9)?);
    for unit in -28i32..=28 {
        for size in [-6, 0, 6] {
            // What would leave f32 by itself.
            if i32::abs(unit - size) > 30 {
                continue;
            }
            let (unit, size) = (10f64.powi(unit), 10f64.powi(size));
            let xs = (&xs * unit)?.to_dtype(DType::F32)?;
            let cot = (&cot * size)?.to_dtype(DType::F32)?;
            // A large intensity, so that its term in the rows counts, and the default.
            for rho in [0.5, 1e-4] {
                let run = |dtype| cholesky_gradient(&xs, &cot, rho, dtype)? * (unit / size);
                let what = format!("unit {unit:e}, gradient {size:e}, rho {rho:e}");
                // Some roundings of f32, one after the other, as at unit 1.
                let tolerance = Tolerance::relative(1e-6);
                assert_close(&what, &run(DType::F32)?, &run(DType::F64)?, tolerance)?;
            }
        }
    }
    // Both far from 1, so that parts of the gradient leave f32 although it does not.
    for size in [1e-30, 1e30] {
        let xs = (&xs * size)?.to_dtype(DType::F32)?;
        let cot = (&cot * size)?.to_dtype(DType::F32)?;
        let run = |dtype| cholesky_gradient(&xs, &cot, 1e-4, dtype);
        let tolerance = Tolerance::relative(1e-6);
        assert_close("both", &run(DType::F32)?, &run(DType::F64)?, tolerance)?;
    }
    Ok(())
}

#[test]
fn f32_gradients_hold_their_digits_where_terms_cancel() -> Result<()> {
    let (rows, channels) = (1024, 128);
    let xs = features(rows, channels, 8)?.to_dtype(DType::F32)?;
    let y = whiten(&xs, config(WhitenMethod::Cholesky, Shrinkage::Fixed(1e-4)))?;
    let random = normal(&[rows, channels], DType::F32, 21)?;
    let first: Vec<f32> = (0..channels).map(|j| f32::from(u8::from(j == 0))).collect();
    let first = y.broadcast_mul(&Tensor::new(first, &Device::Cpu)?)?;
    for share in [10., 3., 1., 0.3, 0.1, 1e-3, 1e-5] {
        let part = (&random * share)?;
        // A whitened batch can't move along itself, nor all rows at once.
        let cots = [
            ("itself", (&y + &part)?),
            ("one channel of itself", (&first + &part)?),
            ("all rows", (&part + 1.)?),
        ];
        for (what, cot) in cots {
            let run = |dtype| cholesky_gradient(&xs, &cot, 1e-4, dtype);
            let tolerance = Tolerance::relative(1e-6);
            let what = format!("{what} + {share:e}");
            assert_close(&what, &run(DType::F32)?, &run(DType::F64)?, tolerance)?;
        }
    }
    Ok(())
}

#[test]
fn features_near_the_ends_of_f32_have_finite_gradients() -> Result<()> {
    for unit in [1e-36, 1e-30, 1e30, 1e36] {
        let xs = (features(20, 4, 6)? * unit)?.to_dtype(DType::F32)?;
        for method in METHODS {
            let [y, grad] = step(&xs, config(method, Shrinkage::Fixed(1e-4)))?;
            assert!(y.iter().chain(&grad).all(|x| x.is_finite()), "{unit:e} {method:?}");
            // Not by vanishing: the gradient has the unit of 1 / x.
            assert!(grad.iter().any(|g| (g * unit).abs() > 1e-4), "{unit:e} {method:?}");
        }
    }
    Ok(())
}

#[test]
fn half_types_go_through_f32() -> Result<()> {
    let xs = normal(&[9, 4], DType::F32, 1)?;
    for dtype in [DType::F16, DType::BF16] {
        let half = xs.to_dtype(dtype)?;
        let want = whiten_cholesky(&half.to_dtype(DType::F32)?, 0.)?.to_dtype(dtype)?;
        let got = whiten_cholesky(&half, 0.)?;
        assert_eq!(got.dtype(), dtype);
        assert_eq!(to_f64(&got)?, to_f64(&want)?);
        let var = candle_core::Var::from_tensor(&half)?;
        let grads = whiten_cholesky(&var, 0.)?.sqr()?.sum_all()?.backward()?;
        assert!(grads.get(&var).is_some_and(|grad| grad.dtype() == dtype));
    }
    Ok(())
}

#[test]
fn f64_gradients_ignore_the_unit_within_the_stated_range() -> Result<()> {
    let xs = features(30, 5, 3)?;
    for method in METHODS {
        for shrinkage in
            [Shrinkage::Fixed(0.), Shrinkage::Fixed(0.2), Shrinkage::LedoitWolf, Shrinkage::Oas]
        {
            let config = config(method, shrinkage);
            let want = step(&xs, config)?;
            // Powers of two, so that nothing is rounded on the way there.
            for power in [-240, 240] {
                let unit = 2f64.powi(power);
                let [y, grad] = step(&(&xs * unit)?, config)?;
                let what = format!("{method:?} {shrinkage:?} 2^{power}");
                for (got, want) in
                    [(y, &want[0]), (grad.iter().map(|g| g * unit).collect(), &want[1])]
                {
                    let size = want.iter().fold(0f64, |a, x| a.max(x.abs()));
                    let far = got.iter().zip(want).fold(0f64, |a, (x, y)| a.max((x - y).abs()));
                    assert!(far <= 1e-10 * size, "{what}: {far:e} beside {size:e}");
                }
            }
        }
    }
    Ok(())
}
