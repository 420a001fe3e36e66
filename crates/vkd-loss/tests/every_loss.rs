//! What holds for every loss of a student and a teacher: its least value, extremes, gradients, and how bad input is named.

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use vkd_loss::Reduction::{self, BatchMean, Mean, Sum};
use vkd_loss::baselines::{
    CckdConfig, CckdKernel, DistConfig, DkdConfig, Form, RowNorm, attention_transfer, cckd,
    deit_hard, deit_soft, dist, dkd, fitnets, hinton, logit_standardization, pkt, rkd_angle,
    rkd_distance, spkd, vid,
};
use vkd_loss::{cosine, kl, l1, mse, smooth_l1, smooth_l1_layer_norm, token_l2};
use vkd_testkit::{Tolerance, assert_close, gradcheck, layouts, normal_scaled, to_f64};

#[derive(Clone, Copy, PartialEq)]
enum Input {
    Logits,
    Rows,
    Maps,
}

impl Input {
    fn dims(self, batch: usize) -> Vec<usize> {
        match self {
            Self::Logits => vec![batch, 5],
            Self::Rows => vec![batch, 6],
            Self::Maps => vec![batch, 3, 4, 2],
        }
    }
}

type Loss = Box<dyn Fn(&Tensor, &Tensor) -> Result<Tensor>>;

struct Case {
    name: String,
    input: Input,
    /// Whether the loss is zero, and still, where the student is the teacher.
    zero: bool,
    /// Whether the two must have the same shape.
    same: bool,
    loss: Loss,
}

/// Labels for any batch: the argument of the losses that have one.
fn labels(logits: &Tensor) -> Result<Tensor> {
    let (batch, classes) = logits.dims2()?;
    let labels: Vec<u32> = (0..batch).map(|i| (3 * i % classes.max(1)) as u32).collect();
    Tensor::from_vec(labels, batch, &Device::Cpu)
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    let mut add = |name: &str, input, zero, same, loss: Loss| {
        all.push(Case { name: name.to_owned(), input, zero, same, loss });
    };
    use Input::{Logits, Maps, Rows};
    for (end, reduction) in [("mean", Mean), ("sum", Sum), ("batch_mean", BatchMean)] {
        let name = |name: &str| format!("{name} {end}");
        add(&name("mse"), Rows, true, true, Box::new(move |s, t| mse(s, t, reduction)));
        add(&name("l1"), Rows, true, true, Box::new(move |s, t| l1(s, t, reduction)));
        add(
            &name("smooth_l1"),
            Maps,
            true,
            true,
            Box::new(move |s, t| smooth_l1(s, t, 1., reduction)),
        );
        add(&name("cosine"), Rows, true, true, Box::new(move |s, t| cosine(s, t, 1e-8, reduction)));
        add(&name("token_l2"), Rows, true, true, Box::new(move |s, t| token_l2(s, t, reduction)));
        add(&name("kl"), Logits, true, true, Box::new(move |s, t| kl(s, t, 4., reduction)));
        add(
            &name("hinton"),
            Logits,
            false,
            true,
            Box::new(move |s, t| hinton(s, t, &labels(s)?, 0.3, 4., reduction)),
        );
        add(
            &name("deit_hard"),
            Logits,
            false,
            true,
            Box::new(move |s, t| deit_hard(s, t, reduction)),
        );
        add(
            &name("deit_soft"),
            Logits,
            true,
            true,
            Box::new(move |s, t| deit_soft(s, t, 3., Form::Code, reduction)),
        );
        add(
            &name("dkd"),
            Logits,
            true,
            true,
            Box::new(move |s, t| dkd(s, t, &labels(s)?, DkdConfig::default(), reduction)),
        );
        add(
            &name("logit_standardization"),
            Logits,
            true,
            true,
            Box::new(move |s, t| logit_standardization(s, t, 2., reduction)),
        );
        add(
            &name("rkd_distance"),
            Rows,
            true,
            false,
            Box::new(move |s, t| rkd_distance(s, t, reduction)),
        );
        add(
            &name("rkd_angle"),
            Rows,
            true,
            false,
            Box::new(move |s, t| rkd_angle(s, t, reduction)),
        );
    }
    add(
        "dist",
        Logits,
        true,
        true,
        Box::new(|s, t| dist(s, t, DistConfig { beta: 0.7, gamma: 2., temperature: 2. })),
    );
    for form in [Form::Paper, Form::Code] {
        let name = |name: &str| format!("{name} {form:?}");
        add(&name("fitnets"), Maps, true, true, Box::new(move |s, t| fitnets(s, t, form)));
        add(&name("pkt"), Rows, true, false, Box::new(move |s, t| pkt(s, t, form)));
        for power in [1., 2., 3.5] {
            add(
                &name(&format!("attention_transfer {power}")),
                Maps,
                true,
                false,
                Box::new(move |s, t| attention_transfer(s, t, power, form)),
            );
        }
        for kernel in [CckdKernel::Bilinear, CckdKernel::Gaussian { gamma: 0.4 }] {
            for unit_rows in [false, true] {
                let config = CckdConfig { kernel, unit_rows, form };
                add(
                    &name(&format!("cckd {kernel:?} {unit_rows}")),
                    Rows,
                    true,
                    false,
                    Box::new(move |s, t| cckd(s, t, config)),
                );
            }
        }
    }
    add(
        "smooth_l1_layer_norm",
        Rows,
        false,
        true,
        Box::new(|s, t| smooth_l1_layer_norm(s, t, 1., 1e-5)),
    );
    for norm in [RowNorm::L2, RowNorm::L1] {
        add(&format!("spkd {norm:?}"), Rows, true, false, Box::new(move |s, t| spkd(s, t, norm)));
        add(
            &format!("spkd {norm:?} maps"),
            Maps,
            true,
            false,
            Box::new(move |s, t| spkd(s, t, norm)),
        );
    }
    add(
        "vid",
        Maps,
        false,
        true,
        Box::new(|s, t| {
            let scale = Tensor::new(&[0.5f64, 5., -3.], s.device())?.to_dtype(s.dtype())?;
            vid(s, t, &scale)
        }),
    );
    all
}

