//! What a change of the features or logits leaves as it is, for every input.

use candle_core::{D, DType, Device, Result, Tensor, Var, bail};
use proptest::prelude::*;
use vkd_loss::Reduction::{self, Mean};
use vkd_loss::baselines::{
    CckdConfig, CckdKernel, DistConfig, Form, RowNorm, attention_transfer, cckd, dist, dkd_parts,
    logit_standardization, pkt, rkd_angle, rkd_distance, spkd,
};
use vkd_loss::geometry::{alignment, effective_rank, linear_cka, mean_pairwise_cosine};
use vkd_loss::{bce_with_logits, cosine, kl, log_softmax, soft_cross_entropy, token_l2};
use vkd_testkit::{
    Tolerance, assert_close, dimension, gram_residual, holds, normal, normal_scaled, scale, to_f64,
    uniform,
};

/// `(n, k)` with orthonormal columns, `k <= n`, from normal columns by Gram and Schmidt, twice.
fn frame(n: usize, k: usize, seed: u64) -> Result<Tensor> {
    let raw = to_f64(&normal(&[k, n], DType::F64, seed)?)?;
    let mut columns: Vec<Vec<f64>> = Vec::new();
    for column in raw.chunks_exact(n) {
        let mut column = column.to_vec();
        for _ in 0..2 {
            for other in &columns {
                let along: f64 = column.iter().zip(other).map(|(a, b)| a * b).sum();
                column.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
            }
            let length = column.iter().map(|x| x * x).sum::<f64>().sqrt();
            column.iter_mut().for_each(|x| *x /= length);
        }
        columns.push(column);
    }
    let q = Tensor::from_vec(columns.concat(), (k, n), &Device::Cpu)?.t()?.contiguous()?;
    let residual = gram_residual(&q)?;
    if !(residual < 1e-12) {
        bail!("frame: residual {residual:e}")
    }
    Ok(q)
}

fn value(loss: Result<Tensor>) -> Result<f64> {
    Ok(to_f64(&loss?)?[0])
}

/// `a` and `b` within `relative` of each other, or of one: what cancels to less was of that size.
fn same(what: &str, a: f64, b: f64, relative: f64) -> Result<()> {
    if !((a - b).abs() <= relative * a.abs().max(b.abs()).max(1.)) {
        bail!("{what}: expected {a:e}, got {b:e}")
    }
    Ok(())
}

struct Rows {
    student: Tensor,
    teacher: Tensor,
    /// The student, rotated.
    rotated: Tensor,
    /// The student, mapped to a larger width by orthonormal columns.
    lifted: Tensor,
}

