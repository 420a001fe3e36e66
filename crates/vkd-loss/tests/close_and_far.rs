//! Inputs whose squares or differences leave the range of a float.

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use vkd_loss::Reduction::Sum;
use vkd_loss::baselines::{DistConfig, dist, rkd_angle};
use vkd_testkit::{normal, to_f64};

/// Value and gradient of the student.
fn run(f: impl Fn(&Tensor) -> Result<Tensor>, student: &Tensor) -> Result<(f64, Vec<f64>)> {
    let var = Var::from_tensor(student)?;
    let loss = f(&var)?;
    let grads = loss.backward()?;
    let Some(grad) = grads.get(&var) else { bail!("expected a gradient of the student, got none") };
    Ok((to_f64(&loss)?[0], to_f64(grad)?))
}

#[test]
fn dist_has_a_gradient_at_every_size() -> Result<()> {
    let check = |student: &Tensor, teacher: &Tensor, temperature: f64| -> Result<()> {
        let config = DistConfig { temperature, ..DistConfig::default() };
        let (value, grad) = run(|s| dist(s, teacher, config), student)?;
        assert!(value.is_finite() && grad.iter().all(|g| g.is_finite()), "{value} {grad:?}");
        Ok(())
    };
    for size in [1., 10., 100., 200., 300., 350., 400., 600., 1e3, 3e3, 1e4] {
        for seed in 0..40 {
            for dtype in [DType::F32, DType::F64] {
                let draw = |seed| normal(&[4, 10], dtype, seed)? * size;
                check(&draw(2 * seed)?, &draw(2 * seed + 1)?, 1.)?;
            }
        }
    }
    // One class below all others, so that its probabilities have no square.
    for gap in (300..760).step_by(2) {
        let below = Tensor::new(&[0f64, 0., -f64::from(gap)], &Device::Cpu)?;
        let draw = |seed| normal(&[4, 3], DType::F64, seed)?.broadcast_add(&below);
        check(&draw(1)?, &draw(2)?, 1.)?;
        check(&(draw(1)? * 0.1)?, &(draw(2)? * 0.1)?, 0.1)?;
    }
    Ok(())
}

/// The paper's sum and its gradient, from the vectors between samples.
fn angles_from_vectors(student: &Tensor, teacher: &Tensor) -> Result<(f64, Vec<f64>)> {
    let (s, t) = (student.to_vec2::<f64>()?, teacher.to_vec2::<f64>()?);
    let between = |x: &[Vec<f64>], i: usize, j: usize| -> (Vec<f64>, f64) {
        let e: Vec<f64> = x[j].iter().zip(&x[i]).map(|(a, b)| a - b).collect();
        let length = e.iter().map(|x| x * x).sum::<f64>().sqrt();
        (e.iter().map(|x| x / length).collect(), length)
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (n, width) = (s.len(), s[0].len());
    let (mut total, mut grad) = (0., vec![0.; n * width]);
    for i in 0..n {
        for j in (0..n).filter(|j| *j != i) {
            // Where j is k both cosines are one.
            for k in (0..n).filter(|k| *k != i && *k != j) {
                let ((a, a_length), (b, b_length)) = (between(&s, i, j), between(&s, i, k));
                let cosine = dot(&a, &b);
                let d = cosine - dot(&between(&t, i, j).0, &between(&t, i, k).0);
                total += if d.abs() < 1. { 0.5 * d * d } else { d.abs() - 0.5 };
                let slope = d.clamp(-1., 1.);
                for c in 0..width {
                    let to_j = slope * (b[c] - cosine * a[c]) / a_length;
                    let to_k = slope * (a[c] - cosine * b[c]) / b_length;
                    grad[j * width + c] += to_j;
                    grad[k * width + c] += to_k;
                    grad[i * width + c] -= to_j + to_k;
                }
            }
        }
    }
    Ok((total, grad))
}

#[test]
fn angles_of_near_duplicates_are_those_of_vectors() -> Result<()> {
    for near in [1e-3, 1e-6, 1e-7, 1e-8, 1e-9] {
        for shift in [0., 3.] {
            for seed in 0..8 {
                // Pairs of samples `near` apart; the third of each is not drawn near.
                let close = |seed| -> Result<Tensor> {
                    let xs = normal(&[2, 4], DType::F64, seed)?;
                    let twins = (&xs + (normal(&[2, 4], DType::F64, seed + 100)? * near)?)?;
                    Tensor::cat(&[xs, twins, normal(&[2, 4], DType::F64, seed + 200)?], 0)? + shift
                };
                let (student, teacher) = (close(seed)?, close(seed + 50)?);
                let (value, grad) = run(|s| rkd_angle(s, &teacher, Sum), &student)?;
                let (want, want_grad) = angles_from_vectors(&student, &teacher)?;
                // Cosines are off by 2.2e-16 over the ratio of the distances, about a hundred of them are summed.
                let allowed = 1e-13 / near;
                assert!((value - want).abs() <= allowed * want, "{near} {shift}: {value} {want}");
                let largest = want_grad.iter().fold(0f64, |m, g| m.max(g.abs()));
                for (got, want) in grad.iter().zip(&want_grad) {
                    assert!(
                        (got - want).abs() <= allowed * largest,
                        "{near} {shift}: {got} {want}"
                    );
                }
            }
        }
    }
    Ok(())
}
