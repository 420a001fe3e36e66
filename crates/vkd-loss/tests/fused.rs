//! Smooth-L1 on top of layer norm: one op against two.

use candle_core::{DType, Result, Tensor, Var, bail};
use proptest::prelude::*;
use vkd_loss::{smooth_l1, smooth_l1_layer_norm};
use vkd_norm::layer_norm;
use vkd_testkit::{Tolerance, assert_close, dimension, holds, normal, scale};

/// Loss and gradient of the student.
fn both(loss: impl Fn(&Tensor) -> Result<Tensor>, student: &Tensor) -> Result<(Tensor, Tensor)> {
    let student = Var::from_tensor(student)?;
    let loss = loss(&student)?;
    let grads = loss.backward()?;
    let Some(grad) = grads.get(&student) else { bail!("no gradient") };
    Ok((loss.detach(), grad.clone()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn one_op_is_the_two_up_to_rounding(
        rows in dimension(40), channels in dimension(200), seed: u64, beta in scale(1e-3, 30.),
        size in scale(1e-3, 1e3), shift in -100f64..100., wide: bool,
    ) {
        // Sums of up to 8,000 terms in other orders; the terms themselves are the same bits.
        let (dtype, accuracy) = if wide { (DType::F64, 1e-13) } else { (DType::F32, 1e-6) };
        holds((|| {
            let student = normal(&[rows, channels], dtype, seed)?;
            let teacher = normal(&[rows, channels], dtype, seed ^ 1)?.affine(size, shift)?;
            let (one, ds) = both(|s| smooth_l1_layer_norm(s, &teacher, beta, 1e-5), &student)?;
            let normed = layer_norm(&teacher, 1e-5)?;
            let (two, want) = both(|s| smooth_l1(s, &normed, beta, vkd_loss::Reduction::Mean), &student)?;
            assert_close("value", &one, &two, Tolerance::relative(accuracy))?;
            assert_close("gradient", &ds, &want, Tolerance::relative(accuracy))
        })())?;
    }

    #[test]
    fn the_teacher_s_unit_and_offset_do_not_matter(
        rows in dimension(20), channels in 3usize..100, seed: u64, size in scale(1e-3, 1e3), shift in -100f64..100.,
    ) {
        holds((|| {
            let student = normal(&[rows, channels], DType::F64, seed)?;
            let teacher = normal(&[rows, channels], DType::F64, seed ^ 1)?;
            let (want, want_ds) = both(|s| smooth_l1_layer_norm(s, &teacher, 1., 1e-5), &student)?;
            // eps scales with the variance.
            let moved = teacher.affine(size, shift)?;
            let loss = |s: &Tensor| smooth_l1_layer_norm(s, &moved, 1., 1e-5 * size * size);
            let (got, ds) = both(loss, &student)?;
            let accuracy = Tolerance::relative(1e-10 * (1. + shift.abs() / size));
            assert_close("value", &got, &want, accuracy)?;
            assert_close("gradient", &ds, &want_ds, accuracy)
        })())?;
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() -> Result<()> {
    let student = normal(&[1501, 200], DType::F32, 1)?;
    let teacher = normal(&[1501, 200], DType::F32, 2)?.affine(2., 3.)?;
    let run = |threads: usize| -> Result<(Tensor, Tensor)> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.map_err(candle_core::Error::wrap)?
            .install(|| both(|s| smooth_l1_layer_norm(s, &teacher, 1., 1e-5), &student))
    };
    let (loss, ds) = run(1)?;
    for threads in [2, 3, 5] {
        let (other, other_ds) = run(threads)?;
        assert_close("value", &other, &loss, Tolerance::EXACT)?;
        assert_close("gradient", &other_ds, &ds, Tolerance::EXACT)?;
    }
    Ok(())
}
