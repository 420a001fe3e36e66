//! Gradients: finite differences, the slow twins, and that the checks can fail.

mod common;

use candle_core::{DType, Device, Result, Tensor};
use common::{CASES, DTYPES, SHAPES, check_mask, check_orthonormal, gradient, tau_off};
use vkd_testkit::{
    GradCheck, Tolerance, assert_close, gradcheck, has_gradient, normal, normal_scaled, to_f64,
};

#[test]
fn finite_differences_agree() -> Result<()> {
    for case in &CASES {
        for (n, k) in
            [(5, 1), (4, 4), (5, 4), (6, 4), (8, 3), (8, 8), (40, 33), (127, 33), (70, 66)]
        {
            for scale in [0., 1e-3, 0.3, 2.] {
                let raw = normal_scaled(&[n, k], DType::F64, 1, scale)?;
                gradcheck(|x| (case.op)(&x[0]), &[raw])
                    .map_err(|e| e.context(format!("{} ({n}, {k}) at {scale}", case.name)))?;
            }
        }
        gradcheck(|x| (case.op)(&x[0]), &[normal(&[2, 3, 5, 3], DType::F64, 1)?])?;
    }
    Ok(())
}

/// Parameters whose lower block or whose eigenvalues are degenerate.
fn degenerate(n: usize, k: usize) -> Result<Vec<(&'static str, Tensor)>> {
    let raw = normal(&[n, k], DType::F64, 2)?;
    let (top, bottom) = (raw.narrow(0, 0, k)?, raw.narrow(0, k, n - k)?);
    let repeated = bottom.narrow(1, 0, 1)?.broadcast_as(bottom.shape())?;
    let some =
        Tensor::cat(&[&bottom.narrow(1, 0, 1)?, &bottom.narrow(1, 1, k - 1)?.zeros_like()?], 1)?;
    // Orthonormal columns below: all eigenvalues in two clusters.
    let eye = Tensor::eye(n - k, DType::F64, &Device::Cpu)?.narrow(1, 0, k.min(n - k))?;
    let equal = eye.pad_with_zeros(1, 0, k - k.min(n - k))?;
    Ok(vec![
        ("zero below", Tensor::cat(&[&top, &bottom.zeros_like()?], 0)?),
        ("zero above", Tensor::cat(&[&top.zeros_like()?, &bottom], 0)?),
        ("repeated columns", Tensor::cat(&[&top, &repeated.contiguous()?], 0)?),
        ("one column", Tensor::cat(&[&top, &some], 0)?),
        ("equal eigenvalues", Tensor::cat(&[&top.zeros_like()?, &equal], 0)?),
    ])
}

#[test]
fn finite_differences_agree_where_rank_is_lost() -> Result<()> {
    for case in &CASES {
        for (n, k) in [(6, 4), (8, 3), (12, 2), (60, 20)] {
            for (what, raw) in degenerate(n, k)? {
                gradcheck(|x| (case.op)(&x[0]), &[raw])
                    .map_err(|e| e.context(format!("{} ({n}, {k}), {what}", case.name)))?;
            }
        }
    }
    Ok(())
}

#[test]
fn twins_agree() -> Result<()> {
    for case in &CASES {
        // At 30 and nearly square, Cayley leaves its Schur form.
        for ((n, k), scale) in
            [((5, 1), 1.), ((8, 8), 1.), ((33, 32), 0.3), ((33, 32), 30.), ((40, 12), 1.)]
        {
            if scale > 1. && case.name == "matrix_exp" {
                continue; // The twin itself loses digits there.
            }
            let raw = normal_scaled(&[n, k], DType::F64, 3, scale)?;
            let (got, want) = (gradient(case.op, &raw)?, gradient(case.twin, &raw)?);
            let what = format!("{} ({n}, {k}) at {scale}", case.name);
            let tolerance = Tolerance { relative: 1e-10, absolute: 1e-14 };
            assert_close(&what, &got, &want, tolerance)?;
            check_mask(&got)?;

            // f32: the same numbers, rounded once.
            let raw = raw.to_dtype(DType::F32)?;
            let cotangent = |op: &dyn Fn(&Tensor) -> Result<Tensor>| {
                gradient(|x| op(&x.to_dtype(DType::F64)?)?.to_dtype(DType::F32), &raw)
            };
            let want = cotangent(&case.twin)?;
            let got = gradient(case.op, &raw)?;
            assert_eq!(got.dtype(), DType::F32);
            // Kernels may form their thin products, sums of up to n k terms, in f32.
            let tolerance = Tolerance::for_op(DType::F32, DType::F32, n * k);
            assert_close(&what, &got, &want, tolerance)?;
            check_mask(&got)?;
        }
    }
    Ok(())
}