fn each(check: impl Fn(&Case) -> Result<()>) -> Result<()> {
    let all = cases();
    assert!(all.len() > 50, "{}", all.len());
    for case in &all {
        check(case).map_err(|e| candle_core::Error::Msg(format!("{}: {e}", case.name)))?;
    }
    Ok(())
}

/// Value and the student's gradient.
fn run(case: &Case, student: &Tensor, teacher: &Tensor) -> Result<(f64, Tensor)> {
    let var = Var::from_tensor(student)?;
    let loss = (case.loss)(&var, teacher)?;
    assert_eq!(loss.rank(), 0, "{}", case.name);
    let grads = loss.backward()?;
    match grads.get(&var) {
        Some(grad) => Ok((to_f64(&loss)?[0], grad.clone())),
        None => bail!("no gradient"),
    }
}

fn largest(xs: &Tensor) -> Result<f64> {
    // `f64::max` drops NaN.
    Ok(to_f64(xs)?
        .iter()
        .fold(0f64, |m, x| if x.is_finite() { m.max(x.abs()) } else { f64::INFINITY }))
}

#[test]
fn the_teacher_itself_is_the_least() -> Result<()> {
    each(|case| {
        for (seed, dtype) in [(1, DType::F64), (2, DType::F32)] {
            let xs = normal_scaled(&case.input.dims(7), dtype, seed, 2.)?;
            let (value, grad) = run(case, &xs, &xs)?;
            if case.zero {
                // Up to the rounding of f64, in which every loss that is not exactly zero here computes; the factor is
                // for sums over up to 7³ entries of order one.
                assert!(value.abs() < 1e-12, "{}: {value:e}", case.name);
                // The guards in PKT's logarithm are 1e-7.
                let still = if case.name.starts_with("pkt") { 1e-6 } else { 1e-11 };
                assert!(largest(&grad)? < still, "{}: {:e}", case.name, largest(&grad)?);
                let (away, _) = run(case, &(&xs * &normal_scaled(xs.dims(), dtype, 9, 1.)?)?, &xs)?;
                assert!(away > 1e-6, "{}: {away:e} away from the teacher", case.name);
            }
        }
        Ok(())
    })
}

