//! Angles of all triples: against their twin and finite differences, for every reduction.

use super::{Angles, angle_loss, reference};
use crate::Reduction::{self, BatchMean, Mean, Sum};
use candle_core::{DType, Result, Tensor, Var};
use vkd_testkit::{Tolerance, assert_close, gradcheck, layouts, normal};

/// Any two matrices will do: the kernel does not ask whether they belong together.
fn student(xs: &[Tensor]) -> Angles {
    Angles { gram: xs[0].clone(), inverse: xs[1].clone() }
}

fn inputs(n: usize) -> Result<(Vec<Tensor>, Angles)> {
    let draw = |seed| normal(&[n, n], DType::F64, seed);
    // Large enough that both branches of the smooth-L1 are taken.
    let teacher = Angles { gram: draw(3)?, inverse: draw(4)? };
    Ok((vec![draw(1)?, draw(2)?], teacher))
}

#[test]
fn agrees_with_its_twin_and_with_differences() -> Result<()> {
    for n in [1, 2, 4, 9] {
        let (xs, teacher) = inputs(n)?;
        for reduction in [Mean, Sum, BatchMean, Reduction::None] {
            gradcheck(|x| angle_loss(&student(x), &teacher, reduction), &xs)?;
            let run =
                |f: fn(&Angles, &Angles, Reduction) -> Result<Tensor>| -> Result<Vec<Tensor>> {
                    let vars = xs.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
                    let tracked: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
                    let loss = f(&student(&tracked), &teacher, reduction)?;
                    let weights = normal(loss.dims(), DType::F64, 7)?;
                    let grads = (&loss * weights)?.sum_all()?.backward()?;
                    let grads = vars.iter().map(|v| grads.get(v).unwrap().clone());
                    Ok([vec![loss.detach()], grads.collect()].concat())
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
    let (xs, teacher) = inputs(5)?;
    let want = angle_loss(&student(&xs), &teacher, Mean)?;
    let (gram, inverse) = (layouts(&xs[0])?, layouts(&xs[1])?);
    for (a, b) in gram.iter().zip(&inverse) {
        let got = angle_loss(&student(&[a.1.clone(), b.1.clone()]), &teacher, Mean)?;
        assert_close(a.0, &got, &want, Tolerance::EXACT)?;
    }
    Ok(())
}

#[test]
fn nan_is_not_hidden() -> Result<()> {
    let (xs, teacher) = inputs(3)?;
    let broken = (&xs[0] * f64::NAN)?;
    let loss = angle_loss(&student(&[broken, xs[1].clone()]), &teacher, Mean)?;
    assert!(loss.to_scalar::<f64>()?.is_nan());
    Ok(())
}