/// Parameters at which a kernel may leave its first formula; `twin` where the slow twin has its digits.
fn extreme(n: usize, k: usize) -> Result<Vec<(String, Tensor, bool)>> {
    let raw = normal(&[n, k], DType::F64, 7)?;
    let mut all = vec![
        ("zero".to_owned(), raw.zeros_like()?, true),
        ("subnormal".to_owned(), (&raw * 1e-310)?, true),
        ("1e30".to_owned(), (&raw * 1e30)?, false),
    ];
    for scale in [1., 1e3, 1e5] {
        let column = (raw.narrow(1, 0, 1)? * scale)?;
        let repeated = column.broadcast_as((n, k))?.contiguous()?;
        all.push((format!("repeated columns, {scale:e}"), repeated, scale == 1.));
        if n > k {
            // Lower block of rank one.
            let below = column.narrow(0, k, n - k)?.matmul(&raw.narrow(0, 0, 1)?)?;
            let top = raw.narrow(0, 0, k)?;
            let top = if scale == 1. { top } else { (top * scale)? };
            all.push((
                format!("rank one below, {scale:e}"),
                Tensor::cat(&[&top, &below], 0)?,
                scale == 1.,
            ));
        }
    }
    // Columns over six decades: the singular values of a nearly square block spread as far.
    let decades: Vec<f64> =
        (0..k).map(|j| 10f64.powf(3. - 6. * j as f64 / k.max(2) as f64)).collect();
    let spread = raw.broadcast_mul(&Tensor::new(decades, &Device::Cpu)?)?;
    all.push(("spread singular values".to_owned(), spread, false));
    Ok(all)
}

