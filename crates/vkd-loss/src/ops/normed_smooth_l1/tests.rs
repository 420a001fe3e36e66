//! Fused smooth-L1 and layer norm: against its twin, the two ops, finite differences, and at its edges.

use super::{reference, smooth_l1_layer_norm};
use crate::smooth_l1;
use candle_core::{DType, Device, Result, Tensor, Var};
use vkd_norm::layer_norm;
use vkd_testkit::OpCase;
use vkd_testkit::{Tolerance, assert_close, normal, to_f64};

const EPS: f64 = 1e-5;

fn case<'a>(inputs: &'a [Tensor]) -> OpCase<'a> {
    let what = "smooth_l1_layer_norm";
    OpCase { what, inputs, active: 1, f64_tolerance: 1e-12, f32_tolerance: 2e-6 }
}

fn inputs(dims: &[usize], seed: u64) -> Result<[Tensor; 2]> {
    Ok([normal(dims, DType::F64, seed)?, normal(dims, DType::F64, seed + 50)?.affine(3., 2.)?])
}

#[test]
fn agrees_with_its_twin() -> Result<()> {
    for beta in [0.01, 1., 30.] {
        for (dims, seed) in [(vec![7], 1), (vec![33, 7], 2), (vec![2, 3, 5, 40], 3)] {
            case(&inputs(&dims, seed)?).check(
                |x| smooth_l1_layer_norm(&x[0], &x[1], beta, EPS),
                |x| reference::smooth_l1_layer_norm(&x[0], &x[1], beta, EPS),
            )?;
        }
    }
    Ok(())
}

#[test]
fn harness_has_teeth() -> Result<()> {
    for dims in [[2, 3], [33, 7]] {
        case(&inputs(&dims, 1)?).has_teeth(
            |x| smooth_l1_layer_norm(&x[0], &x[1], 1., EPS),
            |x| reference::smooth_l1_layer_norm(&x[0], &x[1], 1., EPS),
        )?;
    }
    Ok(())
}

#[test]
fn equals_the_two_ops_where_threads_share_the_work() -> Result<()> {
    let student = Var::from_tensor(&normal(&[700, 193], DType::F32, 1)?)?;
    // Rows with a mean far above their deviation.
    let teacher = (normal(&[700, 193], DType::F32, 2)? + 1e3)?;
    let fused = smooth_l1_layer_norm(&student, &teacher, 1., EPS)?;
    let two = smooth_l1(&student, &layer_norm(&teacher, EPS)?, 1., crate::Reduction::Mean)?;
    // The terms are the same; the order of their sum is not.
    assert_close("value", &fused, &two, Tolerance::relative(1e-6))?;
    let (fused, two) = (fused.backward()?, two.backward()?);
    let (fused, two) = (fused.get(&student).unwrap(), two.get(&student).unwrap());
    assert_close("gradient", fused, two, Tolerance::relative(1e-6))
}

#[test]
fn edges() -> Result<()> {
    for dtype in [DType::F32, DType::F64] {
        // A constant teacher row is normed to zero, huge values do not overflow.
        let teacher = Tensor::new(&[[5f32, 5., 5.], [1e30, -1e30, 0.]], &Device::Cpu)?;
        let teacher = teacher.to_dtype(dtype)?;
        let student = Var::from_tensor(&layer_norm(&teacher, EPS)?)?;
        let loss = smooth_l1_layer_norm(&student, &teacher, 1., EPS)?;
        assert!(to_f64(&loss)?[0] < 1e-10, "{dtype:?}: {loss}");
        let grad = loss.backward()?;
        assert!(to_f64(grad.get(&student).unwrap())?.iter().all(|g| g.abs() < 1e-6));
    }
    for bad in [f32::NAN, f32::INFINITY] {
        let broken = Tensor::new(&[[1f32, 2.], [bad, 1.]], &Device::Cpu)?;
        let good = Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu)?;
        for (student, teacher, name) in [(&good, &broken, "teacher"), (&broken, &good, "student")] {
            let e = smooth_l1_layer_norm(student, teacher, 1., EPS).unwrap_err().to_string();
            let want = format!("smooth_l1_layer_norm: expected finite {name}, got");
            assert!(e.contains(&want) && e.contains("in row 1, entry 0"), "{e}");
        }
    }
    Ok(())
}

#[test]
fn half_types_are_computed_in_f32() -> Result<()> {
    for dtype in [DType::BF16, DType::F16] {
        let [student, teacher] = inputs(&[33, 7], 5)?;
        let run = |to: DType| -> Result<(Tensor, Tensor)> {
            let half = student.to_dtype(dtype)?.to_dtype(to)?;
            let student = Var::from_tensor(&half)?;
            let teacher = teacher.to_dtype(dtype)?.to_dtype(to)?;
            let loss = smooth_l1_layer_norm(&student, &teacher, 1., EPS)?;
            let grads = loss.backward()?;
            Ok((loss.detach(), grads.get(&student).unwrap().clone()))
        };
        let ((got, ds), (want, want_ds)) = (run(dtype)?, run(DType::F32)?);
        assert_close("value", &got, &want, Tolerance::EXACT)?;
        assert_close("gradient", &ds, &want_ds.to_dtype(dtype)?, Tolerance::EXACT)?;
    }
    Ok(())
}

#[test]
fn bad_arguments_are_named() -> Result<()> {
    let xs = normal(&[3, 4], DType::F32, 1)?;
    let message = |a: &Tensor, b: &Tensor, beta: f64, eps: f64| {
        smooth_l1_layer_norm(a, b, beta, eps).unwrap_err().to_string()
    };
    let e = message(&xs, &xs.t()?, 1., EPS);
    assert!(e.contains("smooth_l1_layer_norm: expected a teacher of the shape [3, 4]"), "{e}");
    let e = message(&xs, Var::from_tensor(&xs)?.as_tensor(), 1., EPS);
    assert!(e.contains("a teacher without gradient"), "{e}");
    assert!(message(&xs, &xs, 0., EPS).contains("expected a finite beta > 0"));
    assert!(message(&xs, &xs, 1., f64::NAN).contains("expected a finite eps > 0"));
    let scalar = Tensor::new(1f32, &Device::Cpu)?;
    assert!(message(&scalar, &scalar, 1., EPS).contains("expected (.., C)"));
    let none = xs.narrow(0, 0, 0)?;
    assert!(message(&none, &none, 1., EPS).contains("[0, 4]"));
    Ok(())
}