#[test]
fn gradients_are_those_of_differences() -> Result<()> {
    each(|case| {
        for batch in [3, 8] {
            let dims = case.input.dims(batch);
            let student = normal_scaled(&dims, DType::F64, 3, 1.)?;
            let teacher = normal_scaled(&dims, DType::F64, 4, 1.)?;
            gradcheck(|x| (case.loss)(&x[0], &teacher), &[student])?;
        }
        Ok(())
    })
}

#[test]
fn huge_and_tiny_inputs_stay_finite() -> Result<()> {
    each(|case| {
        let dims = case.input.dims(5);
        let sign = |seed| normal_scaled(&dims, DType::F64, seed, 1.)?.sign();
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for size in [1e-37, 1e-20, 1e-8, 1., 1e4] {
                for (seed, student_size) in [(5, size), (6, 1.)] {
                    let mixed = normal_scaled(&dims, DType::F64, seed, student_size)?;
                    for student in [mixed, (sign(seed)? * student_size)?] {
                        let student = student.to_dtype(dtype)?;
                        let teacher = (sign(8)? * size)?.to_dtype(dtype)?;
                        let (value, grad) = run(case, &student, &teacher)?;
                        assert!(value.is_finite(), "{} {dtype:?} {size:e}: {value}", case.name);
                        // f16 itself ends at 65504; a finite gradient in f32 may not fit.
                        if dtype != DType::F16 {
                            assert!(
                                largest(&grad)?.is_finite(),
                                "{} {dtype:?} {size:e}",
                                case.name
                            );
                        }
                    }
                }
            }
        }
        Ok(())
    })
}

#[test]
fn zeros_constants_and_duplicates_stay_finite() -> Result<()> {
    each(|case| {
        for dtype in [DType::F64, DType::F32] {
            let dims = case.input.dims(6);
            let plain = normal_scaled(&dims, dtype, 1, 1.)?;
            let row = plain.narrow(0, 0, 1)?;
            let odd = [
                plain.zeros_like()?,
                plain.ones_like()?,
                row.broadcast_as(dims.clone())?.contiguous()?,
                Tensor::cat(&[&row, &row, &plain.narrow(0, 0, 4)?], 0)?,
                Tensor::cat(&[&row.zeros_like()?, &plain.narrow(0, 0, 5)?], 0)?,
                plain.relu()?,
                plain.clone(),
            ];
            for student in &odd {
                for teacher in &odd {
                    let (value, grad) = run(case, student, teacher)?;
                    assert!(value.is_finite(), "{}: {value}", case.name);
                    // No gradient of a loss of order one on inputs of order one is astronomic; a logit
                    // standardisation of a constant row is 1e7 by definition.
                    assert!(largest(&grad)? < 1e9, "{}: {:e}", case.name, largest(&grad)?);
                }
            }
            // One sample alone.
            let one = run(case, &row, &row.neg()?);
            if !case.name.starts_with("pkt Paper") {
                let (value, grad) = one?;
                assert!(value.is_finite() && largest(&grad)?.is_finite(), "{}", case.name);
            }
        }
        Ok(())
    })
}

#[test]
fn half_types_are_computed_in_f32() -> Result<()> {
    each(|case| {
        for dtype in [DType::BF16, DType::F16] {
            let dims = case.input.dims(4);
            let student = normal_scaled(&dims, dtype, 1, 1.)?;
            let teacher = normal_scaled(&dims, dtype, 2, 1.)?;
            let (value, grad) = run(case, &student, &teacher)?;
            let wide = |x: &Tensor| x.to_dtype(DType::F32);
            let (want, want_grad) = run(case, &wide(&student)?, &wide(&teacher)?)?;
            assert_eq!(value, want, "{}", case.name);
            assert_eq!((case.loss)(&student, &teacher)?.dtype(), DType::F32);
            assert_close("gradient", &grad, &want_grad.to_dtype(dtype)?, Tolerance::EXACT)?;
        }
        Ok(())
    })
}

