//! Softmax loss: against its twin, finite differences, in every layout, and at its edges.

use super::{Target, reference, softmax_loss};
use crate::Reduction::{self, BatchMean, Mean, Sum};
use crate::{cross_entropy, kl, soft_cross_entropy};
use candle_core::{D, DType, Device, Result, Tensor, Var};
use vkd_testkit::OpCase;
use vkd_testkit::{Tolerance, assert_close, normal, normal_scaled, to_f64};

const OP: &str = "softmax_loss";

fn labels(batch: usize, classes: usize) -> Result<Tensor> {
    let labels: Vec<u32> = (0..batch).map(|i| ((5 * i + 2) % classes) as u32).collect();
    Tensor::new(labels, &Device::Cpu)
}

fn probabilities(dims: &[usize], seed: u64) -> Result<Tensor> {
    let weights = normal(dims, DType::F64, seed)?.exp()?;
    weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)
}

/// Every kind with inputs for it.
fn cases(batch: usize, classes: usize) -> Result<Vec<(Target, [Tensor; 2])>> {
    let dims = [batch, classes];
    let logits = normal_scaled(&dims, DType::F64, 1, 3.)?;
    let teacher = normal_scaled(&dims, DType::F64, 2, 3.)?;
    Ok(vec![
        (Target::Labels { smoothing: 0. }, [logits.clone(), labels(batch, classes)?]),
        (Target::Labels { smoothing: 0.1 }, [logits.clone(), labels(batch, classes)?]),
        (Target::Probabilities, [logits.clone(), probabilities(&dims, 3)?]),
        (Target::Logits { temperature: 1. }, [logits.clone(), teacher.clone()]),
        (Target::Logits { temperature: 4. }, [logits, teacher]),
    ])
}

fn case<'a>(what: &'a str, inputs: &'a [Tensor]) -> OpCase<'a> {
    OpCase { what, inputs, active: 1, f64_tolerance: 1e-12, f32_tolerance: 1e-6 }
}

#[test]
fn agrees_with_its_twin() -> Result<()> {
    for (batch, classes) in [(1, 1), (1, 7), (7, 33), (33, 7)] {
        for (kind, inputs) in cases(batch, classes)? {
            for reduction in [Mean, Sum, BatchMean, Reduction::None] {
                case(OP, &inputs).check(
                    |x| softmax_loss(OP, kind, &x[0], &x[1], reduction),
                    |x| reference::softmax_loss(kind, &x[0], &x[1], reduction),
                )?;
            }
        }
    }
    Ok(())
}

#[test]
fn harness_has_teeth() -> Result<()> {
    for (batch, classes) in [(2, 3), (33, 7)] {
        for (kind, inputs) in cases(batch, classes)? {
            case(OP, &inputs).has_teeth(
                |x| softmax_loss(OP, kind, &x[0], &x[1], Mean),
                |x| reference::softmax_loss(kind, &x[0], &x[1], Mean),
            )?;
        }
    }
    Ok(())
}

#[test]
fn extremes_stay_finite() -> Result<()> {
    let logits = [[1e4f32, -1e4, 0., 1.], [-1e4, -1e4, 1e4, 1e4]];
    let student = Var::new(&logits, &Device::Cpu)?;
    let teacher = (student.detach() * -1.)?;
    let even = Tensor::full(0.25f32, (2, 4), &Device::Cpu)?;
    let labels = Tensor::new(&[1u32, 0], &Device::Cpu)?;
    for loss in [
        kl(&student, &teacher, 1., Mean)?,
        kl(&student, &teacher, 4., Mean)?,
        cross_entropy(&student, &labels, 0., Mean)?,
        cross_entropy(&student, &labels, 0.1, Mean)?,
        soft_cross_entropy(&student, &even, Mean)?,
    ] {
        assert!(loss.to_scalar::<f32>()?.is_finite(), "{loss}");
        let grads = loss.backward()?;
        assert!(to_f64(grads.get(&student).unwrap())?.iter().all(|g| g.is_finite()));
    }
    Ok(())
}

#[test]
fn masked_classes_count_nothing_and_nan_is_not_hidden() -> Result<()> {
    let masked = Tensor::new(&[[1f64, f64::NEG_INFINITY, 3.]], &Device::Cpu)?;
    let plain = Tensor::new(&[[1f64, 3.]], &Device::Cpu)?;
    let teacher = Tensor::new(&[[2f64, f64::NEG_INFINITY, 1.]], &Device::Cpu)?;
    let got = kl(&masked, &teacher, 1., Mean)?.to_scalar::<f64>()?;
    let want =
        kl(&plain, &Tensor::new(&[[2f64, 1.]], &Device::Cpu)?, 1., Mean)?.to_scalar::<f64>()?;
    assert!((got - want).abs() < 1e-15, "{got} {want}");
    let label = Tensor::new(&[2u32], &Device::Cpu)?;
    assert!(cross_entropy(&masked, &label, 0., Mean)?.to_scalar::<f64>()?.is_finite());
    let e = cross_entropy(&masked, &label, 0.1, Mean).unwrap_err().to_string();
    assert!(e.contains("expected finite logits, got -inf in row 0, entry 1"), "{e}");
    Ok(())
}

