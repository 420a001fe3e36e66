//! Angles of all triples: against their twin and finite differences, for every reduction.

use super::{angle_loss, reference};
use crate::Reduction::{self, BatchMean, Mean, Sum};
use candle_core::{DType, Result, Tensor, Var};
use vkd_testkit::{Tolerance, assert_close, gradcheck, layouts, normal};

/// Any two matrices of positive entries will do: the kernel does not ask whether they are distances.
fn inputs(n: usize) -> Result<[Tensor; 2]> {
    // Large enough that both branches of the smooth-L1 are taken.
    let draw = |seed| normal(&[n, n], DType::F64, seed)?.exp();
    Ok([draw(1)?, draw(2)?])
}

#[test]
fn agrees_with_its_twin_and_with_differences() -> Result<()> {
    // One sample forms no angle: only rounding is left, which has no differences.
    for n in [2, 4, 9] {
        let [student, teacher] = inputs(n)?;
        for reduction in [Mean, Sum, BatchMean, Reduction::None] {
            gradcheck(|x| angle_loss(&x[0], &teacher, reduction), std::slice::from_ref(&student))?;
            let run = |f: fn(&Tensor, &Tensor, Reduction) -> Result<Tensor>| -> Result<_> {
                let var = Var::from_tensor(&student)?;
                let loss = f(&var, &teacher, reduction)?;
                let weights = normal(loss.dims(), DType::F64, 7)?;
                let grads = (&loss * weights)?.sum_all()?.backward()?;
                Ok([loss.detach(), grads.get(&var).unwrap().clone()])
            };
            for (got, want) in run(angle_loss)?.iter().zip(&run(reference::angle_loss)?) {
                assert_close("twin", got, want, Tolerance { relative: 1e-12, absolute: 1e-14 })?;
            }
        }
    }
    Ok(())
}

#[test]
fn the_layout_changes_no_bit() -> Result<()> {
    let [student, teacher] = inputs(5)?;
    let want = angle_loss(&student, &teacher, Mean)?;
    for (name, student) in layouts(&student)? {
        let got = angle_loss(&student, &teacher, Mean)?;
        assert_close(name, &got, &want, Tolerance::EXACT)?;
    }
    Ok(())
}

#[test]
fn nan_is_not_hidden() -> Result<()> {
    let [student, teacher] = inputs(3)?;
    let loss = angle_loss(&(student * f64::NAN)?, &teacher, Mean)?;
    assert!(loss.to_scalar::<f64>()?.is_nan());
    Ok(())
}
