//! What each map must satisfy for every input, and that the checks can fail.

mod common;

use candle_core::{DType, Device, Result, Tensor};
use common::{CASES, DTYPES, SHAPES, cases, check_orthonormal, limit, reads_diagonal, tau_off};
use vkd_ortho::{OrthogonalMap, sample_stiefel, stiefel_residual};
use vkd_testkit::{
    Golden, StiefelCases, Tolerance, assert_close, check_stiefel, gram_residual, matmul, normal,
    normal_scaled, solve, to_f64,
};

#[test]
fn every_map_obeys_the_laws() -> Result<()> {
    for case in &CASES {
        check_stiefel(case.op, &cases(case))?;
    }
    Ok(())
}

#[test]
fn a_map_rounded_to_bf16_stays_at_its_floor() -> Result<()> {
    for case in &CASES {
        let op = |raw: &Tensor| (case.op)(&raw.to_dtype(DType::F32)?)?.to_dtype(DType::BF16);
        let half = StiefelCases { dtypes: vec![DType::BF16], ..cases(case) };
        check_stiefel(op, &half)?;
        let grown = check_stiefel(|raw| op(&raw.to_dtype(DType::F32)?)? * 1.02, &half);
        assert!(grown.is_err_and(|e| e.to_string().contains("residual")), "{}", case.name);
    }
    Ok(())
}

