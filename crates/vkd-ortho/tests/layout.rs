//! Strides and offsets: of the parameter, and of the gradient that comes in.

mod common;

use candle_core::{DType, Result, Tensor, Var};
use common::{CASES, DTYPES};
use vkd_testkit::{Tolerance, assert_close, layouts, normal};

#[test]
fn every_layout_of_a_batch_gives_the_same_bits_and_gradient() -> Result<()> {
    for case in &CASES {
        // Single matrices are part of the law harness; a batch has more strides to get wrong.
        for dims in [vec![3, 6, 4], vec![2, 2, 5, 3], vec![4, 1, 1]] {
            for dtype in DTYPES {
                let var = Var::from_tensor(&normal(&dims, dtype, 1)?)?;
                let cotangent = normal(&dims, dtype, 2)?;
                let mut first: Option<(Tensor, Tensor)> = None;
                for (layout, raw) in layouts(var.as_tensor())? {
                    let q = (case.op)(&raw)?;
                    let grads = (&q * &cotangent)?.sum_all()?.backward()?;
                    let Some(grad) = grads.get(&var) else {
                        panic!("{} {dims:?} {layout}: no gradient", case.name)
                    };
                    let (q0, g0) = first.get_or_insert_with(|| (q.clone(), grad.clone()));
                    assert_close(layout, &q, q0, Tolerance::EXACT)?;
                    assert_close(layout, grad, g0, Tolerance::EXACT)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn leaves_with_an_offset_have_gradients() -> Result<()> {
    // A view without history as the argument itself, so that the op sees the offset.
    for case in &CASES {
        let store = normal(&[4, 6, 3], DType::F64, 3)?;
        let view = store.narrow(0, 2, 1)?.squeeze(0)?;
        assert!(view.is_contiguous() && view.layout().start_offset() > 0);
        let copy = view.copy()?;
        assert_close(case.name, &(case.op)(&view)?, &(case.op)(&copy)?, Tolerance::EXACT)?;
    }
    Ok(())
}

#[test]
fn incoming_gradients_may_be_strided() -> Result<()> {
    for case in &CASES {
        for dtype in DTYPES {
            let raw = Var::from_tensor(&normal(&[9, 4], dtype, 1)?)?;
            let cotangent = normal(&[9, 4], dtype, 2)?;
            let plain = ((case.op)(&raw)? * &cotangent)?.sum_all()?.backward()?;
            // Through a transpose, a broadcast sum, and a slice.
            let turned = ((case.op)(&raw)?.t()? * cotangent.t()?)?.sum_all()?.backward()?;
            let (Some(a), Some(b)) = (plain.get(&raw), turned.get(&raw)) else {
                panic!("{}: no gradient", case.name)
            };
            assert_close(case.name, b, a, Tolerance::EXACT)?;

            let summed = (case.op)(&raw)?.sum_all()?.backward()?;
            let ones = ((case.op)(&raw)? * cotangent.ones_like()?)?.sum_all()?.backward()?;
            let (Some(a), Some(b)) = (ones.get(&raw), summed.get(&raw)) else {
                panic!("{}: no gradient", case.name)
            };
            assert_close(case.name, b, a, Tolerance::EXACT)?;
        }
    }
    Ok(())
}

#[test]
fn the_number_of_threads_changes_no_bit() -> Result<()> {
    // Wide enough that the products are shared among threads.
    let values = normal(&[3024, 192], DType::F32, 5)?;
    for case in &CASES {
        let run = |threads: usize| -> Result<(Tensor, Tensor)> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.map_err(candle_core::Error::wrap)?.install(|| {
                let raw = Var::from_tensor(&values)?;
                let q = (case.op)(&raw)?;
                let grads = (&q * &values)?.backward()?;
                let Some(grad) = grads.get(&raw) else { panic!("{}: no gradient", case.name) };
                Ok((q, grad.clone()))
            })
        };
        let (q, grad) = run(1)?;
        for threads in [2, 3] {
            let (other, other_grad) = run(threads)?;
            assert_close(case.name, &other, &q, Tolerance::EXACT)?;
            assert_close(case.name, &other_grad, &grad, Tolerance::EXACT)?;
        }
    }
    Ok(())
}
