//! Standardize: against its twin, finite differences, in every layout, and at its edges.

use super::{Variance, reference, standardize, standardize_masked, standardize_with};
use candle_core::{DType, Device, Result, Tensor, Var};
use vkd_testkit::OpCase;
use vkd_testkit::{Tolerance, assert_close, normal, to_f64};

fn case<'a>(inputs: &'a [Tensor]) -> OpCase<'a> {
    OpCase { what: "standardize", inputs, active: 1, f64_tolerance: 1e-11, f32_tolerance: 1e-6 }
}

const KINDS: [Variance; 2] = [Variance::Biased, Variance::Unbiased];

/// Keeps about two rows of three, and the first two at least.
fn mask(rows: usize) -> Result<Tensor> {
    let keep: Vec<u8> = (0..rows).map(|i| u8::from(i < 2 || i % 3 != 1)).collect();
    Tensor::new(keep, &Device::Cpu)
}

#[test]
fn agrees_with_its_twin() -> Result<()> {
    // A guard of 0.3 takes part in value and gradient, so its derivative is tested too.
    for (eps, variance) in [(1e-6, KINDS[0]), (0.3, KINDS[0]), (1e-6, KINDS[1]), (0.3, KINDS[1])] {
        for (dims, seed) in [([3, 1], 1), ([7, 3], 2), ([33, 7], 3), ([7, 33], 4), ([90, 20], 5)] {
            let inputs = [(normal(&dims, DType::F64, seed)? + 0.7)?];
            for mask in [None, Some(mask(dims[0])?)] {
                case(&inputs).check(
                    |x| standardize_masked(&x[0], mask.as_ref(), variance, eps),
                    |x| reference::standardize(&x[0], mask.as_ref(), variance, eps),
                )?;
            }
        }
    }
    Ok(())
}

#[test]
fn given_statistics_agree_with_their_twin() -> Result<()> {
    for eps in [1e-6, 0.3] {
        let inputs = [(normal(&[33, 7], DType::F64, 1)? + 0.7)?];
        let mean = normal(&[7], DType::F64, 2)?;
        let variance = (normal(&[7], DType::F64, 3)?.sqr()? + 0.1)?;
        let twin = |x: &[Tensor]| reference::standardize_with(&x[0], &mean, &variance, eps);
        case(&inputs).check(|x| standardize_with(&x[0], &mean, &variance, eps), twin)?;
        case(&inputs).has_teeth(|x| standardize_with(&x[0], &mean, &variance, eps), twin)?;
    }
    Ok(())
}

#[test]
fn harness_has_teeth() -> Result<()> {
    for dims in [[4, 3], [33, 7]] {
        let inputs = [normal(&dims, DType::F64, 1)?];
        let mask = mask(dims[0])?;
        let unbiased = Variance::Unbiased;
        case(&inputs).has_teeth(
            |x| standardize(&x[0], 1e-6),
            |x| reference::standardize(&x[0], None, unbiased, 1e-6),
        )?;
        case(&inputs).has_teeth(
            |x| standardize_masked(&x[0], Some(&mask), unbiased, 1e-6),
            |x| reference::standardize(&x[0], Some(&mask), unbiased, 1e-6),
        )?;
    }
    Ok(())
}

#[test]
fn two_rows_have_no_gradient() -> Result<()> {
    // The result is plus or minus 1 / sqrt(2) whatever the rows are; what is left is rounding of g / D.
    let xs = Var::from_tensor(&Tensor::new(&[[1f32, -3.], [2., 5.]], &Device::Cpu)?)?;
    let ys = standardize(&xs, 1e-6)?;
    let want = Tensor::new(&[[-1f64, -1.], [1., 1.]], &Device::Cpu)?.affine(0.5f64.sqrt(), 0.)?;
    // Two roundings in f32.
    assert_close("values", &ys, &want, Tolerance::relative(1.2e-7))?;
    let grads = (ys * normal(&[2, 2], DType::F32, 1)?)?.sum_all()?.backward()?;
    let worst = to_f64(grads.get(&xs).unwrap())?.into_iter().fold(0f64, |m, g| m.max(g.abs()));
    // D is 0.7 and 5.7, |g| below 3: four roundings of it.
    assert!(worst <= 4. * 6e-8 * 3. / 0.7, "{worst}");
    Ok(())
}