#[test]
fn the_twin_masks_as_the_op_does() -> Result<()> {
    const MASKED: f64 = f64::NEG_INFINITY;
    let logits = Tensor::new(&[[1., MASKED, 3., -2.], [0.5, -1., 2., MASKED]], &Device::Cpu)?;
    let teacher = Tensor::new(&[[2., MASKED, 1., MASKED], [MASKED, 0., 1., MASKED]], &Device::Cpu)?;
    let plain = teacher.maximum(-1e4)?;
    let weights = Tensor::new(&[[0.25, 0., 0.75, 0.], [0., 0.5, 0.5, 0.]], &Device::Cpu)?;
    let labels = Tensor::new(&[2u32, 0], &Device::Cpu)?;
    for (kind, student, target) in [
        (Target::Labels { smoothing: 0. }, &logits, &labels),
        (Target::Probabilities, &logits, &weights),
        (Target::Logits { temperature: 1. }, &logits, &teacher),
        (Target::Logits { temperature: 4. }, &logits, &teacher),
        // The student knows the class that the teacher masks.
        (Target::Logits { temperature: 4. }, &plain, &teacher),
        // Whose loss is infinite.
        (Target::Labels { smoothing: 0.1 }, &logits, &labels),
        (Target::Logits { temperature: 1. }, &teacher, &plain),
    ] {
        for reduction in [Mean, Sum, Reduction::None] {
            let run = |f: &dyn Fn(&Tensor) -> Result<Tensor>| -> Result<(Tensor, Tensor)> {
                let var = Var::from_tensor(student)?;
                let loss = f(&var)?;
                let grads = loss.sum_all()?.backward()?;
                Ok((loss.detach(), grads.get(&var).unwrap().clone()))
            };
            let (got, ds) = run(&|s| reference::softmax_loss(kind, s, target, reduction))?;
            let (want, want_ds) = run(&|s| softmax_loss(OP, kind, s, target, reduction))?;
            for (got, want) in to_f64(&got)?.into_iter().zip(to_f64(&want)?) {
                assert!(got == want || (got - want).abs() < 1e-14, "{kind:?}: {got} {want}");
            }
            assert!(to_f64(&want_ds)?.iter().all(|g| g.is_finite()), "{kind:?}: {want_ds}");
            // Of order one, up to the temperature.
            let allowed = Tolerance { relative: 0., absolute: 1e-14 };
            assert_close("gradient", &ds, &want_ds, allowed)?;
        }
    }
    Ok(())
}

#[test]
fn values_that_are_not_finite_are_named() -> Result<()> {
    let label = Tensor::new(&[2u32], &Device::Cpu)?;
    for bad in [f64::NAN, f64::INFINITY] {
        let xs = Tensor::new(&[[bad, 0., 1.]], &Device::Cpu)?;
        let finite = Tensor::new(&[[0f64, 0., 1.]], &Device::Cpu)?;
        let named = |r: Result<Tensor>, name: &str| {
            let e = r.unwrap_err().to_string();
            assert!(e.contains(name) && e.contains("in row 0, entry 0"), "{e}");
        };
        named(cross_entropy(&xs, &label, 0., Mean), "cross_entropy: expected finite logits");
        named(kl(&finite, &xs, 1., Mean), "kl: expected finite teacher logits");
        named(kl(&xs, &finite, 1., Mean), "kl: expected finite student logits");
        assert!(to_f64(&kl(&xs, &finite, 1., Reduction::None)?)?[0].is_nan());
    }
    Ok(())
}

#[test]
fn bad_arguments_are_named() -> Result<()> {
    let xs = normal(&[3, 4], DType::F32, 1)?;
    let text = |r: Result<Tensor>| r.unwrap_err().to_string();
    let dev = &Device::Cpu;
    let good = Tensor::new(&[0u32, 3, 1], dev)?;
    let e = text(cross_entropy(&xs, &Tensor::new(&[0u32, 4, 1], dev)?, 0., Mean));
    assert!(e.contains("cross_entropy: expected class < 4, got class 4 in row 1"), "{e}");
    let e = text(cross_entropy(&xs, &Tensor::new(&[0u32, 1], dev)?, 0., Mean));
    assert!(e.contains("expected U32 labels of shape [3], got U32 [2]"), "{e}");
    assert!(
        text(cross_entropy(&xs, &good.to_dtype(DType::I64)?, 0., Mean)).contains("got I64 [3]")
    );
    for smoothing in [-0.1, 1., f64::NAN] {
        assert!(text(cross_entropy(&xs, &good, smoothing, Mean)).contains("0 <= smoothing < 1"));
    }
    for temperature in [0., -1., f64::NAN, f64::INFINITY] {
        assert!(
            text(kl(&xs, &xs, temperature, Mean)).contains("kl: expected a finite temperature > 0")
        );
    }
    for temperature in [1e8, 1e200] {
        assert!(text(kl(&xs, &xs, temperature, Mean)).contains("at most 1e6"));
    }
    let none = xs.narrow(0, 0, 0)?;
    assert!(text(kl(&none, &none, 1., Mean)).contains("kl: expected logits (B, C) with B, C >= 1"));
    assert!(text(kl(&xs, &xs.narrow(1, 0, 3)?, 1., Mean)).contains("shape [3, 4], got [3, 3]"));
    assert!(text(kl(&xs, &xs.to_dtype(DType::F64)?, 1., Mean)).contains("dtype F32, got F64"));
    assert!(
        text(kl(&xs, Var::from_tensor(&xs)?.as_tensor(), 1., Mean))
            .contains("teacher logits without gradient")
    );
    let off = Tensor::new(&[[0.25f32; 4], [0.25, 0.25, 0.25, 0.26], [0.25; 4]], dev)?;
    let e = text(soft_cross_entropy(&xs, &off, Mean));
    assert!(e.contains("sum to 1") && e.contains("in row 1 (off by 9.99"), "{e}");
    let negative = Tensor::new(&[[0.25f32; 4], [0.25; 4], [0.5, 0.75, -0.25, 0.]], dev)?;
    let e = text(soft_cross_entropy(&xs, &negative, Mean));
    assert!(e.contains("got -0.25 in row 2, class 2"), "{e}");
    Ok(())
}
