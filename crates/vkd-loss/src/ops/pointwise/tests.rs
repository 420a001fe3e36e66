//! Pointwise: against its twin, finite differences, in every layout, and at its edges.

use super::{Pointwise, pointwise, reference};
use candle_core::{DType, Device, Result, Tensor, Var};
use vkd_testkit::OpCase;
use vkd_testkit::{Tolerance, assert_close, normal, to_f64};

const KINDS: [Pointwise; 4] = [
    Pointwise::Mse,
    Pointwise::SmoothL1 { beta: 0.01 },
    Pointwise::SmoothL1 { beta: 1. },
    Pointwise::SmoothL1 { beta: 30. },
];

fn case<'a>(inputs: &'a [Tensor]) -> OpCase<'a> {
    OpCase { what: "pointwise", inputs, active: 1, f64_tolerance: 1e-13, f32_tolerance: 1e-6 }
}

fn inputs(dims: &[usize], seed: u64) -> Result<[Tensor; 2]> {
    Ok([normal(dims, DType::F64, seed)?, normal(dims, DType::F64, seed + 50)?])
}

#[test]
fn agrees_with_its_twin() -> Result<()> {
    for kind in KINDS {
        for (dims, seed) in [(vec![], 1), (vec![7], 2), (vec![33, 7], 3), (vec![2, 3, 7, 33], 4)] {
            case(&inputs(&dims, seed)?).check(
                |x| pointwise(kind, &x[0], &x[1]),
                |x| reference::pointwise(kind, &x[0], &x[1]),
            )?;
        }
    }
    Ok(())
}

#[test]
fn harness_has_teeth() -> Result<()> {
    for kind in KINDS {
        for dims in [vec![2, 3], vec![33, 7]] {
            case(&inputs(&dims, 1)?).has_teeth(
                |x| pointwise(kind, &x[0], &x[1]),
                |x| reference::pointwise(kind, &x[0], &x[1]),
            )?;
        }
    }
    Ok(())
}

#[test]
fn smooth_l1_at_its_edges() -> Result<()> {
    let beta = 0.5;
    let student = Var::new(&[0f64, beta, -beta, 2., -2.], &Device::Cpu)?;
    let loss = pointwise(Pointwise::SmoothL1 { beta }, &student, &student.detach().zeros_like()?)?;
    assert_eq!(loss.to_scalar::<f64>()?, (0. + 0.25 + 0.25 + 1.75 + 1.75) / 5.);
    let grads = loss.backward()?;
    let want = Tensor::new(&[0f64, 0.2, -0.2, 0.2, -0.2], &Device::Cpu)?;
    assert_close("gradient", grads.get(&student).unwrap(), &want, Tolerance::relative(1e-15))
}

#[test]
fn nan_is_not_hidden() -> Result<()> {
    for kind in KINDS {
        let student = Var::new(&[0f32, f32::NAN, 1.], &Device::Cpu)?;
        let loss = pointwise(kind, &student, &Tensor::zeros(3, DType::F32, &Device::Cpu)?)?;
        assert!(loss.to_scalar::<f32>()?.is_nan());
        assert!(to_f64(loss.backward()?.get(&student).unwrap())?[1].is_nan());
    }
    Ok(())
}

#[test]
fn bad_arguments_are_named() -> Result<()> {
    let kind = Pointwise::SmoothL1 { beta: 1. };
    let xs = normal(&[3, 4], DType::F32, 1)?;
    let message = |a: &Tensor, b: &Tensor| pointwise(kind, a, b).unwrap_err().to_string();
    let e = message(&xs, &xs.t()?);
    assert!(e.contains("smooth_l1: expected a teacher of the shape [3, 4], got [4, 3]"), "{e}");
    assert!(message(&xs, &xs.to_dtype(DType::F64)?).contains("dtype F32, got F64"));
    let tracked = Var::from_tensor(&xs)?;
    assert!(message(&xs, &tracked).contains("a teacher without gradient"));
    assert!(message(&xs, &tracked.sqr()?).contains("detach it"));
    pointwise(kind, &tracked, &tracked.detach())?;
    let none = xs.narrow(0, 0, 0)?;
    assert!(message(&none, &none).contains("at least one entry"));
    let half = xs.to_dtype(DType::F16)?;
    assert!(pointwise(kind, &half, &half).is_err());
    Ok(())
}
