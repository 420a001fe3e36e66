//! Whiten: against its twin, finite differences, in every layout, and at its edges.

use super::{NotPositiveDefinite, reference, whiten_cholesky};
use candle_core::{DType, Device, Result, Tensor};
use vkd_testkit::OpCase;
use vkd_testkit::{normal, to_f64};

fn case<'a>(inputs: &'a [Tensor]) -> OpCase<'a> {
    OpCase { what: "whiten_cholesky", inputs, active: 1, f64_tolerance: 1e-9, f32_tolerance: 1e-6 }
}

#[test]
fn agrees_with_its_twin() -> Result<()> {
    for eps in [0., 0.3] {
        for (dims, seed) in [([2, 1], 1), ([7, 3], 2), ([33, 7], 3), ([70, 33], 4)] {
            let inputs = [(normal(&dims, DType::F64, seed)? + 0.7)?];
            case(&inputs).check(
                |x| whiten_cholesky(&x[0], eps),
                |x| reference::whiten_cholesky(&x[0], eps),
            )?;
        }
    }
    // Fewer rows than channels: the shrinkage carries it.
    let inputs = [normal(&[5, 7], DType::F64, 5)?];
    case(&inputs).check(|x| whiten_cholesky(&x[0], 0.1), |x| reference::whiten_cholesky(&x[0], 0.1))
}

#[test]
fn harness_has_teeth() -> Result<()> {
    for dims in [[6, 3], [33, 7]] {
        let inputs = [normal(&dims, DType::F64, 1)?];
        case(&inputs)
            .has_teeth(|x| whiten_cholesky(&x[0], 0.), |x| reference::whiten_cholesky(&x[0], 0.))?;
    }
    Ok(())
}

fn failure(xs: &Tensor, eps: f64) -> NotPositiveDefinite {
    for twin in [false, true] {
        let result =
            if twin { reference::whiten_cholesky(xs, eps) } else { whiten_cholesky(xs, eps) };
        let text = result.unwrap_err().to_string();
        assert!(
            text.contains("whiten_cholesky: expected a positive definite covariance"),
            "{text}"
        );
    }
    let problem = super::Problem { rows: xs.dims()[0], channels: xs.dims()[1], eps };
    match problem.forward(to_f64(xs).unwrap()) {
        Err(super::Failure::NotPositiveDefinite(error)) => error,
        _ => panic!("the kernel passed"),
    }
}

#[test]
fn a_singular_covariance_is_an_error_that_says_where() -> Result<()> {
    // A channel that repeats another, in sum; a constant channel; fewer rows than channels.
    let free = normal(&[40, 3], DType::F64, 1)?;
    let sum = free.sum_keepdim(1)?;
    let e = failure(&Tensor::cat(&[&free, &sum], 1)?, 0.);
    assert_eq!((e.rows, e.channels, e.index), (40, 4, 3));
    assert!(e.pivot.abs() < 1e-13, "{e}");
    let constant = Tensor::full(2f64, (40, 1), &Device::Cpu)?;
    let e = failure(&Tensor::cat(&[&constant, &free], 1)?, 0.);
    assert_eq!((e.index, e.pivot), (0, 0.));
    let wide = normal(&[5, 7], DType::F64, 2)?;
    let e = failure(&wide, 0.);
    assert_eq!((e.rows, e.channels), (5, 7));
    assert!(e.index >= 4 && e.to_string().contains("N <= d has rank at most 4"), "{e}");
    // A shrinkage that the largest channel drowns.
    let e = failure(&(&wide * 1e12)?, 1e-4);
    assert!(e.pivot < 1e-14, "{e}");
    Ok(())
}

#[test]
fn bad_arguments_are_named() -> Result<()> {
    let xs = normal(&[9, 4], DType::F32, 1)?;
    for eps in [-1e-9, 1., f64::NAN] {
        let e = whiten_cholesky(&xs, eps).unwrap_err().to_string();
        assert!(e.contains("whiten_cholesky: expected 0 <= eps < 1"), "{e}");
    }
    let e = whiten_cholesky(&xs.narrow(0, 0, 1)?, 0.).unwrap_err().to_string();
    assert!(e.contains("N >= 2") && e.contains("[1, 4]"), "{e}");
    assert!(whiten_cholesky(&xs.to_dtype(DType::F16)?, 0.).is_err());
    let mut bad = vec![0f32; 12];
    bad[5] = f32::NAN;
    let e = whiten_cholesky(&Tensor::from_vec(bad, (4, 3), &Device::Cpu)?, 0.1)
        .unwrap_err()
        .to_string();
    assert!(e.contains("not finite in channel 2"), "{e}");
    Ok(())
}