#[test]
fn the_laws_fail_on_broken_maps() -> Result<()> {
    for shape in StiefelCases::default().shapes {
        for dtype in DTYPES {
            for case in &CASES {
                let one = StiefelCases { shapes: vec![shape], dtypes: vec![dtype], ..cases(case) };
                let fails = |law: &str, op: &dyn Fn(&Tensor) -> Result<Tensor>| match check_stiefel(
                    op, &one,
                ) {
                    Ok(()) => panic!("{} {shape:?} {dtype:?}: {law} passes", case.name),
                    Err(e) => assert!(e.to_string().contains(law), "{law}: {e}"),
                };
                fails("residual", &tau_off);
                fails("residual", &|raw| (case.op)(raw)? * (1. + 1e-5));
                fails("no gradient", &|raw| Ok((case.op)(raw)?.detach()));
                if shape.0 > 1 {
                    fails("on and above the diagonal", &|raw| reads_diagonal(case.op, raw));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn columns_of_very_different_size() -> Result<()> {
    for case in &CASES {
        for (n, k) in [(9, 8), (40, 12), (65, 33)] {
            for largest in [1., 1e4, 1e150] {
                let decades: Vec<f64> = (0..k).map(|j| largest * 0.1f64.powi(j as i32)).collect();
                let decades = Tensor::new(decades, &Device::Cpu)?;
                let raw = normal(&[n, k], DType::F64, 2)?.broadcast_mul(&decades)?;
                check_orthonormal(case.name, case.op, &raw)?;
            }
        }
    }
    Ok(())
}

#[test]
fn twins_agree() -> Result<()> {
    for case in &CASES {
        for (n, k) in [(1, 1), (5, 1), (8, 8), (9, 7), (40, 33), (65, 20)] {
            for scale in [0., 1e-2, 1., 3.] {
                let raw = normal_scaled(&[2, n, k], DType::F64, 3, scale)?;
                let tolerance = Tolerance { relative: 0., absolute: 2e-12 };
                assert_close(case.name, &(case.op)(&raw)?, &(case.twin)(&raw)?, tolerance)?;
            }
        }
    }
    Ok(())
}

/// The skew matrix of one `n x k` parameter, padded, row-major.
fn skew(raw: &[f64], n: usize, k: usize) -> Vec<f64> {
    let mut a = vec![0.; n * n];
    for i in 0..n {
        for j in 0..k.min(i) {
            a[i * n + j] = raw[i * k + j];
            a[j * n + i] = -raw[i * k + j];
        }
    }
    a
}

/// `I + factor * a`.
fn shifted(a: &[f64], n: usize, factor: f64) -> Vec<f64> {
    (0..n * n).map(|at| f64::from(u8::from(at / n == at % n)) + factor * a[at]).collect()
}

/// Diagonal Padé approximant of the exponential, of degree 6, with scaling and squaring.
fn dense_exp(a: &[f64], n: usize) -> Result<Vec<f64>> {
    let squarings = 12;
    let a: Vec<f64> = a.iter().map(|x| x / f64::from(1 << squarings)).collect();
    let (mut above, mut below) = (vec![0.; n * n], vec![0.; n * n]);
    let mut power = shifted(&a, n, 0.);
    let mut c = 1.;
    for j in 0..=6 {
        for at in 0..n * n {
            above[at] += c * power[at];
            below[at] += if j % 2 == 0 { c } else { -c } * power[at];
        }
        power = matmul(&power, &a, n, n, n);
        c *= f64::from(6 - j) / f64::from((12 - j) * (j + 1));
    }
    let mut exp = solve(&below, &above, n, n)?;
    for _ in 0..squarings {
        exp = matmul(&exp, &exp, n, n, n);
    }
    Ok(exp)
}

fn dense(map: OrthogonalMap, raw: &[f64], n: usize, k: usize) -> Result<Vec<f64>> {
    let a = skew(raw, n, k);
    match map {
        OrthogonalMap::Cayley => solve(&shifted(&a, n, -0.5), &shifted(&a, n, 0.5), n, n),
        OrthogonalMap::MatrixExp => dense_exp(&a, n),
        OrthogonalMap::Householder => {
            let mut q = shifted(&a, n, 0.);
            for j in 0..k {
                let v: Vec<f64> = (0..n)
                    .map(|i| match i.cmp(&j) {
                        std::cmp::Ordering::Less => 0.,
                        std::cmp::Ordering::Equal => 1.,
                        std::cmp::Ordering::Greater => raw[i * k + j],
                    })
                    .collect();
                let tau = 2. / v.iter().map(|x| x * x).sum::<f64>();
                let outer = matmul(&v, &v, n, 1, n);
                q = matmul(&q, &shifted(&outer, n, -tau), n, n, n);
            }
            Ok(q)
        }
    }
}

#[test]
fn padded_dense_matrices_agree() -> Result<()> {
    for map in OrthogonalMap::ALL {
        for (n, k) in [(1, 1), (5, 1), (8, 8), (9, 7), (40, 33), (64, 20)] {
            for scale in [0., 1e-3, 1.] {
                let raw = normal_scaled(&[n, k], DType::F64, 4, scale)?;
                let full =
                    Tensor::from_vec(dense(map, &to_f64(&raw)?, n, k)?, (n, n), raw.device())?;
                let tolerance = Tolerance { relative: 0., absolute: 1e-11 };
                let what = format!("{map} ({n}, {k}) at {scale:e}");
                assert_close(&what, &map.apply(&raw)?, &full.narrow(1, 0, k)?, tolerance)?;
            }
        }
    }
    Ok(())
}

#[test]
fn pytorch_agrees() -> Result<()> {
    let golden = Golden::open("torch_orthogonal")?;
    for map in OrthogonalMap::ALL {
        for size in ["5x3", "8x8", "33x7"] {
            for (dtype, eps) in [("f64", 1e-13), ("f32", 3e-6)] {
                let get = |key: &str| golden.get(&format!("{map}.{size}.{dtype}.{key}"));
                let sign = if map == OrthogonalMap::Householder { -1. } else { 1. };
                let weight = |raw: &Tensor| get("base")?.matmul(&(map.apply(raw)? * sign)?);
                let tolerance = Tolerance { relative: eps, absolute: 0. };
                let original = get("original")?;
                assert_close(
                    &format!("{map} {size}"),
                    &weight(&original)?,
                    &get("weight")?,
                    tolerance,
                )?;

                let var = candle_core::Var::from_tensor(&original)?;
                let grads = (weight(&var)? * get("cot")?)?.sum_all()?.backward()?;
                let Some(grad) = grads.get(&var) else { panic!("no gradient") };
                let tolerance = Tolerance { relative: 3. * eps, absolute: 0. };
                assert_close(
                    &format!("{map} {size} gradient"),
                    grad,
                    &get("grad_original")?,
                    tolerance,
                )?;
            }
        }
    }
    Ok(())
}

#[test]
fn bad_input_is_an_error_that_says_where() -> Result<()> {
    for case in &CASES {
        let cpu = &Device::Cpu;
        for dims in [vec![3], vec![2, 3], vec![4, 2, 3], vec![3, 0], vec![0, 0]] {
            let Err(e) = (case.op)(&Tensor::zeros(dims, DType::F32, cpu)?) else {
                panic!("{}: expected an error", case.name)
            };
            assert!(e.to_string().contains("n >= k >= 1"), "{e}");
        }
        assert!((case.op)(&Tensor::zeros((3, 2), DType::U32, cpu)?).is_err());
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for dtype in DTYPES {
                let mut values = vec![0.; 24];
                values[12 + 2 * 3 + 1] = bad;
                let raw = Tensor::from_vec(values, (2, 4, 3), cpu)?.to_dtype(dtype)?;
                let Err(e) = (case.op)(&raw) else { panic!("{}: expected an error", case.name) };
                let e = e.to_string();
                assert!(e.contains("matrix 1, row 2, column 1") && e.contains(case.name), "{e}");
            }
        }
    }
    Ok(())
}

#[test]
fn half_types_are_computed_in_f32_and_rounded_once() -> Result<()> {
    for case in &CASES {
        for dtype in [DType::BF16, DType::F16] {
            let raw = candle_core::Var::from_tensor(&normal(&[9, 4], dtype, 3)?)?;
            let q = (case.op)(&raw)?;
            assert_eq!(q.dtype(), dtype);
            let wide = (case.op)(&raw.to_dtype(DType::F32)?)?;
            assert_close(case.name, &q, &wide.to_dtype(dtype)?, Tolerance::EXACT)?;
            let grads = q.to_dtype(DType::F32)?.sqr()?.sum_all()?.backward()?;
            assert!(grads.get(&raw).is_some_and(|grad| grad.dtype() == dtype), "{}", case.name);
        }
    }
    Ok(())
}

#[test]
fn names_round_trip() -> Result<()> {
    for (case, map) in CASES.iter().zip(OrthogonalMap::ALL) {
        assert_eq!(map.to_string(), case.name);
        assert_eq!(case.name.parse::<OrthogonalMap>()?, map);
    }
    assert!("Cayley".parse::<OrthogonalMap>().is_err());
    Ok(())
}

#[test]
fn runs_repeat_bit_for_bit() -> Result<()> {
    for case in &CASES {
        let raw = normal(&[4, 100, 40], DType::F32, 9)?;
        let first = (case.op)(&raw)?;
        for _ in 0..3 {
            assert_close(case.name, &(case.op)(&raw)?, &first, Tolerance::EXACT)?;
        }
    }
    Ok(())
}

#[test]
fn residual_agrees_with_the_plain_sum() -> Result<()> {
    for dims in [vec![7, 3], vec![3, 7], vec![5, 5], vec![2, 3, 6, 4]] {
        let q = normal(&dims, DType::F64, 5)?;
        let (got, want) = (stiefel_residual(&q)?, gram_residual(&q)?);
        assert!((got - want).abs() <= 1e-13 * want, "{dims:?}: {got} {want}");
    }
    let nan = Tensor::new(&[[1f32, f32::NAN]], &Device::Cpu)?;
    assert_eq!(stiefel_residual(&nan)?, f64::INFINITY);
    assert_eq!(stiefel_residual(&Tensor::zeros((2, 0, 3, 2), DType::F32, &Device::Cpu)?)?, 0.);
    assert!(stiefel_residual(&Tensor::zeros(3, DType::F32, &Device::Cpu)?).is_err());
    Ok(())
}

#[test]
fn haar_draws_are_orthonormal_and_uniform() -> Result<()> {
    for (n, k) in SHAPES.into_iter().chain([(3024, 192)]) {
        for dtype in DTYPES {
            let q = sample_stiefel(n, k, 1, dtype, &Device::Cpu)?;
            assert_eq!((q.dims(), q.dtype()), (&[n, k][..], dtype));
            assert!(gram_residual(&q)? <= limit(dtype));
        }
    }
    // Moments of the trace of a Haar matrix of O(3): mean 0, mean square 1. Without the sign fix the mean is far off.
    let draws = 4000;
    let (mut mean, mut square) = (0., 0.);
    for seed in 0..draws {
        let q = to_f64(&sample_stiefel(3, 3, seed, DType::F64, &Device::Cpu)?)?;
        let trace = q[0] + q[4] + q[8];
        mean += trace / draws as f64;
        square += trace * trace / draws as f64;
    }
    // Five standard errors.
    assert!(mean.abs() < 0.08, "mean {mean}");
    assert!((square - 1.).abs() < 0.12, "mean square {square}");

    let draw = |seed| sample_stiefel(6, 2, seed, DType::F64, &Device::Cpu);
    assert_close("same seed", &draw(3)?, &draw(3)?, Tolerance::EXACT)?;
    assert!(assert_close("other seed", &draw(3)?, &draw(4)?, Tolerance::relative(0.01)).is_err());
    for (n, k) in [(2, 3), (2, 0), (0, 0)] {
        assert!(sample_stiefel(n, k, 0, DType::F64, &Device::Cpu).is_err());
    }
    assert!(sample_stiefel(3, 2, 0, DType::F16, &Device::Cpu).is_err());
    Ok(())
}

#[test]
fn reach_of_the_maps() -> Result<()> {
    // n = k: Cayley and exponential stay in the component of the identity, reflectors in that of (-1)^n.
    let determinant = |q: &Tensor| -> Result<f64> {
        let q = to_f64(q)?;
        let minor = |a: usize, b: usize| q[3 + a] * q[6 + b] - q[3 + b] * q[6 + a];
        Ok(q[0] * minor(1, 2) - q[1] * minor(0, 2) + q[2] * minor(0, 1))
    };
    for (case, sign) in CASES.iter().zip([-1., 1., 1.]) {
        for seed in 0..20 {
            let q = (case.op)(&normal_scaled(&[3, 3], DType::F64, seed, 3.)?)?;
            assert!((determinant(&q)? - sign).abs() < 1e-12, "{}", case.name);
        }
    }
    // A half turn: the exponential gets there, Cayley only in the limit.
    let turn = Tensor::new(&[[0., 0.], [std::f64::consts::PI, 0.]], &Device::Cpu)?;
    let half = (Tensor::eye(2, DType::F64, &Device::Cpu)? * -1.)?;
    let tolerance = Tolerance { relative: 0., absolute: 1e-15 };
    assert_close("half turn", &vkd_ortho::matrix_exp(&turn)?, &half, tolerance)?;
    let far = (turn * 1e6)?;
    let tolerance = Tolerance { relative: 0., absolute: 2e-6 };
    assert_close("limit", &vkd_ortho::cayley(&far)?, &half, tolerance)?;
    // The opposite parameter gives the inverse.
    let raw = normal(&[6, 6], DType::F64, 8)?;
    for op in [vkd_ortho::cayley, vkd_ortho::matrix_exp] {
        let product = op(&raw)?.matmul(&op(&raw.neg()?)?)?;
        let eye = Tensor::eye(6, DType::F64, &Device::Cpu)?;
        assert_close("inverse", &product, &eye, Tolerance { relative: 0., absolute: 1e-14 })?;
    }
    Ok(())
}
