//! Pointwise: against its twin, finite differences, in every layout, and at its edges.

use super::{Pointwise, pointwise, reference};
use crate::Reduction::{self, BatchMean, Mean, Sum};
use candle_core::{DType, Device, Result, Tensor, Var};
use vkd_testkit::OpCase;
use vkd_testkit::{Tolerance, assert_close, normal, to_f64, uniform};

const KINDS: [Pointwise; 10] = [
    Pointwise::Mse,
    Pointwise::SmoothL1 { beta: 0.01 },
    Pointwise::SmoothL1 { beta: 1. },
    Pointwise::SmoothL1 { beta: 30. },
    Pointwise::L1,
    Pointwise::Bce,
    Pointwise::Focal { alpha: 0.25, gamma: 2. },
    Pointwise::Focal { alpha: 0.6, gamma: 0. },
    Pointwise::Focal { alpha: 1., gamma: 0.5 },
    Pointwise::Focal { alpha: 0., gamma: 3.5 },
];

fn case<'a>(inputs: &'a [Tensor]) -> OpCase<'a> {
    OpCase { what: "pointwise", inputs, active: 1, f64_tolerance: 1e-13, f32_tolerance: 1e-6 }
}

fn inputs(kind: Pointwise, dims: &[usize], seed: u64) -> Result<[Tensor; 2]> {
    let teacher = match kind {
        Pointwise::Bce | Pointwise::Focal { .. } => uniform(dims, DType::F64, seed + 50, 0., 1.)?,
        _ => normal(dims, DType::F64, seed + 50)?,
    };
    Ok([normal(dims, DType::F64, seed)?, teacher])
}

#[test]
fn agrees_with_its_twin() -> Result<()> {
    for kind in KINDS {
        for (dims, seed) in [(vec![], 1), (vec![7], 2), (vec![33, 7], 3), (vec![2, 3, 7, 33], 4)] {
            for reduction in [Mean, Sum, BatchMean, Reduction::None] {
                case(&inputs(kind, &dims, seed)?).check(
                    |x| pointwise(kind, &x[0], &x[1], reduction),
                    |x| reference::pointwise(kind, &x[0], &x[1], reduction),
                )?;
            }
        }
    }
    Ok(())
}

#[test]
fn harness_has_teeth() -> Result<()> {
    for kind in KINDS {
        for dims in [vec![2, 3], vec![33, 7]] {
            case(&inputs(kind, &dims, 1)?).has_teeth(
                |x| pointwise(kind, &x[0], &x[1], Mean),
                |x| reference::pointwise(kind, &x[0], &x[1], Mean),
            )?;
        }
    }
    Ok(())
}

#[test]
fn smooth_l1_at_its_edges() -> Result<()> {
    let beta = 0.5;
    let student = Var::new(&[0f64, beta, -beta, 2., -2.], &Device::Cpu)?;
    let kind = Pointwise::SmoothL1 { beta };
    let loss = pointwise(kind, &student, &student.detach().zeros_like()?, Mean)?;
    assert_eq!(loss.to_scalar::<f64>()?, (0. + 0.25 + 0.25 + 1.75 + 1.75) / 5.);
    let grads = loss.backward()?;
    let want = Tensor::new(&[0f64, 0.2, -0.2, 0.2, -0.2], &Device::Cpu)?;
    assert_close("gradient", grads.get(&student).unwrap(), &want, Tolerance::relative(1e-15))
}

#[test]
fn nan_and_overflow_are_not_hidden() -> Result<()> {
    let zeros = Tensor::zeros(3, DType::F32, &Device::Cpu)?;
    for kind in KINDS {
        for reduction in [Mean, Reduction::None] {
            let student = Var::new(&[0f32, f32::NAN, 1.], &Device::Cpu)?;
            let loss = pointwise(kind, &student, &zeros, reduction)?;
            assert!(to_f64(&loss)?.iter().any(|x| x.is_nan()));
            assert!(to_f64(loss.sum_all()?.backward()?.get(&student).unwrap())?[1].is_nan());
        }
    }
    let large = Tensor::new(&[3e38f32], &Device::Cpu)?;
    let loss = pointwise(Pointwise::Mse, &large, &large.zeros_like()?, Mean)?;
    assert_eq!(loss.to_scalar::<f32>()?, f32::INFINITY);
    Ok(())
}