/// Output and gradient for a fixed incoming gradient.
fn both(xs: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<(Tensor, Tensor)> {
    let var = Var::from_tensor(xs)?;
    let ys = f(&var)?;
    let cotangent = normal(ys.dims(), DType::F32, 77)?.to_dtype(ys.dtype())?;
    let grads = (&ys * cotangent)?.sum_all()?.backward()?;
    Ok((ys.detach(), grads.get(&var).unwrap().clone()))
}

#[test]
fn large_tensors_take_the_parallel_path_and_agree_with_f64() -> Result<()> {
    // Several blocks, the last one short, and channels that fill no whole vector.
    for (rows, channels) in [(1100, 200), (700, 193), (5000, 30)] {
        for mask in [None, Some(mask(rows)?)] {
            let step = |x: &Tensor| standardize_masked(x, mask.as_ref(), Variance::Unbiased, 1e-6);
            let twin =
                |x: &Tensor| reference::standardize(x, mask.as_ref(), Variance::Unbiased, 1e-6);
            let xs = (normal(&[rows, channels], DType::F32, 1)? + 3.)?;
            let (y, dx) = both(&xs, step)?;
            let (want, want_dx) = both(&xs.to_dtype(DType::F64)?, twin)?;
            // Rounding of the entries, about 4 deviations, and of what the blocks sum up in f32.
            assert_close("values", &y, &want, Tolerance::relative(1e-6))?;
            assert_close("gradient", &dx, &want_dx, Tolerance::relative(1e-6))?;
        }
    }
    Ok(())
}

#[test]
fn an_offset_far_above_the_deviation_costs_nothing() -> Result<()> {
    // Steps of 1/16 on 1e6: exact in f32, so that all that is lost is lost by us.
    let steps = (normal(&[600, 40], DType::F32, 1)? * 16.)?.round()?;
    let xs = ((steps / 16.)? + 1e6)?;
    let (y, dx) = both(&xs, |x| standardize(x, 1e-12))?;
    let wide = |x: &Tensor| reference::standardize(x, None, Variance::Unbiased, 1e-12);
    let (want, want_dx) = both(&xs.to_dtype(DType::F64)?, wide)?;
    assert_close("values", &y, &want, Tolerance::relative(1e-6))?;
    assert_close("gradient", &dx, &want_dx, Tolerance::relative(1e-6))
}

#[test]
fn a_first_row_far_from_the_others_costs_little() -> Result<()> {
    // Sums are taken relative to the first row: the worst one is an outlier.
    let mut rows = normal(&[512, 8], DType::F32, 1)?.to_vec2::<f32>()?;
    rows[0].fill(1e4);
    let xs = Tensor::new(rows, &Device::Cpu)?;
    let want = reference::standardize(&xs.to_dtype(DType::F64)?, None, Variance::Unbiased, 1e-6)?;
    assert_close("outlier", &standardize(&xs, 1e-6)?, &want, Tolerance::relative(1e-6))
}

#[test]
fn channels_outside_the_range_of_f32_squares() -> Result<()> {
    // Ordinary, 1e8, squares over and under the range, subnormal, constant, zero: none disturbs another.
    let scales = [1f32, 1e8, 1e30, 1e-30, 1e-42, 0.];
    let xs = normal(&[300, 1], DType::F32, 1)?;
    let columns = scales.iter().map(|s| &xs * f64::from(*s)).collect::<Result<Vec<_>>>()?;
    let all = Tensor::cat(&columns, 1)?;
    let (y, dx) = both(&all, |x| standardize(x, 1e-6))?;
    assert!(to_f64(&y)?.iter().chain(&to_f64(&dx)?).all(|v| !v.is_nan()));
    for (j, (column, scale)) in columns.iter().zip(scales).enumerate() {
        let wide = column.to_dtype(DType::F64)?;
        let want = if scale == 0. { wide } else { standardize(&wide, 1e-6)? };
        assert_close(&format!("{scale:e}"), &y.narrow(1, j, 1)?, &want, Tolerance::relative(1e-6))?;
    }
    Ok(())
}

#[test]
fn the_twin_keeps_its_digits_where_the_op_does() -> Result<()> {
    // Offsets far above the deviation, constants, zero, and scales whose squares leave f32.
    let noise = normal(&[300, 7], DType::F32, 1)?;
    let offsets = Tensor::new(&[0f32, 1e3, -1e5, 0.1, 0., 0., 0.], &Device::Cpu)?;
    let scales = Tensor::new(&[1f32, 1., 1., 0., 0., 1e30, 1e-30], &Device::Cpu)?;
    let xs = noise.broadcast_mul(&scales)?.broadcast_add(&offsets)?;
    let g = normal(&[300, 7], DType::F32, 2)?;
    let statistics = |t: Tensor| t.to_dtype(DType::F64);
    let mean = statistics(offsets.clone())?;
    let given = statistics(scales)?.sqr()?;
    for mask in [None, Some(mask(300)?)] {
        let run = |f: &dyn Fn(&Tensor) -> Result<Tensor>| -> Result<(Tensor, Tensor)> {
            let var = Var::from_tensor(&xs)?;
            let ys = f(&var)?;
            let grads = (&ys * &g)?.sum_all()?.backward()?;
            Ok((ys.detach(), grads.get(&var).unwrap().clone()))
        };
        let kind = Variance::Unbiased;
        let op = run(&|x| standardize_masked(x, mask.as_ref(), kind, 1e-6))?;
        let twin = run(&|x| reference::standardize(x, mask.as_ref(), kind, 1e-6))?;
        let op_with = run(&|x| standardize_with(x, &mean, &given, 1e-6))?;
        let twin_with = run(&|x| reference::standardize_with(x, &mean, &given, 1e-6))?;
        for (what, (got, got_dx), (want, want_dx)) in
            [("batch", twin, op), ("given", twin_with, op_with)]
        {
            for j in 0..7 {
                let column = |t: &Tensor| t.narrow(1, j, 1);
                let what = format!("{what} {j}");
                // Sums of 300 terms in another order, on entries of up to four deviations.
                let allowed = Tolerance::relative(2e-6);
                assert_close(&what, &column(&got)?, &column(&want)?, allowed)?;
                assert_close(&what, &column(&got_dx)?, &column(&want_dx)?, allowed)?;
            }
        }
    }
    // Nothing but padding: zero, and so is its gradient, be it NaN.
    let var = Var::from_tensor(&(xs.ones_like()? * f64::NAN)?)?;
    let none = Tensor::zeros(300, DType::U8, &Device::Cpu)?;
    let ys = reference::standardize(&var, Some(&none), Variance::Biased, 1e-6)?;
    let grads = ys.sum_all()?.backward()?;
    assert!(to_f64(&ys)?.iter().chain(&to_f64(grads.get(&var).unwrap())?).all(|v| *v == 0.));
    Ok(())
}

#[test]
fn what_is_not_finite_stays_in_its_channel() -> Result<()> {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut rows = normal(&[40, 3], DType::F32, 1)?.to_vec2::<f32>()?;
        rows[7][1] = bad;
        let (y, dx) = both(&Tensor::new(rows, &Device::Cpu)?, |x| standardize(x, 1e-6))?;
        for (what, got) in [("output", &y), ("gradient", &dx)] {
            for (i, v) in to_f64(got)?.into_iter().enumerate() {
                assert_eq!(v.is_nan(), i % 3 == 1, "{what} {i} with {bad}: {v}");
            }
        }
    }
    Ok(())
}

