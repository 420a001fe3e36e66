//! Row losses: against their twin, finite differences, in every layout, and at their edges.

use super::{RowLoss, reference, row_loss};
use crate::Reduction::{self, BatchMean, Mean, Sum};
use candle_core::{DType, Device, Result, Tensor, Var};
use vkd_testkit::{OpCase, Tolerance, assert_close, normal, to_f64, uniform};

const KINDS: [RowLoss; 3] = [RowLoss::Cosine { eps: 1e-8 }, RowLoss::Distance, RowLoss::Giou];

fn case<'a>(inputs: &'a [Tensor]) -> OpCase<'a> {
    OpCase { what: "row_loss", inputs, active: 1, f64_tolerance: 1e-13, f32_tolerance: 1e-6 }
}

fn inputs(kind: RowLoss, dims: &[usize], seed: u64) -> Result<[Tensor; 2]> {
    let draw = |seed| match kind {
        RowLoss::Giou => {
            let half = [&dims[..dims.len() - 1], &[2]].concat();
            let low = normal(&half, DType::F64, seed)?;
            // Sides from a tenth to three: some pairs overlap, some lie within each other, some are apart.
            let high = (&low + uniform(&half, DType::F64, seed + 9, 0.1, 3.)?)?;
            Tensor::cat(&[low, high], dims.len() - 1)
        }
        _ => normal(dims, DType::F64, seed),
    };
    Ok([draw(seed)?, draw(seed + 50)?])
}

#[test]
fn agrees_with_its_twin() -> Result<()> {
    for kind in KINDS {
        for (dims, seed) in [(vec![7], 2), (vec![33, 7], 3), (vec![2, 3, 7], 4)] {
            for reduction in [Mean, Sum, BatchMean, Reduction::None] {
                case(&inputs(kind, &dims, seed)?).check(
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
            case(&inputs(kind, &dims, 1)?).has_teeth(
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
fn giou_at_its_edges() -> Result<()> {
    let one = [0f64, 0., 1., 1.];
    // The same, within, apart, touching, two points, two points apart, a line on itself.
    let boxes = [one, one, one, one, [2.; 4], [2.; 4], [0., 0., 1., 0.]];
    let targets = [
        one,
        [0.25, 0.25, 0.75, 0.75],
        [3., 0., 4., 1.],
        [1., 0., 2., 1.],
        [2.; 4],
        [3.; 4],
        [0., 0., 1., 0.],
    ];
    // Two points a diagonal apart have an empty hull of area 1.
    let want = [0., 0.75, 1.5, 1., 1., 2., 1.];
    let targets = Tensor::new(&targets, &Device::Cpu)?;
    for f in [row_loss, reference::row_loss] {
        let student = Var::new(&boxes, &Device::Cpu)?;
        let loss = f(RowLoss::Giou, &student, &targets, Reduction::None)?;
        assert_eq!(loss.to_vec1::<f64>()?, want);
        let grads = loss.sum_all()?.backward()?;
        let grad = grads.get(&student).unwrap();
        assert!(to_f64(grad)?.iter().all(|g| g.is_finite()), "{grad}");
        // Equal boxes: by the mean of both sides nothing pulls.
        let rows = [grad.get(0)?, grad.get(1)?];
        assert_close("equal", &rows[0], &rows[0].zeros_like()?, Tolerance::EXACT)?;
        // A box around its target shrinks from all sides alike: I/U = 1/4, hull and union are the box itself.
        let want = Tensor::new(&[-0.25f64, -0.25, 0.25, 0.25], &Device::Cpu)?;
        assert_close("around", &rows[1], &want, Tolerance::relative(1e-15))?;
    }
    let e = |a: &[[f64; 4]], b: &[[f64; 4]]| -> Result<String> {
        let tensor = |x: &[[f64; 4]]| Tensor::new(x.concat(), &Device::Cpu)?.reshape(((), 4));
        let (a, b) = (tensor(a)?, tensor(b)?);
        Ok(row_loss(RowLoss::Giou, &a, &b, Mean).unwrap_err().to_string())
    };
    let wrong = e(&[one, [1., 0., 0., 1.]], &[one, one])?;
    assert!(wrong.contains("giou: expected boxes with x0 <= x1 and y0 <= y1"), "{wrong}");
    assert!(wrong.contains("in row 1"), "{wrong}");
    assert!(e(&[one], &[[0., 1., 1., 0.]])?.contains("expected targets with"));
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
