//! Softmax and log-softmax: against their twins, finite differences, in every layout, and at their edges.

use super::{log_softmax, reference, softmax};
use candle_core::{DType, Device, Result, Tensor, Var};
use vkd_testkit::OpCase;
use vkd_testkit::{Tolerance, assert_close, normal, normal_scaled, to_f64};

fn case<'a>(inputs: &'a [Tensor]) -> OpCase<'a> {
    OpCase { what: "softmax", inputs, active: 1, f64_tolerance: 1e-13, f32_tolerance: 1e-6 }
}

#[test]
fn agree_with_their_twins() -> Result<()> {
    for (dims, seed) in [(vec![1, 1], 1), (vec![7], 2), (vec![33, 7], 3), (vec![2, 7, 33], 4)] {
        let inputs = [normal_scaled(&dims, DType::F64, seed, 3.)?];
        case(&inputs).check(|x| log_softmax(&x[0]), |x| reference::log_softmax(&x[0]))?;
        case(&inputs).check(|x| softmax(&x[0]), |x| reference::softmax(&x[0]))?;
    }
    Ok(())
}

#[test]
fn harness_has_teeth() -> Result<()> {
    for dims in [[2, 3], [33, 7]] {
        let inputs = [normal(&dims, DType::F64, 1)?];
        case(&inputs).has_teeth(|x| log_softmax(&x[0]), |x| reference::log_softmax(&x[0]))?;
        case(&inputs).has_teeth(|x| softmax(&x[0]), |x| reference::softmax(&x[0]))?;
    }
    Ok(())
}

#[test]
fn extremes_stay_finite_and_masks_work() -> Result<()> {
    for f in [log_softmax, softmax] {
        let xs = Var::new(&[[1e4f32, -1e4, 0.], [-1e4, -1e4, -1e4]], &Device::Cpu)?;
        let ys = f(&xs)?;
        assert!(to_f64(&ys)?.iter().all(|y| y.is_finite()));
        let grads = (&ys * normal(&[2, 3], DType::F32, 1)?)?.sum_all()?.backward()?;
        assert!(to_f64(grads.get(&xs).unwrap())?.iter().all(|g| g.is_finite()));
        for bad in [f64::NAN, f64::INFINITY] {
            let ys = to_f64(&f(&Tensor::new(&[0f64, bad, 0.], &Device::Cpu)?)?)?;
            assert!(ys.iter().any(|y| y.is_nan()), "{ys:?}");
        }
        assert!(f(&Tensor::new(1f32, &Device::Cpu)?).is_err());
        assert!(f(&xs.to_dtype(DType::U8)?).is_err());
        assert_eq!(f(&xs.narrow(0, 0, 0)?)?.dims(), &[0, 3]);
    }
    let masked = Tensor::new(&[0f64, f64::NEG_INFINITY, 0.], &Device::Cpu)?;
    let ys = to_f64(&log_softmax(&masked)?)?;
    assert!((ys[0] + 2f64.ln()).abs() < 1e-15 && ys[1] == f64::NEG_INFINITY);
    let ys = to_f64(&softmax(&masked)?)?;
    assert!((ys[0] - 0.5).abs() < 1e-15 && ys[1] == 0.);
    Ok(())
}

#[test]
fn half_types_go_through_f32() -> Result<()> {
    for dtype in [DType::BF16, DType::F16] {
        for f in [log_softmax, softmax] {
            let half = Var::from_tensor(&normal_scaled(&[9, 7], dtype, 1, 3.)?)?;
            let single = Var::from_tensor(&half.to_dtype(DType::F32)?)?;
            let g = normal(&[9, 7], dtype, 2)?;
            let (y, want) = (f(&half)?, f(&single)?);
            assert_close("value", &y, &want.to_dtype(dtype)?, Tolerance::EXACT)?;
            let grads = (y * &g)?.sum_all()?.backward()?;
            let wanted = (want * g.to_dtype(DType::F32)?)?.sum_all()?.backward()?;
            let (got, want) = (grads.get(&half).unwrap(), wanted.get(&single).unwrap());
            assert_close("gradient", got, &want.to_dtype(dtype)?, Tolerance::EXACT)?;
        }
    }
    Ok(())
}

#[test]
fn many_rows_take_the_parallel_path_with_the_same_bits() -> Result<()> {
    let xs = normal(&[2000, 40], DType::F32, 1)?;
    for f in [log_softmax, softmax] {
        let part = f(&xs.narrow(0, 0, 100)?)?;
        assert_close("rows", &f(&xs)?.narrow(0, 0, 100)?, &part, Tolerance::EXACT)?;
    }
    Ok(())
}