#[test]
fn padding_is_not_read_and_gets_nothing() -> Result<()> {
    let xs = normal(&[6, 3], DType::F32, 1)?;
    let nan = Tensor::full(f32::NAN, (2, 3), &Device::Cpu)?;
    let padded = Tensor::cat(&[&xs.narrow(0, 0, 4)?, &nan, &xs.narrow(0, 4, 2)?], 0)?;
    let mask = Tensor::new(&[1u8, 1, 9, 1, 0, 0, 1, 255], &Device::Cpu)?;
    let of = |x: &Tensor, mask: Option<&Tensor>| {
        both(x, |x| standardize_masked(x, mask, Variance::Unbiased, 1e-6))
    };
    let (y, dx) = of(&padded, Some(&mask))?;
    for (what, got) in [("output", &y), ("gradient", &dx)] {
        let padding = to_f64(&got.narrow(0, 4, 2)?)?;
        assert!(padding.iter().all(|v| *v == 0.), "{what}: {padding:?}");
        assert!(to_f64(got)?.iter().all(|v| v.is_finite()), "{what}");
    }
    // No rows, and one: defined.
    for keep in [[0u8; 8], [0, 1, 0, 0, 0, 0, 0, 0]] {
        let (y, dx) = of(&padded, Some(&Tensor::new(&keep, &Device::Cpu)?))?;
        assert!(to_f64(&y)?.iter().chain(&to_f64(&dx)?).all(|v| *v == 0.));
    }
    Ok(())
}