#[test]
fn the_layout_changes_no_bit() -> Result<()> {
    each(|case| {
        let dims = case.input.dims(4);
        let student = layouts(&normal_scaled(&dims, DType::F32, 1, 1.)?)?;
        let teacher = layouts(&normal_scaled(&dims, DType::F32, 2, 1.)?)?;
        let want = (case.loss)(&student[0].1, &teacher[0].1)?;
        for (s, t) in student.iter().zip(&teacher) {
            // Products of strided matrices may add in another order.
            let products = ["pkt", "spkd", "cckd"].iter().any(|name| case.name.starts_with(name));
            let allowed = if products { Tolerance::relative(1e-6) } else { Tolerance::EXACT };
            assert_close(s.0, &(case.loss)(&s.1, &t.1)?, &want, allowed)?;
        }
        Ok(())
    })
}

#[test]
fn bad_input_is_named() -> Result<()> {
    each(|case| {
        let op = case.name.split(' ').next().unwrap();
        let expect = |what: &str, student: &Tensor, teacher: &Tensor, part: &str| {
            let text = match (case.loss)(student, teacher) {
                Err(e) => e.to_string(),
                Ok(_) => panic!("{}: accepts {what}", case.name),
            };
            // A typed error of candle's names the dtype and the op in its own order.
            let typed = what == "integers";
            assert!(
                typed || text.contains(&format!("{op}: expected")),
                "{}: {what}: {text}",
                case.name
            );
            assert!(text.contains(part), "{}: {what}: {text} without {part}", case.name);
        };
        let dims = case.input.dims(4);
        let xs = normal_scaled(&dims, DType::F32, 1, 1.)?;
        let tracked = Var::from_tensor(&xs)?;
        expect("a tracked teacher", &xs, &tracked, "without gradient");
        expect("a computed teacher", &xs, &tracked.exp()?, "detach it");
        assert!((case.loss)(&tracked, &tracked.detach()).is_ok());
        expect("another dtype", &xs, &xs.to_dtype(DType::F64)?, "dtype F32, got F64");
        let integers = xs.to_dtype(DType::I64)?;
        if case.name != "vid" {
            expect("integers", &integers, &integers, op);
        }
        expect("another batch", &xs, &xs.narrow(0, 0, 3)?, "3");
        let none = xs.narrow(0, 0, 0)?;
        assert!((case.loss)(&none, &none).is_err(), "{}: accepts an empty batch", case.name);
        if case.same {
            expect("another width", &xs, &xs.narrow(1, 0, 2)?, "got [4, 2");
        }
        for bad in [f64::NAN, f64::INFINITY] {
            // The third row, first entry.
            let mut values = to_f64(&xs)?;
            values[2 * xs.elem_count() / 4] = bad;
            let broken = Tensor::from_vec(values, xs.dims(), &Device::Cpu)?.to_dtype(DType::F32)?;
            let named = |side: &str| format!("finite {side}");
            expect("a broken student", &broken, &xs, "row 2, entry 0");
            let logits = if case.input == Input::Logits { " logits" } else { "" };
            let student = if case.name == "vid" { "prediction" } else { "student" };
            expect("a broken student", &broken, &xs, &named(&format!("{student}{logits}")));
            expect("a broken teacher", &xs, &broken, &named(&format!("teacher{logits}")));
            expect("a broken teacher", &xs, &broken, "row 2, entry 0");
        }
        Ok(())
    })
}

