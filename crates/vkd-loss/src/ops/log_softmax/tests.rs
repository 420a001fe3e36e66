//! Log softmax: against its twin, finite differences, in every layout, and at its edges.

use super::{log_softmax, reference};
use candle_core::{DType, Device, Result, Tensor, Var};
use vkd_testkit::OpCase;
use vkd_testkit::{normal, normal_scaled, to_f64};

fn case<'a>(inputs: &'a [Tensor]) -> OpCase<'a> {
    OpCase { what: "log_softmax", inputs, active: 1, f64_tolerance: 1e-13, f32_tolerance: 1e-6 }
}

#[test]
fn agrees_with_its_twin() -> Result<()> {
    for (dims, seed) in [(vec![1, 1], 1), (vec![7], 2), (vec![33, 7], 3), (vec![2, 7, 33], 4)] {
        let inputs = [normal_scaled(&dims, DType::F64, seed, 3.)?];
        case(&inputs).check(|x| log_softmax(&x[0]), |x| reference::log_softmax(&x[0]))?;
    }
    Ok(())
}

#[test]
fn harness_has_teeth() -> Result<()> {
    for dims in [[2, 3], [33, 7]] {
        let inputs = [normal(&dims, DType::F64, 1)?];
        case(&inputs).has_teeth(|x| log_softmax(&x[0]), |x| reference::log_softmax(&x[0]))?;
    }
    Ok(())
}

#[test]
fn extremes_stay_finite_and_masks_work() -> Result<()> {
    let xs = Var::new(&[[1e4f32, -1e4, 0.], [-1e4, -1e4, -1e4]], &Device::Cpu)?;
    let ys = log_softmax(&xs)?;
    assert!(to_f64(&ys)?.iter().all(|y| y.is_finite()));
    let grads = (&ys * normal(&[2, 3], DType::F32, 1)?)?.sum_all()?.backward()?;
    assert!(to_f64(grads.get(&xs).unwrap())?.iter().all(|g| g.is_finite()));
    let masked = Tensor::new(&[0f64, f64::NEG_INFINITY, 0.], &Device::Cpu)?;
    let ys = to_f64(&log_softmax(&masked)?)?;
    assert!((ys[0] + 2f64.ln()).abs() < 1e-15 && ys[1] == f64::NEG_INFINITY);
    for bad in [f64::NAN, f64::INFINITY] {
        let ys = to_f64(&log_softmax(&Tensor::new(&[0f64, bad, 0.], &Device::Cpu)?)?)?;
        assert!(ys.iter().any(|y| y.is_nan()), "{ys:?}");
    }
    assert!(log_softmax(&masked.to_dtype(DType::F16)?).is_err());
    assert!(log_softmax(&Tensor::new(1f32, &Device::Cpu)?).is_err());
    Ok(())
}