#[test]
fn half_types_go_through_f32() -> Result<()> {
    for dtype in [DType::BF16, DType::F16] {
        let xs = normal(&[40, 5], DType::F32, 1)?.to_dtype(dtype)?;
        let (y, dx) = both(&xs, |x| standardize(x, 1e-6))?;
        assert_eq!((y.dtype(), dx.dtype()), (dtype, dtype));
        // The incoming gradient is rounded to the half type, too.
        let cotangent = normal(&[40, 5], DType::F32, 77)?.to_dtype(dtype)?.to_dtype(DType::F32)?;
        let var = Var::from_tensor(&xs.to_dtype(DType::F32)?)?;
        let want = standardize(&var, 1e-6)?;
        let grads = (&want * cotangent)?.sum_all()?.backward()?;
        assert_close("value", &y, &want.to_dtype(dtype)?, Tolerance::EXACT)?;
        assert_close(
            "gradient",
            &dx,
            &grads.get(&var).unwrap().to_dtype(dtype)?,
            Tolerance::EXACT,
        )?;
    }
    Ok(())
}

#[test]
fn a_second_backward_pass_is_the_first() -> Result<()> {
    let var = Var::from_tensor(&normal(&[9, 3], DType::F32, 1)?)?;
    let loss = standardize(&var, 1e-6)?.powf(3.)?.sum_all()?;
    let first = loss.backward()?;
    // Also where the parameter was overwritten in between: it is the gradient of the pass that was run.
    var.set(&normal(&[9, 3], DType::F32, 2)?)?;
    let second = loss.backward()?;
    assert_close("again", second.get(&var).unwrap(), first.get(&var).unwrap(), Tolerance::EXACT)
}

#[test]
fn degenerate_channels_give_zero_and_finite_gradients() -> Result<()> {
    for dtype in [DType::F32, DType::F64] {
        // One row; then constant, zero and ordinary channels side by side.
        let single = normal(&[1, 5], DType::F32, 1)?;
        let ordinary = normal(&[6, 1], DType::F32, 2)?;
        let constant = Tensor::full(0.1f32, (6, 1), &Device::Cpu)?;
        let zero = Tensor::zeros((6, 1), DType::F32, &Device::Cpu)?;
        let mixed = Tensor::cat(&[&ordinary, &constant, &zero, &(&constant * 1e30)?], 1)?;
        for (xs, dead) in [(single, 0..5), (mixed, 1..4)] {
            let var = Var::from_tensor(&xs.to_dtype(dtype)?)?;
            let ys = standardize(&var, 1e-6)?;
            let dead = ys.narrow(1, dead.start, dead.len())?;
            assert!(to_f64(&dead)?.iter().all(|y| *y == 0.), "{dtype:?}: {dead}");
            let grads = (&ys * normal(ys.dims(), dtype, 3)?)?.sum_all()?.backward()?;
            assert!(to_f64(grads.get(&var).unwrap())?.iter().all(|g| g.is_finite()));
            if xs.dim(0)? == 1 {
                assert!(to_f64(grads.get(&var).unwrap())?.iter().all(|g| *g == 0.));
            }
        }
    }
    Ok(())
}