#[test]
fn reductions_are_sums_of_the_entries() -> Result<()> {
    let (s, t) =
        (normal_scaled(&[4, 5], DType::F64, 1, 1.)?, normal_scaled(&[4, 5], DType::F64, 2, 1.)?);
    let labels = labels(&s)?;
    type Reduced<'a> = Box<dyn Fn(Reduction) -> Result<Tensor> + 'a>;
    let losses: Vec<(usize, Reduced<'_>)> = vec![
        (20, Box::new(|r| mse(&s, &t, r))),
        (20, Box::new(|r| l1(&s, &t, r))),
        (20, Box::new(|r| smooth_l1(&s, &t, 1., r))),
        (4, Box::new(|r| cosine(&s, &t, 1e-8, r))),
        (4, Box::new(|r| token_l2(&s, &t, r))),
        (4, Box::new(|r| kl(&s, &t, 3., r))),
        (4, Box::new(|r| hinton(&s, &t, &labels, 0.5, 3., r))),
        (4, Box::new(|r| deit_hard(&s, &t, r))),
        (4, Box::new(|r| deit_soft(&s, &t, 3., Form::Paper, r))),
        (4, Box::new(|r| dkd(&s, &t, &labels, DkdConfig::default(), r))),
        (4, Box::new(|r| logit_standardization(&s, &t, 3., r))),
        (16, Box::new(|r| rkd_distance(&s, &t, r))),
        (64, Box::new(|r| rkd_angle(&s, &t, r))),
    ];
    for (entries, loss) in losses {
        let all = loss(Reduction::None)?;
        assert_eq!(all.elem_count(), entries);
        let sum = all.sum_all()?;
        let close =
            |a: &Tensor, b: &Tensor| assert_close("reduction", a, b, Tolerance::relative(1e-13));
        close(&loss(Sum)?, &sum)?;
        close(&loss(Mean)?, &(&sum / entries as f64)?)?;
        close(&loss(BatchMean)?, &(&sum / 4.)?)?;
    }
    Ok(())
}

#[test]
fn settings_out_of_range_are_named() -> Result<()> {
    let xs = normal_scaled(&[3, 4], DType::F32, 1, 1.)?;
    let maps = normal_scaled(&[2, 3, 4, 6], DType::F32, 1, 1.)?;
    let labels = Tensor::new(&[0u32, 1, 3], &Device::Cpu)?;
    let over = Tensor::new(&[0u32, 1, 12], &Device::Cpu)?;
    let config = DkdConfig::default();
    let one = xs.narrow(1, 0, 1)?;
    let cckd_config =
        CckdConfig { kernel: CckdKernel::Gaussian { gamma: -1. }, ..CckdConfig::default() };
    let scale = xs.narrow(0, 0, 1)?.flatten_all()?;
    for (loss, part) in [
        (hinton(&xs, &xs, &labels, 1.5, 4., Mean), "hinton: expected 0 <= alpha <= 1, got 1.5"),
        (
            hinton(&xs, &xs, &over, 0.5, 4., Mean),
            "hinton: expected class < 4, got class 12 in row 2",
        ),
        (hinton(&xs, &xs, &labels, 0.5, 0., Mean), "hinton: expected a finite temperature > 0"),
        (
            deit_soft(&xs, &xs, 1e7, Form::Code, Mean),
            "deit_soft: expected a temperature of at most 1e6",
        ),
        (
            logit_standardization(&xs, &xs, 0., Mean),
            "logit_standardization: expected a finite temperature > 0",
        ),
        (
            dkd(&xs, &xs, &labels, DkdConfig { temperature: 0., ..config }, Mean),
            "dkd: expected a finite temperature > 0",
        ),
        (
            deit_hard(&xs, &(xs.zeros_like()? - f64::INFINITY)?, Mean),
            "deit_hard: expected finite teacher logits, got -inf in row 0, entry 0",
        ),
        (dkd(&xs, &xs, &over, config, Mean), "dkd: expected class < 4, got class 12 in row 2"),
        (
            dkd(&xs, &xs, &labels.to_dtype(DType::I64)?, config, Mean),
            "dkd: expected U32 labels of shape [3], got I64",
        ),
        (
            dkd(&xs, &xs, &labels, DkdConfig { beta: f64::NAN, ..config }, Mean),
            "dkd: expected a finite beta",
        ),
        (dkd(&one, &one, &labels, config, Mean), "dkd: expected at least two classes, got 1"),
        (logit_standardization(&one, &one, 1., Mean), "at least two classes, got 1"),
        (
            dist(&xs, &xs, DistConfig { temperature: 0., ..DistConfig::default() }),
            "dist: expected a finite temperature",
        ),
        (
            dist(&xs, &xs, DistConfig { gamma: f64::INFINITY, ..DistConfig::default() }),
            "finite gamma, got inf",
        ),
        (attention_transfer(&maps, &maps, 0.5, Form::Code), "power of at least 1, got 0.5"),
        (
            attention_transfer(&maps, &maps.narrow(2, 0, 3)?, 2., Form::Code),
            "whole multiple of 3x6, got 4x6",
        ),
        (
            attention_transfer(
                &maps.narrow(3, 0, 2)?,
                &maps.narrow(2, 0, 2)?.narrow(3, 0, 4)?,
                2.,
                Form::Code,
            ),
            "expected one map to be the larger both ways, got 4x2 and 2x4",
        ),
        (attention_transfer(&xs, &xs, 2., Form::Code), "(B, C, H, W), got [3, 4]"),
        (pkt(&maps, &maps, Form::Code), "pkt: expected a student (B, C), got [2, 3, 4, 6]"),
        (
            pkt(&xs.narrow(0, 0, 1)?, &xs.narrow(0, 0, 1)?, Form::Paper),
            "pkt: expected at least two rows, got 1",
        ),
        (cckd(&xs, &xs, cckd_config), "cckd: expected a finite gamma > 0"),
        (vid(&maps, &maps, &scale), "vid: expected a F32 log_scale of shape [3], got F32 [4]"),
        (vid(&xs, &xs, &(scale / 0.)?), "vid: expected finite log_scale, got"),
        (cosine(&xs, &xs, 0., Mean), "cosine: expected a finite eps > 0"),
    ] {
        let text = loss.unwrap_err().to_string();
        assert!(text.contains(part), "{text} without {part}");
    }
    Ok(())
}