#[test]
fn bce_at_its_edges() -> Result<()> {
    let logits = Var::new(&[1e4f32, 1e4, -1e4, -1e4, 0.], &Device::Cpu)?;
    let targets = Tensor::new(&[1f32, 0., 1., 0., 0.5], &Device::Cpu)?;
    let loss = pointwise(Pointwise::Bce, &logits, &targets, Reduction::None)?;
    assert_eq!(loss.to_vec1::<f32>()?, [0., 1e4, 1e4, 0., 2f32.ln()]);
    let grads = loss.sum_all()?.backward()?;
    assert_eq!(grads.get(&logits).unwrap().to_vec1::<f32>()?, [0., 1., -1., 0., 0.]);
    let outside = Tensor::new(&[1f32, 0., 1., 0., 1.5], &Device::Cpu)?;
    let e = pointwise(Pointwise::Bce, &logits, &outside, Mean).unwrap_err().to_string();
    assert!(e.contains("expected probabilities in [0, 1], got 1.5 in entry 4"), "{e}");
    Ok(())
}

#[test]
fn l1_at_its_edges() -> Result<()> {
    let student = Var::new(&[0f64, 2., -2.], &Device::Cpu)?;
    let loss = pointwise(Pointwise::L1, &student, &student.detach().zeros_like()?, Mean)?;
    assert_eq!(loss.to_scalar::<f64>()?, 4. / 3.);
    let want = Tensor::new(&[0f64, 1. / 3., -1. / 3.], &Device::Cpu)?;
    let grads = loss.backward()?;
    assert_close("gradient", grads.get(&student).unwrap(), &want, Tolerance::relative(1e-15))
}

#[test]
fn focal_at_its_edges() -> Result<()> {
    let logits = Var::new(&[1e4f32, 1e4, -1e4, -1e4, 0., 0.], &Device::Cpu)?;
    let targets = Tensor::new(&[1f32, 0., 1., 0., 1., 0.], &Device::Cpu)?;
    for gamma in [0., 0.5, 1., 2., 7.] {
        let kind = Pointwise::Focal { alpha: 0.25, gamma };
        let loss = pointwise(kind, &logits, &targets, Reduction::None)?;
        // Right and sure is nothing, wrong and sure is the cross entropy.
        assert_eq!(loss.to_vec1::<f32>()?[..4], [0., 7500., 2500., 0.]);
        let grads = loss.sum_all()?.backward()?;
        let grad = grads.get(&logits).unwrap().to_vec1::<f32>()?;
        assert_eq!(grad[..4], [0., 0.75, -0.25, 0.]);
        // At 0 with p = 1/2 the slope is half of 2^-gamma, plus gamma ln 2 times it.
        let want = 0.5f64.powf(gamma + 1.) * (1. + gamma * 2f64.ln());
        for (got, want) in grad[4..].iter().zip([-0.25 * want, 0.75 * want]) {
            assert!((f64::from(*got) - want).abs() < 1e-7, "{got} {want}");
        }
    }
    let kind = Pointwise::Focal { alpha: 0.25, gamma: 2. };
    let outside = Tensor::new(&[1f32, 0., 1., -0.5, 1., 0.], &Device::Cpu)?;
    let e = pointwise(kind, &logits, &outside, Mean).unwrap_err().to_string();
    assert!(e.contains("sigmoid_focal: expected targets in [0, 1], got -0.5 in entry 3"), "{e}");
    Ok(())
}

#[test]
fn bad_arguments_are_named() -> Result<()> {
    let kind = Pointwise::SmoothL1 { beta: 1. };
    let xs = normal(&[3, 4], DType::F32, 1)?;
    let message = |a: &Tensor, b: &Tensor| pointwise(kind, a, b, Mean).unwrap_err().to_string();
    let e = message(&xs, &xs.t()?);
    assert!(e.contains("smooth_l1: expected a teacher of the shape [3, 4], got [4, 3]"), "{e}");
    assert!(message(&xs, &xs.to_dtype(DType::F64)?).contains("dtype F32, got F64"));
    let tracked = Var::from_tensor(&xs)?;
    assert!(message(&xs, &tracked).contains("a teacher without gradient"));
    assert!(message(&xs, &tracked.sqr()?).contains("detach it"));
    pointwise(kind, &tracked, &tracked.detach(), Mean)?;
    let none = xs.narrow(0, 0, 0)?;
    assert!(message(&none, &none).contains("at least one entry"));
    let half = xs.to_dtype(DType::F16)?;
    assert!(pointwise(kind, &half, &half, Mean).is_err());
    Ok(())
}