#[test]
fn extreme_scales_neither_overflow_nor_vanish() -> Result<()> {
    let xs = normal(&[9, 3], DType::F64, 1)?;
    let want = standardize(&xs, 1e-6)?;
    for scale in [1e-300, 1e-160, 1e8, 1e160, 1e300] {
        assert_close(
            "f64",
            &standardize(&(&xs * scale)?, 1e-6)?,
            &want,
            Tolerance::relative(1e-12),
        )?;
    }
    let extremes = Tensor::new(&[[f64::MAX], [-f64::MAX], [0.]], &Device::Cpu)?;
    let ys = to_f64(&standardize(&extremes, 1e-6)?)?;
    assert!(
        (ys[0] - 1.).abs() < 1e-9 && (ys[1] + 1.).abs() < 1e-9 && ys[2].abs() < 1e-12,
        "{ys:?}"
    );
    // Channels do not see each other: one is 1e8 times the others.
    let factors = Tensor::new(&[[1f64, 1e8, 1e-8]], &Device::Cpu)?;
    let ys = standardize(&xs.broadcast_mul(&factors)?, 1e-6)?;
    assert_close("channels", &ys, &want, Tolerance::relative(1e-12))
}

#[test]
fn bad_arguments_are_named() -> Result<()> {
    let xs = normal(&[3, 4], DType::F32, 1)?;
    for eps in [0., 1., -1., f64::NAN] {
        let e = standardize(&xs, eps).unwrap_err().to_string();
        assert!(e.contains("standardize: expected 0 < eps < 1"), "{e}");
    }
    let e = standardize(&xs.unsqueeze(0)?, 1e-6).unwrap_err().to_string();
    assert!(e.contains("expected (M, C)") && e.contains("[1, 3, 4]"), "{e}");
    assert!(standardize(&xs.narrow(0, 0, 0)?, 1e-6).is_err());
    assert!(standardize(&xs.to_dtype(DType::U8)?, 1e-6).is_err());
    let masked = |mask: &Tensor| {
        standardize_masked(&xs, Some(mask), Variance::Biased, 1e-6).unwrap_err().to_string()
    };
    let e = masked(&Tensor::new(&[1u8, 1], &Device::Cpu)?);
    assert!(e.contains("expected a mask of shape [3], got [2]"), "{e}");
    let e = masked(&Tensor::new(&[1u32, 1, 1], &Device::Cpu)?);
    assert!(e.contains("expected a mask of dtype U8, got U32"), "{e}");
    let four = |v: [f64; 4]| Tensor::new(&v, &Device::Cpu);
    let with = |mean: &Tensor, variance: &Tensor| {
        standardize_with(&xs, mean, variance, 1e-6).unwrap_err().to_string()
    };
    let good = four([1.; 4])?;
    let e = with(&good, &four([1., 1., -2., 1.])?);
    assert!(e.contains("expected variance >= 0, got -2 in channel 2"), "{e}");
    let e = with(&four([1., f64::NAN, 1., 1.])?, &good);
    assert!(e.contains("expected finite mean, got NaN in channel 1"), "{e}");
    let e = with(&good.narrow(0, 0, 3)?, &good);
    assert!(e.contains("expected mean of shape [4], got [3]"), "{e}");
    let e = with(&good, Var::from_tensor(&good)?.as_tensor());
    assert!(e.contains("expected variance without gradient"), "{e}");
    Ok(())
}
