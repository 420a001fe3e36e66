//! Row losses: against their twin, finite differences, in every layout, and at their edges.

use super::{RowLoss, reference, row_loss};
use crate::Reduction::{self, BatchMean, Mean, Sum};
use candle_core::{DType, Device, Result, Tensor, Var};
use vkd_testkit::{OpCase, normal, to_f64};

const KINDS: [RowLoss; 2] = [RowLoss::Cosine { eps: 1e-8 }, RowLoss::Distance];

fn case<'a>(inputs: &'a [Tensor]) -> OpCase<'a> {
    OpCase { what: "row_loss", inputs, active: 1, f64_tolerance: 1e-13, f32_tolerance: 1e-6 }
}

fn inputs(dims: &[usize], seed: u64) -> Result<[Tensor; 2]> {
    Ok([normal(dims, DType::F64, seed)?, normal(dims, DType::F64, seed + 50)?])
}

#[test]
fn agrees_with_its_twin() -> Result<()> {
    for kind in KINDS {
        for (dims, seed) in [(vec![7], 2), (vec![33, 7], 3), (vec![2, 3, 7], 4)] {
            for reduction in [Mean, Sum, BatchMean, Reduction::None] {
                case(&inputs(&dims, seed)?).check(
                    |x| row_loss(kind, &x[0], &x[1], reduction),
                    |x| reference::row_loss(kind, &x[0], &x[1], reduction),
                )?;
            }
        }
    }
    Ok(())
}

#[test]
fn harness_has_teeth() -> Result<()> {
    for kind in KINDS {
        for dims in [vec![2, 3], vec![33, 7]] {
            case(&inputs(&dims, 1)?).has_teeth(
                |x| row_loss(kind, &x[0], &x[1], Mean),
                |x| reference::row_loss(kind, &x[0], &x[1], Mean),
            )?;
        }
    }
    Ok(())
}

#[test]
fn coincident_and_zero_rows_have_no_gradient() -> Result<()> {
    let rows = [[0f32, 0.], [1., 2.], [0., 0.], [1e-30, 0.]];
    let others = [[0f32, 0.], [1., 2.], [3., 4.], [0., 0.]];
    let teacher = Tensor::new(&others, &Device::Cpu)?;
    for (kind, want, still) in
        [(KINDS[0], [1f32, 0., 1., 1.], 4), (KINDS[1], [0., 0., 5., 1e-30], 2)]
    {
        for f in [row_loss, reference::row_loss] {
            let student = Var::new(&rows, &Device::Cpu)?;
            let loss = f(kind, &student, &teacher, Reduction::None)?;
            let got = loss.to_vec1::<f32>()?;
            // The twin squares in f32, where 1e-30 vanishes; its cosine rounds.
            assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-6), "{got:?}");
            let grads = loss.sum_all()?.backward()?;
            let grad = to_f64(grads.get(&student).unwrap())?;
            assert!(grad.iter().all(|g| g.is_finite()), "{grad:?}");
            assert!(grad[..2 * still].iter().all(|g| g.abs() < 1e-7), "{grad:?}");
        }
    }
    Ok(())
}

#[test]
fn bad_arguments_are_named() -> Result<()> {
    let xs = normal(&[3, 4], DType::F32, 1)?;
    for kind in KINDS {
        let message = |a: &Tensor, b: &Tensor| row_loss(kind, a, b, Mean).unwrap_err().to_string();
        let e = message(&xs, &xs.t()?);
        assert!(e.contains(kind.op()) && e.contains("[3, 4], got [4, 3]"), "{e}");
        assert!(message(&xs, &xs.to_dtype(DType::F64)?).contains("dtype F32, got F64"));
        assert!(message(&xs, Var::from_tensor(&xs)?.as_tensor()).contains("without gradient"));
        for none in [xs.narrow(0, 0, 0)?, xs.narrow(1, 0, 0)?, Tensor::new(1f32, &Device::Cpu)?] {
            let got = row_loss(kind, &none, &none, Mean);
            assert!(got.unwrap_err().to_string().contains("at least one entry"));
        }
    }
    Ok(())
}