fn rows(batch: usize, width: usize, more: usize, seed: u64, size: f64) -> Result<Rows> {
    let student = normal_scaled(&[batch, width], DType::F64, seed, size)?;
    let teacher = normal(&[batch, more], DType::F64, seed ^ 1)?;
    let rotated = student.matmul(&frame(width, width, seed ^ 2)?)?;
    let lifted = student.matmul(&frame(width + more, width, seed ^ 3)?.t()?)?;
    Ok(Rows { student, teacher, rotated, lifted })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn relations_do_not_see_a_rotation(
        batch in 2usize..9, width in dimension(12), more in dimension(12), seed: u64, size in scale(1e-2, 1e2),
    ) {
        holds((|| {
            let r = rows(batch, width, more, seed, size)?;
            type Loss = fn(&Tensor, &Tensor) -> Result<Tensor>;
            let losses: [(&str, Loss); 8] = [
                ("spkd", |s, t| spkd(s, t, RowNorm::L2)),
                ("spkd L1", |s, t| spkd(s, t, RowNorm::L1)),
                ("pkt", |s, t| pkt(s, t, Form::Code)),
                ("pkt paper", |s, t| pkt(s, t, Form::Paper)),
                ("rkd distance", |s, t| rkd_distance(s, t, Mean)),
                ("rkd angle", |s, t| rkd_angle(s, t, Mean)),
                ("cckd", |s, t| cckd(s, t, CckdConfig::default())),
                ("cckd bilinear", |s, t| cckd(s, t, CckdConfig { kernel: CckdKernel::Bilinear, unit_rows: true, form: Form::Code })),
            ];
            for (name, loss) in losses {
                let want = value(loss(&r.student, &r.teacher))?;
                // Angles of two samples close together lose digits. PKT's paper form divides by sums that its guard lets
                // down to 1e-7 (opposite samples): ten roundings over that, times a logarithm of up to 16.
                let allowed = if name == "pkt paper" { 160. * f64::EPSILON / 1e-7 } else { 1e-9 };
                same(name, want, value(loss(&r.rotated, &r.teacher))?, allowed)?;
                // The paper's argument for an orthogonal projector.
                same(name, want, value(loss(&r.lifted, &r.teacher))?, allowed)?;
                // So the projected student is at its least where the student is.
                same(name, 0., value(loss(&r.lifted, &r.student))?, allowed)?;
            }
            Ok(())
        })())?;
    }

    #[test]
    fn a_projector_that_is_not_orthogonal_shows(seed: u64) {
        // The counterpart: the laws above could fail.
        holds((|| {
            let r = rows(6, 5, 5, seed, 1.)?;
            let bent = r.student.matmul(&normal(&[5, 5], DType::F64, seed ^ 9)?)?;
            let off = value(spkd(&bent, &r.student, RowNorm::L2))?;
            if off < 1e-6 { bail!("spkd: {off:e} for a map that is not orthogonal") }
            Ok(())
        })())?;
    }

    #[test]
    fn rkd_does_not_see_place_and_scale(
        batch in 2usize..9, width in dimension(12), seed: u64, size in scale(1e-3, 1e3), shift in -3f64..3.,
    ) {
        holds((|| {
            let r = rows(batch, width, 3, seed, 1.)?;
            let moved = r.rotated.affine(size, size * shift)?;
            for (name, loss) in [("distance", rkd_distance as fn(&Tensor, &Tensor, Reduction) -> Result<Tensor>), ("angle", rkd_angle)] {
                let want = value(loss(&r.student, &r.teacher, Mean))?;
                same(name, want, value(loss(&moved, &r.teacher, Mean))?, 1e-9)?;
            }
            Ok(())
        })())?;
    }

    #[test]
    fn attention_does_not_see_the_order_of_channels(
        batch in 1usize..5, channels in dimension(9), side in 1usize..6, seed: u64, power in 1f64..4.,
    ) {
        holds((|| {
            let student = normal(&[batch, channels, side, 2], DType::F64, seed)?;
            let teacher = normal(&[batch, 3, side, 2], DType::F64, seed ^ 1)?;
            let order: Vec<u32> = (0..channels as u32).map(|i| (i + seed as u32 % 97) % channels as u32).rev().collect();
            let permuted = student.index_select(&Tensor::new(order, &Device::Cpu)?, 1)?;
            for form in [Form::Paper, Form::Code] {
                let loss = |s: &Tensor| value(attention_transfer(s, &teacher, power, form));
                same("order", loss(&student)?, loss(&permuted)?, 1e-12)?;
                // Nor signs, nor scale.
                same("sign and scale", loss(&student)?, loss(&(&student * -3.)?)?, 1e-12)?;
            }
            Ok(())
        })())?;
    }

    #[test]
    fn dist_does_not_see_affine_maps_of_probabilities(
        batch in 2usize..9, classes in 2usize..12, seed: u64, part in 0.05f64..1.,
    ) {
        holds((|| {
            let student = normal(&[batch, classes], DType::F64, seed)?;
            let teacher = normal(&[batch, classes], DType::F64, seed ^ 1)?;
            // part · p + (1 − part) / C is a distribution again.
            let mixed = log_softmax(&student)?.exp()?.affine(part, (1. - part) / classes as f64)?.log()?;
            let loss = |s: &Tensor| value(dist(s, &teacher, DistConfig::default()));
            same("affine", loss(&student)?, loss(&mixed)?, 1e-10)
        })())?;
    }

    #[test]
    fn standardised_logits_have_no_scale_and_place(
        batch in dimension(8), classes in 2usize..12, seed: u64, size in scale(0.1, 10.), shift in -9f64..9.,
    ) {
        holds((|| {
            let student = normal(&[batch, classes], DType::F64, seed)?;
            let teacher = normal(&[batch, classes], DType::F64, seed ^ 1)?;
            let loss = |s: &Tensor| value(logit_standardization(s, &teacher, 2., Mean));
            // The guard of 1e-7 beside the deviation is all that sees them; two classes may lie close together.
            let deviations = student.broadcast_sub(&student.mean_keepdim(1)?)?.sqr()?.sum(1)?.sqrt()?;
            let least = to_f64(&deviations)?.into_iter().fold(f64::INFINITY, f64::min);
            let allowed = 1e-5 * classes as f64 / least.min(1.);
            same("affine", loss(&student)?, loss(&student.affine(size, shift)?)?, allowed)
        })())?;
    }

    #[test]
    fn distillation_decouples(batch in dimension(6), classes in 2usize..9, seed: u64, temperature in scale(0.5, 8.)) {
        holds((|| {
            let student = normal_scaled(&[batch, classes], DType::F64, seed, 3.)?;
            let teacher = normal_scaled(&[batch, classes], DType::F64, seed ^ 1, 3.)?;
            let labels: Vec<u32> = (0..batch).map(|i| ((seed >> (i % 32)) as usize % classes) as u32).collect();
            let labels = Tensor::new(labels, &Device::Cpu)?;
            // Equation 6 of the paper: KD = TCKD + (1 − p_y) NCKD.
            let parts = dkd_parts(&student, &teacher, &labels, temperature, Reduction::None)?;
            let sure = log_softmax(&(&teacher / temperature)?)?.exp()?.gather(&labels.unsqueeze(1)?, 1)?.squeeze(1)?;
            let sum = (parts.tckd + ((1. - sure)? * parts.nckd)?)?;
            let want = kl(&student, &teacher, temperature, Reduction::None)?;
            assert_close("KD", &sum, &want, Tolerance { relative: 1e-10, absolute: 1e-12 })
        })())?;
    }

    #[test]
    fn cosine_does_not_see_length(
        batch in dimension(9), width in dimension(12), seed: u64, a in scale(1e-4, 1e4), b in scale(1e-4, 1e4),
    ) {
        holds((|| {
            let student = normal(&[batch, width], DType::F64, seed)?;
            let teacher = normal(&[batch, width], DType::F64, seed ^ 1)?;
            let loss = |s: &Tensor, t: &Tensor| cosine(s, t, 1e-12, Reduction::None);
            let want = loss(&student, &teacher)?;
            assert_close("length", &loss(&(&student * a)?, &(&teacher * b)?)?, &want, Tolerance { relative: 1e-13, absolute: 1e-14 })?;
            assert_close("opposite", &(loss(&student.neg()?, &teacher)? + want)?, &Tensor::full(2f64, batch, &Device::Cpu)?, Tolerance::relative(1e-14))?;
            // At a right angle to the row: its length is no matter.
            let var = Var::from_tensor(&student)?;
            let grads = cosine(&var, &teacher, 1e-12, Mean)?.backward()?;
            let Some(grad) = grads.get(&var) else { bail!("no gradient") };
            let along = (grad * &student)?.sum(D::Minus1)?;
            assert_close("along", &along, &along.zeros_like()?, Tolerance { relative: 0., absolute: 1e-13 })
        })())?;
    }

    #[test]
    fn token_distance_is_a_metric(batch in dimension(9), width in dimension(12), seed: u64, shift in -9f64..9.) {
        holds((|| {
            let [a, b, c] = [0, 1, 2].map(|i| normal(&[batch, width], DType::F64, seed ^ i));
            let (a, b, c) = (a?, b?, c?);
            let d = |x: &Tensor, y: &Tensor| value(token_l2(x, y, Mean));
            same("symmetry", d(&a, &b)?, d(&b, &a)?, 1e-15)?;
            if d(&a, &c)? > d(&a, &b)? + d(&b, &c)? + 1e-12 { bail!("triangle") }
            let turn = frame(width, width, seed ^ 3)?;
            let moved = |x: &Tensor| x.matmul(&turn)? + shift;
            same("isometry", d(&a, &b)?, d(&moved(&a)?, &moved(&b)?)?, 1e-12)
        })())?;
    }

    #[test]
    fn bce_is_cross_entropy_of_two_classes(n in dimension(30), seed: u64, size in scale(1e-2, 30.)) {
        holds((|| {
            let x = normal_scaled(&[n], DType::F64, seed, size)?;
            let p = uniform(&[n], DType::F64, seed ^ 1, 0., 1.)?;
            let two = Tensor::stack(&[&x.zeros_like()?, &x], 1)?;
            let soft = Tensor::stack(&[&(1. - &p)?, &p], 1)?;
            let want = soft_cross_entropy(&two, &soft, Reduction::None)?;
            assert_close("bce", &bce_with_logits(&x, &p, Reduction::None)?, &want, Tolerance { relative: 1e-13, absolute: 1e-14 })
        })())?;
    }

    #[test]
    fn cka_sees_neither_rotation_nor_scale_nor_place(
        rows in 2usize..20, width in dimension(9), more in dimension(9), seed: u64, size in scale(1e-8, 1e8), shift in -2f64..2.,
    ) {
        holds((|| {
            let r = self::rows(rows, width, more, seed, 1.)?;
            let want = linear_cka(&r.student, &r.teacher)?;
            if !(-1e-12..=1. + 1e-12).contains(&want) { bail!("range: {want}") }
            let moved = r.lifted.affine(size, size * shift)?;
            same("moved", want, linear_cka(&moved, &r.teacher)?, 1e-11)?;
            same("symmetry", want, linear_cka(&r.teacher, &r.student)?, 1e-12)?;
            same("equal", 1., linear_cka(&moved, &r.student)?, 1e-11)?;
            // Both forms are one number: more columns of zeros choose the other.
            let zeros = Tensor::zeros((rows, rows), DType::F64, &Device::Cpu)?;
            let wide = Tensor::cat(&[&r.student, &zeros], 1)?;
            same("forms", want, linear_cka(&wide, &r.teacher)?, 1e-12)
        })())?;
    }

    #[test]
    fn effective_rank_counts_dimensions(
        rank in 1usize..6, extra in dimension(8), seed: u64, size in scale(1e-8, 1e8), shift in -2f64..2.,
    ) {
        holds((|| {
            // Centred orthonormal columns: the first is constant and then dropped.
            let n = rank + extra + 1;
            let ones = Tensor::ones((n, 1), DType::F64, &Device::Cpu)?;
            let raw = normal(&[n, rank], DType::F64, seed)?;
            let columns = raw.broadcast_sub(&raw.mean_keepdim(0)?)?;
            let q = orthonormal(&columns)?;
            let xs = q.matmul(&frame(rank + extra, rank, seed ^ 1)?.t()?)?.affine(size, 0.)?;
            let moved = xs.broadcast_add(&(ones * (size * shift))?)?;
            same("rank", rank as f64, effective_rank(&moved)?, 1e-5)?;
            // Any features lie between one and their rank.
            let any = effective_rank(&normal(&[n, rank], DType::F64, seed ^ 2)?)?;
            if !(1. - 1e-9..=rank as f64 + 1e-9).contains(&any) { bail!("range: {any} of {rank}") }
            Ok(())
        })())?;
    }

    #[test]
    fn similarities_are_what_the_double_loop_says(rows in 2usize..9, width in dimension(9), seed: u64) {
        holds((|| {
            let r = self::rows(rows, width, 2, seed, 3.)?;
            let other = normal(&[rows, width], DType::F64, seed ^ 5)?;
            let mut pairs = 0.;
            for i in 0..rows {
                for j in (0..rows).filter(|j| *j != i) {
                    let one = |k: usize| r.student.narrow(0, k, 1);
                    pairs += 1. - value(cosine(&one(i)?, &one(j)?, 1e-12, Mean))?;
                }
            }
            same("pairwise", pairs / (rows * (rows - 1)) as f64, mean_pairwise_cosine(&r.student)?, 1e-12)?;
            let paired = 1. - value(cosine(&r.student, &other, 1e-12, Mean))?;
            same("paired", paired, alignment(&r.student, &other)?, 1e-12)?;
            same("itself", 1., alignment(&r.student, &(&r.student * 4.)?)?, 1e-12)
        })())?;
    }
}