#[test]
fn extreme_parameters_keep_the_law_and_have_gradients() -> Result<()> {
    for case in &CASES {
        for (n, k) in [(5, 1), (9, 8), (8, 8), (33, 32), (70, 20)] {
            for (what, raw, twin) in extreme(n, k)? {
                let what = format!("{} ({n}, {k}), {what}", case.name);
                for dtype in DTYPES {
                    let raw = raw.to_dtype(dtype)?;
                    check_orthonormal(&what, case.op, &raw)?;
                    let grad = gradient(case.op, &raw).map_err(|e| e.context(what.clone()))?;
                    check_mask(&grad)?;
                    let finite = to_f64(&grad)?.iter().all(|x| x.is_finite());
                    assert!(finite, "{what} {dtype:?}: expected a finite gradient");
                }
                if twin {
                    let (got, want) = (gradient(case.op, &raw)?, gradient(case.twin, &raw)?);
                    let tolerance = Tolerance { relative: 1e-10, absolute: 1e-13 };
                    assert_close(&what, &got, &want, tolerance)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_parameter_without_freedom_has_a_gradient_of_zeros() -> Result<()> {
    for case in &CASES {
        let grad = gradient(case.op, &normal(&[1, 1], DType::F64, 1)?)?;
        assert_close(case.name, &grad, &grad.zeros_like()?, Tolerance::EXACT)?;
    }
    Ok(())
}

#[test]
fn the_gradient_stays_finite_at_any_scale() -> Result<()> {
    for case in &CASES {
        for (n, k) in SHAPES {
            for scale in [1e4, 1e30, 1e200] {
                let grad = gradient(case.op, &normal_scaled(&[n, k], DType::F64, 5, scale)?)?;
                check_mask(&grad)?;
                let largest = grad.abs()?.max_all()?.to_scalar::<f64>()?;
                assert!(
                    largest.is_finite() && largest < 1e3,
                    "{} ({n}, {k}) at {scale:e}",
                    case.name
                );
            }
        }
    }
    Ok(())
}

#[test]
fn steps_downhill_reach_a_target() -> Result<()> {
    // Not a law but the point of it all: the frame nearest to a given one is found.
    for case in &CASES {
        let target = (case.op)(&normal_scaled(&[12, 4], DType::F64, 6, 0.2)?)?;
        let raw = candle_core::Var::zeros((12, 4), DType::F64, &Device::Cpu)?;
        let loss = || ((case.op)(&raw)? - &target)?.sqr()?.sum_all();
        let first = loss()?.to_scalar::<f64>()?;
        for _ in 0..300 {
            let grads = loss()?.backward()?;
            let Some(grad) = grads.get(&raw) else { panic!("no gradient") };
            raw.set(&(raw.as_tensor() - (grad * 0.1)?)?)?;
        }
        let last = loss()?.to_scalar::<f64>()?;
        assert!(last < 1e-3 * first, "{}: {first} -> {last}", case.name);
    }
    Ok(())
}

#[test]
fn the_checks_fail_on_broken_gradients() -> Result<()> {
    for case in &CASES {
        for (n, k) in [(5, 1), (8, 8), (40, 33)] {
            let raw = normal(&[n, k], DType::F64, 4)?;
            assert!(!has_gradient(|x| Ok((case.op)(x)?.detach()), &raw)?);
            assert!(gradient(|x| Ok((case.op)(x)?.detach()), &raw).is_err());
            // One per cent of the value moves without the tape.
            let off = |x: &[Tensor]| (case.op)(&x[0])? + ((case.op)(&x[0].detach())? * 0.01)?;
            assert!(gradcheck(off, std::slice::from_ref(&raw)).is_err());
            let grad = gradient(case.op, &raw)?;
            assert!(check_mask(&(grad + 1e-300)?).is_err());
        }
    }
    // The tape of the broken reflectors is right, so it passes here: the law is what catches it.
    GradCheck::default().run(|x| tau_off(&x[0]), &[normal(&[8, 3], DType::F64, 4)?])
}

#[test]
fn a_parameter_overwritten_before_the_backward_pass_is_noticed() -> Result<()> {
    // What was kept of the old values must not meet the new ones.
    for case in &CASES {
        for (dtype, negated) in
            [DType::F32, DType::F64].into_iter().flat_map(|d| [(d, true), (d, false)])
        {
            let old = normal(&[16, 4], dtype, 1)?;
            // Signs alone are what a weak fingerprint would miss.
            let new = if negated { old.neg()? } else { normal(&[16, 4], dtype, 2)? };
            let weights = normal(&[16, 4], dtype, 3)?;
            let raw = candle_core::Var::from_tensor(&old)?;
            let loss = ((case.op)(&raw)? * &weights)?.sum_all()?;
            raw.set(&new)?;
            let grads = loss.backward()?;
            let fresh = candle_core::Var::from_tensor(&new)?;
            let want = ((case.op)(&fresh)? * &weights)?.sum_all()?.backward()?;
            let (Some(got), Some(want)) = (grads.get(&raw), want.get(&fresh)) else {
                panic!("{}: no gradient", case.name)
            };
            assert_close(case.name, got, want, Tolerance::EXACT)?;
            // A second pass over one graph has nothing kept left, and gives the same.
            let again = loss.backward()?;
            assert_close(case.name, again.get(&raw).unwrap_or(got), got, Tolerance::EXACT)?;
        }
    }
    Ok(())
}
