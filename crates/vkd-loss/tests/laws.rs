//! Identities that hold for every input.

use candle_core::{D, DType, Device, Result, Tensor, Var, bail};
use proptest::prelude::*;
use vkd_loss::Reduction::Mean;
use vkd_loss::{cross_entropy, kl, log_softmax, mse, smooth_l1, soft_cross_entropy};
use vkd_testkit::{Tolerance, assert_close, dimension, holds, normal_scaled, scale, to_f64};

fn value(loss: &Tensor) -> Result<f64> {
    Ok(to_f64(loss)?[0])
}

fn expect(what: &str, holds: bool, got: f64) -> Result<()> {
    if !holds {
        bail!("{what}: got {got:e}")
    }
    Ok(())
}

/// Largest gradient magnitude of `f` at `x`.
fn slope(f: impl Fn(&Tensor) -> Result<Tensor>, x: &Tensor) -> Result<f64> {
    let var = Var::from_tensor(x)?;
    let grads = f(&var)?.backward()?;
    let Some(grad) = grads.get(&var) else { bail!("no gradient") };
    Ok(to_f64(grad)?.iter().fold(0f64, |m, g| m.max(g.abs())))
}

fn labels(batch: usize, classes: usize, seed: u64) -> Result<Tensor> {
    let draw = |i: usize| ((seed >> (i % 50)) as usize % classes) as u32;
    Tensor::new((0..batch).map(draw).collect::<Vec<_>>(), &Device::Cpu)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn smooth_l1_lies_between_mse_and_l1(n in dimension(3000), seed: u64, beta in scale(1e-3, 1e3), size in scale(1e-3, 1e3)) {
        holds((|| {
            let student = normal_scaled(&[n], DType::F64, seed, size)?;
            let teacher = normal_scaled(&[n], DType::F64, seed ^ 1, size)?;
            let loss = value(&smooth_l1(&student, &teacher, beta, Mean)?)?;
            let l1 = value(&(&student - &teacher)?.abs()?.mean_all()?)?;
            let quadratic = value(&mse(&student, &teacher, Mean)?)? / (2. * beta);
            let slack = 1e-12 * (l1 + beta);
            expect("below both", loss <= l1.min(quadratic) + slack, loss)?;
            expect("L1 less half beta at least", loss >= l1 - beta / 2. - slack, loss)
        })())?;
    }

    #[test]
    fn pointwise_losses_vanish_at_equality_only(n in dimension(200), seed: u64, wide: bool) {
        let dtype = if wide { DType::F64 } else { DType::F32 };
        holds((|| {
            let xs = normal_scaled(&[n], dtype, seed, 2.)?;
            for f in [&(|s: &Tensor, t: &Tensor| mse(s, t, Mean)) as &dyn Fn(&Tensor, &Tensor) -> Result<Tensor>, &|s, t| smooth_l1(s, t, 1., Mean)] {
                expect("zero", value(&f(&xs, &xs)?)? == 0., 0.)?;
                expect("stationary", slope(|x| f(x, &xs), &xs)? == 0., 0.)?;
                let away = value(&f(&(&xs + 0.1)?, &xs)?)?;
                expect("positive", away > 0., away)?;
            }
            Ok(())
        })())?;
    }

    #[test]
    fn kl_is_a_divergence(
        batch in dimension(20), classes in dimension(40), seed: u64,
        temperature in scale(0.25, 16.), size in scale(1e-3, 1e4), shift in -100f64..100., wide: bool,
    ) {
        let dtype = if wide { DType::F64 } else { DType::F32 };
        holds((|| {
            let dims = [batch, classes];
            let student = normal_scaled(&dims, dtype, seed, size)?;
            let teacher = normal_scaled(&dims, dtype, seed ^ 1, size)?;
            let loss = value(&kl(&student, &teacher, temperature, Mean)?)?;
            expect("not negative and finite", loss >= 0. && loss.is_finite(), loss)?;
            expect("zero at equality", value(&kl(&student, &student, temperature, Mean)?)? == 0., 0.)?;
            let slope = slope(|s| kl(s, &student, temperature, Mean), &student)?;
            // Rounding of the logits' differences, of magnitude `size / temperature`, times the temperature.
            expect("stationary at equality", slope <= 1e-15 * (10. * temperature + size), slope)?;
            // Logits are a class of functions up to a constant per row.
            let student = student.to_dtype(DType::F64)?;
            let teacher = teacher.to_dtype(DType::F64)?;
            let loss = value(&kl(&student, &teacher, temperature, Mean)?)?;
            let moved = value(&kl(&(&student + shift)?, &(&teacher - shift)?, temperature, Mean)?)?;
            let allowed = 1e-13 * temperature * (size + shift.abs() + temperature);
            expect("shift", (loss - moved).abs() <= 20. * allowed, loss - moved)
        })())?;
    }

    #[test]
    fn cross_entropies_agree_with_each_other(
        batch in dimension(20), classes in dimension(30), seed: u64, smoothing in 0f64..0.99,
    ) {
        holds((|| {
            let logits = normal_scaled(&[batch, classes], DType::F64, seed, 3.)?;
            let labels = labels(batch, classes, seed)?;
            let hot = Tensor::eye(classes, DType::F64, &Device::Cpu)?.index_select(&labels, 0)?;
            let soft = hot.affine(1. - smoothing, smoothing / classes as f64)?;
            let want = soft_cross_entropy(&logits, &soft, Mean)?;
            assert_close("smoothed", &cross_entropy(&logits, &labels, smoothing, Mean)?, &want, Tolerance::relative(1e-13))?;
            // Cross entropy is the divergence plus the target's own entropy, and least at the target.
            let log_soft = (&soft + 1e-300)?.log()?;
            let entropy = value(&(&soft * &log_soft)?.sum(D::Minus1)?.mean_all()?.neg()?)?;
            let gap = value(&want)? - entropy;
            expect("at least the entropy", gap >= -1e-12, gap)?;
            if smoothing > 0.01 {
                let divergence = value(&kl(&logits, &log_soft, 1., Mean)?)?;
                expect("divergence", (gap - divergence).abs() < 1e-11, gap - divergence)?;
                let slope = slope(|x| soft_cross_entropy(x, &soft, Mean), &log_soft)?;
                expect("stationary at the target", slope < 1e-14, slope)?;
            }
            Ok(())
        })())?;
    }

    #[test]
    fn the_order_of_the_batch_does_not_matter(batch in dimension(30), classes in dimension(20), seed: u64) {
        holds((|| {
            let dims = [batch, classes];
            let student = normal_scaled(&dims, DType::F64, seed, 2.)?;
            let teacher = normal_scaled(&dims, DType::F64, seed ^ 1, 2.)?;
            let labels = labels(batch, classes, seed)?;
            let turn = |x: &Tensor| x.flip(&[0]);
            for (name, a, b) in [
                ("kl", kl(&student, &teacher, 2., Mean)?, kl(&turn(&student)?, &turn(&teacher)?, 2., Mean)?),
                ("mse", mse(&student, &teacher, Mean)?, mse(&turn(&student)?, &turn(&teacher)?, Mean)?),
                ("ce", cross_entropy(&student, &labels, 0.1, Mean)?, cross_entropy(&turn(&student)?, &turn(&labels)?, 0.1, Mean)?),
            ] {
                assert_close(name, &a, &b, Tolerance::relative(1e-13))?;
            }
            Ok(())
        })())?;
    }

    #[test]
    fn log_softmax_sums_to_one(batch in dimension(20), classes in dimension(40), seed: u64, size in scale(1e-3, 1e4)) {
        holds((|| {
            let ys = log_softmax(&normal_scaled(&[batch, classes], DType::F64, seed, size)?)?;
            let sums = ys.exp()?.sum(D::Minus1)?;
            assert_close("sum", &sums, &sums.ones_like()?, Tolerance::relative(1e-11))
        })())?;
    }
}