/// Orthonormal columns that span those of `xs`.
fn orthonormal(xs: &Tensor) -> Result<Tensor> {
    let mut done: Vec<Tensor> = Vec::new();
    for i in 0..xs.dim(1)? {
        let mut column = xs.narrow(1, i, 1)?;
        for _ in 0..2 {
            for other in &done {
                let along = (&column * other)?.sum_all()?.to_scalar::<f64>()?;
                column = (column - (other * along)?)?;
            }
            let length = column.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt();
            column = (column / length)?;
        }
        done.push(column);
    }
    Tensor::cat(&done, 1)
}

#[test]
fn bad_features_are_named() -> Result<()> {
    let xs = normal(&[4, 3], DType::F32, 1)?;
    let flat = xs.ones_like()?;
    let broken = Tensor::new(&[[1f32, 2.], [f32::NAN, 1.]], &Device::Cpu)?;
    let one = xs.narrow(0, 0, 1)?;
    for (got, part) in [
        (
            linear_cka(&xs, &flat),
            "linear_cka: expected rows that differ in teacher, got the same one 4 times",
        ),
        (
            linear_cka(&xs, &one),
            "linear_cka: expected as many teacher rows as student rows, got [4, 3] and [1, 3]",
        ),
        (linear_cka(&broken, &broken), "expected finite student, got NaN in row 1, entry 0"),
        (effective_rank(&flat), "effective_rank: expected rows that differ in features"),
        (
            effective_rank(&one),
            "expected features (N, ..) with N >= 2 and at least one entry, got [1, 3]",
        ),
        (mean_pairwise_cosine(&xs.narrow(0, 0, 0)?), "at least one entry, got [0, 3]"),
        (
            alignment(&xs, &xs.narrow(1, 0, 2)?),
            "expected a teacher of the shape [4, 3], got [4, 2]",
        ),
    ] {
        let text = got.unwrap_err().to_string();
        assert!(text.contains(part), "{text} without {part}");
    }
    // Nothing of the tape is needed or made, and every float type will do.
    let tracked = Var::from_tensor(&xs)?;
    for dtype in [DType::F64, DType::BF16, DType::F16] {
        let cast = xs.to_dtype(dtype)?;
        assert!((linear_cka(&tracked, &cast)? - 1.).abs() < 1e-3);
        assert!((alignment(&tracked, &cast)? - 1.).abs() < 1e-3);
    }
    assert_eq!(mean_pairwise_cosine(&xs.zeros_like()?)?, 0.);
    Ok(())
}
