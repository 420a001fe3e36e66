//! Losses of discriminators and generators: the recorded values, laws, gradients.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use candle_core::{DType, Device, Result, Tensor, Var};
use vkd_loss::baselines::{kd_dlgan_features, kd_dlgan_texts};
use vkd_loss::{hinge_generated, hinge_generator, hinge_real, lecam, lecam_at};
use vkd_testkit::{Golden, Tolerance, assert_close, gradcheck, normal, to_f64};

/// f64 to rounding, f32 to its resolution.
fn tolerance(dtype: DType) -> Tolerance {
    Tolerance::relative(if dtype == DType::F64 { 1e-13 } else { 1e-6 })
}

#[test]
fn hinges_and_lecam_are_the_recorded_ones() -> Result<()> {
    let golden = Golden::open("biggan")?;
    for dtype in [DType::F64, DType::F32] {
        let get = |key: &str| golden.get(key)?.to_dtype(dtype);
        for case in ["plain", "full"] {
            let close = |key: &str, got: Tensor| {
                assert_close(key, &got, &golden.get(&format!("{case}.{key}"))?, tolerance(dtype))
            };
            let scores = |key: &str| get(&format!("{case}.{key}"));
            close("d_train.hinge_real", hinge_real(&scores("d_train.score_real")?)?)?;
            close("d_train.hinge_fake", hinge_generated(&scores("d_train.score_fake")?)?)?;
            let scores = scores("g_loss.score")?;
            // A mean that cancels is as exact as its terms.
            let size = to_f64(&scores)?.iter().fold(0f64, |m, s| m.max(s.abs()));
            let tolerance = Tolerance { relative: 0., absolute: size * tolerance(dtype).relative };
            let want = golden.get(&format!("{case}.g_loss.hinge"))?;
            assert_close("g_loss.hinge", &hinge_generator(&scores)?, &want, tolerance)?;
        }
        let real = Var::from_tensor(&get("lecam.score_real")?)?;
        let generated = Var::from_tensor(&get("lecam.score_fake")?)?;
        let mean = |key: &str| golden.get(key)?.to_dtype(DType::F64)?.to_scalar::<f64>();
        let loss = lecam(&real, &generated, mean("lecam.ema_real")?, mean("lecam.ema_fake")?)?;
        assert_close("lecam", &loss, &golden.get("lecam.value")?, tolerance(dtype))?;
        let grads = loss.backward()?;
        for (key, var) in [("lecam.grad_real", &real), ("lecam.grad_fake", &generated)] {
            assert_close(key, grads.get(var).unwrap(), &golden.get(key)?, tolerance(dtype))?;
        }
    }
    Ok(())
}

#[test]
fn gradients_equal_differences() -> Result<()> {
    // No score within a step of a corner.
    let (a, b) = (normal(&[7], DType::F64, 1)?, normal(&[5], DType::F64, 2)?);
    gradcheck(|x| hinge_real(&x[0]), std::slice::from_ref(&a))?;
    gradcheck(|x| hinge_generated(&x[0]), std::slice::from_ref(&a))?;
    gradcheck(|x| hinge_generator(&x[0]), std::slice::from_ref(&a))?;
    gradcheck(|x| lecam(&x[0], &x[1], 0.4, -0.3), &[a, b])?;
    let rows = |seed| normal(&[4, 6], DType::F64, seed);
    let (teacher, texts) = (rows(3)?, normal(&[3, 6], DType::F64, 4)?);
    gradcheck(|x| kd_dlgan_features(&x[0], &x[1], &teacher), &[rows(5)?, rows(6)?])?;
    gradcheck(|x| kd_dlgan_texts(&x[0], &teacher, &texts), &[rows(5)?])
}

#[test]
fn kd_dlgan_is_its_formula() -> Result<()> {
    let rows = |seed| normal(&[4, 6], DType::F64, seed)?.to_vec2::<f64>();
    let (own, other, teacher, texts) = (rows(1)?, rows(2)?, rows(3)?, rows(4)?);
    let distance =
        |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    let tensor = |rows: &Vec<Vec<f64>>| Tensor::new(rows.clone(), &Device::Cpu);
    let mut want = 0.;
    for i in 0..4 {
        want += (distance(&own[i], &teacher[i]) + distance(&other[i], &teacher[i])) / 4.;
    }
    let got = kd_dlgan_features(&tensor(&own)?, &tensor(&other)?, &tensor(&teacher)?)?;
    assert!((got.to_scalar::<f64>()? - want).abs() < 1e-13 * want);
    let similar = |row: &[f64]| {
        let dots: Vec<f64> =
            texts.iter().map(|t| t.iter().zip(row).map(|(a, b)| a * b).sum::<f64>()).collect();
        let length = dots.iter().map(|d| d * d).sum::<f64>().sqrt();
        dots.iter().map(|d| d / length).collect::<Vec<_>>()
    };
    let want: f64 =
        own.iter().zip(&teacher).map(|(s, t)| distance(&similar(s), &similar(t)).powi(2)).sum();
    let got = kd_dlgan_texts(&tensor(&own)?, &tensor(&teacher)?, &tensor(&texts)?)?;
    assert!((got.to_scalar::<f64>()? - want).abs() < 1e-12 * want);
    // It does not see how long the rows are.
    let longer = kd_dlgan_texts(&(tensor(&own)? * 7.)?, &tensor(&teacher)?, &tensor(&texts)?)?;
    assert!((longer.to_scalar::<f64>()? - want).abs() < 1e-12 * want);
    let same = kd_dlgan_texts(&tensor(&teacher)?, &tensor(&teacher)?, &tensor(&texts)?)?;
    assert_eq!(same.to_scalar::<f64>()?, 0.);
    Ok(())
}

#[test]
fn bad_scores_are_named() -> Result<()> {
    let scores = |values: &[f32]| Tensor::new(values, &Device::Cpu);
    let says = |result: Result<Tensor>| result.unwrap_err().to_string();
    let empty = Tensor::zeros(0, DType::F32, &Device::Cpu)?;
    assert!(says(hinge_real(&empty)).contains("hinge_real: expected at least one score"));
    let odd = says(hinge_generated(&scores(&[1., f32::NAN])?));
    assert!(odd.contains("hinge_generated: expected finite scores, got NaN"), "{odd}");
    let one = scores(&[1.])?;
    assert!(says(lecam(&one, &one, f64::NAN, 0.)).contains("finite averages"));
    assert!(says(lecam(&one, &one.to_dtype(DType::F64)?, 0., 0.)).contains("one dtype"));
    assert!(says(lecam(&one, &empty, 0., 0.)).contains("lecam generated"));
    let means = |values: &[f64]| Tensor::new(values, &Device::Cpu);
    assert!(says(lecam_at(&one, &one, &means(&[f64::NAN, 0.])?)).contains("finite averages"));
    assert!(says(lecam_at(&one, &one, &means(&[0.; 3])?)).contains("two averages of f64"));
    assert!(hinge_real(&one.to_dtype(DType::U8)?).is_err());
    // Half types go through f32.
    assert_eq!(hinge_real(&one.to_dtype(DType::BF16)?)?.dtype(), DType::F32);
    let rows = normal(&[2, 3], DType::F32, 1)?;
    assert!(says(kd_dlgan_texts(&rows, &rows, &rows.t()?)).contains("texts (K, 3), got [3, 2]"));
    assert!(kd_dlgan_features(&rows, &rows, &rows.narrow(0, 0, 1)?).is_err());
    Ok(())
}
