//! Standardize: against its twin, finite differences, in every layout, and at its edges.

use super::{reference, standardize};
use candle_core::{DType, Device, Result, Tensor, Var};
use vkd_testkit::OpCase;
use vkd_testkit::{Tolerance, assert_close, normal, to_f64};

fn case<'a>(inputs: &'a [Tensor]) -> OpCase<'a> {
    OpCase { what: "standardize", inputs, active: 1, f64_tolerance: 1e-11, f32_tolerance: 1e-6 }
}

#[test]
fn agrees_with_its_twin() -> Result<()> {
    // A guard of 0.3 takes part in value and gradient, so its derivative is tested too.
    for eps in [1e-6, 0.3] {
        for (dims, seed) in [([2, 1], 1), ([7, 3], 2), ([33, 7], 3), ([7, 33], 4)] {
            let inputs = [(normal(&dims, DType::F64, seed)? + 0.7)?];
            case(&inputs)
                .check(|x| standardize(&x[0], eps), |x| reference::standardize(&x[0], eps))?;
        }
    }
    Ok(())
}

#[test]
fn harness_has_teeth() -> Result<()> {
    for dims in [[4, 3], [33, 7]] {
        let inputs = [normal(&dims, DType::F64, 1)?];
        case(&inputs)
            .has_teeth(|x| standardize(&x[0], 1e-6), |x| reference::standardize(&x[0], 1e-6))?;
    }
    Ok(())
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
    assert!(standardize(&xs.to_dtype(DType::BF16)?, 1e-6).is_err());
    Ok(())
}
