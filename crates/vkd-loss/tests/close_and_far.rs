//! Inputs whose squares or differences leave the range of a float.

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use vkd_loss::Reduction::Sum;
use vkd_loss::baselines::{DistConfig, Form, RowNorm, attention_transfer, dist, rkd_angle, spkd};
use vkd_loss::geometry::{effective_rank, linear_cka, mean_pairwise_cosine};
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

#[test]
fn the_unit_of_the_features_does_not_matter() -> Result<()> {
    type Loss = Box<dyn Fn(&Tensor, &Tensor) -> Result<Tensor>>;
    let losses: Vec<(Loss, [usize; 4])> = vec![
        (Box::new(|s, t| spkd(s, t, RowNorm::L2)), [5, 3, 2, 2]),
        (Box::new(|s, t| spkd(s, t, RowNorm::L1)), [5, 3, 2, 2]),
        (Box::new(|s, t| attention_transfer(s, t, 2., Form::Code)), [4, 3, 2, 4]),
        (Box::new(|s, t| attention_transfer(s, t, 3.5, Form::Paper)), [4, 3, 2, 4]),
    ];
    for (loss, dims) in losses {
        let (student, teacher) = (normal(&dims, DType::F32, 1)?, normal(&dims, DType::F32, 2)?);
        let (want, want_grad) = run(|s| loss(s, &teacher), &student)?;
        let largest = want_grad.iter().fold(0f64, |m, g| m.max(g.abs()));
        assert!(want > 1e-3 && largest > 1e-4, "{want} {largest}");
        for size in [1e-30, 1e-20, 1e-7, 1e20, 1e30] {
            let (student, teacher) = ((&student * size)?, (&teacher * size)?);
            let (value, grad) = run(|s| loss(s, &teacher), &student)?;
            // The inputs are rounded again, and a few tens of terms are summed in f32.
            assert!((value - want).abs() <= 2e-6 * want, "{size:e}: {value} {want}");
            for (got, want) in grad.iter().zip(&want_grad) {
                assert!((got * size - want).abs() <= 4e-6 * largest, "{size:e}: {got:e} {want:e}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_small_sample_keeps_its_similarities() -> Result<()> {
    // One sample 1e-15 of the others: its row of similarities is that of its direction.
    let xs = normal(&[4, 6], DType::F64, 1)?;
    let teacher = normal(&[4, 6], DType::F64, 2)?;
    let sizes = Tensor::new(&[[1e-15f64], [1.], [1.], [1.]], &Device::Cpu)?;
    let small = xs.broadcast_mul(&sizes)?;
    let (_, grad) = run(|s| spkd(s, &teacher, RowNorm::L2), &small)?;
    assert!(grad[..6].iter().any(|g| g.abs() > 1e12), "{:?}", &grad[..6]);
    Ok(())
}

#[test]
fn dimensions_without_spread_add_nothing_to_the_rank() -> Result<()> {
    for (rows, width) in [(400, 200), (150, 300), (2000, 65)] {
        // Three orthogonal directions of equal spread, turned into all coordinates, and an offset.
        let signs: Vec<f64> = (0..rows)
            .flat_map(|i| [i / 4 % 2, i / 8 % 2, i / 16 % 2].map(|bit| 2. * bit as f64 - 1.))
            .collect();
        let signs =
            Tensor::from_vec(signs, (rows, 3), &Device::Cpu)?.narrow(0, 0, rows / 32 * 32)?;
        let mut frame: Vec<Vec<f64>> = Vec::new();
        for row in normal(&[3, width], DType::F64, 5)?.to_vec2::<f64>()? {
            let mut row = row;
            for other in frame.iter().chain(&frame) {
                let along: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
            }
            let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            frame.push(row.iter().map(|x| x / length).collect());
        }
        let turned = (signs.matmul(&Tensor::new(frame, &Device::Cpu)?)? + 0.7)?;
        let rank = effective_rank(&turned)?;
        // What rounding leaves in the three values themselves.
        assert!((rank - 3.).abs() < 1e-12, "{rows} {width}: {rank}");
    }
    Ok(())
}

#[test]
fn geometry_of_subnormal_features_is_finite() -> Result<()> {
    let xs = (normal(&[6, 3], DType::F64, 1)? * 1e-310)?;
    assert!((linear_cka(&xs, &xs)? - 1.).abs() < 1e-12);
    assert!(mean_pairwise_cosine(&xs)?.is_finite() && effective_rank(&xs)?.is_finite());
    Ok(())
}