#[test]
fn entries_at_a_kink_have_no_slope() -> Result<()> {
    // After a relu many entries are exactly zero, where |x| has no derivative: zero it is.
    let teacher = normal_scaled(&[2, 3, 2, 2], DType::F64, 1, 1.)?;
    let student = Var::from_tensor(&normal_scaled(&[2, 3, 2, 2], DType::F64, 2, 1.)?.relu()?)?;
    let grads = attention_transfer(&student, &teacher, 1., Form::Code)?.backward()?;
    let Some(grad) = grads.get(&student) else { bail!("no gradient") };
    let (values, slopes) = (to_f64(&student)?, to_f64(grad)?);
    assert!(values.contains(&0.) && slopes.iter().any(|g| *g != 0.));
    assert!(values.iter().zip(&slopes).all(|(x, g)| *x != 0. || *g == 0.), "{slopes:?}");
    // So too for inner products: the first row is at right angles to the others.
    let rows = Tensor::new(&[[1f64, 0.], [0., 1.], [0., 2.]], &Device::Cpu)?;
    let student = Var::from_tensor(&rows)?;
    let other = Tensor::new(&[[1f64, 0.], [0.6, 0.8], [0., 1.]], &Device::Cpu)?;
    let grads = spkd(&student, &other, RowNorm::L1)?.backward()?;
    let Some(grad) = grads.get(&student) else { bail!("no gradient") };
    let moved = |step: f64| -> Result<f64> {
        let moved = (&rows + Tensor::new(&[[0., step], [0., 0.], [0., 0.]], &Device::Cpu)?)?;
        to_f64(&spkd(&moved, &other, RowNorm::L1)?).map(|v| v[0])
    };
    // At a kink a central difference gives the middle of the two one-sided slopes, to the order of its step.
    let numeric = (moved(1e-6)? - moved(-1e-6)?) / 2e-6;
    let got = to_f64(grad)?[1];
    assert!((got - numeric).abs() < 1e-5, "{got:e} {numeric:e}");
    Ok(())
}

#[test]
fn two_opposite_samples_have_no_neighbours() -> Result<()> {
    // Lengths so large that the guard beside them rounds away: the only similarity is exactly zero.
    let rows = Tensor::new(&[[1e20f64, 0.], [-1e20, 0.]], &Device::Cpu)?;
    let other = Tensor::new(&[[1f64, 0.], [0., 1.]], &Device::Cpu)?;
    for (student, teacher) in [(&rows, &other), (&other, &rows)] {
        let student = Var::from_tensor(student)?;
        let loss = pkt(&student, teacher, Form::Paper)?;
        let grads = loss.backward()?;
        let Some(grad) = grads.get(&student) else { bail!("no gradient") };
        assert!(loss.to_scalar::<f64>()?.is_finite() && largest(grad)?.is_finite(), "{loss}");
    }
    Ok(())
}
