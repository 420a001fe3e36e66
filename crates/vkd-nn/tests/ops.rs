//! Every op against its twin, against finite differences, in every layout, and against its own edge cases.

use candle_core::{DType, Device, Result, Tensor};
use proptest::prelude::*;
use vkd_nn::ops::reference;
use vkd_nn::{gelu, gelu_tanh, multi_head_attention, relu, relu6, silu};
use vkd_testkit::{
    Tolerance, assert_close, gradcheck, has_gradient, layouts, normal, normal_scaled,
};

/// One case: name, op, twin, input shape, terms of the longest sum.
type Op = Box<dyn Fn(&Tensor) -> Result<Tensor>>;

fn cases() -> Vec<(&'static str, Op, Op, Vec<usize>, usize)> {
    let mut all: Vec<(&'static str, Op, Op, Vec<usize>, usize)> = vec![];
    for dims in [vec![1], vec![7, 33], vec![3, 1, 5], vec![300, 300]] {
        all.push(("gelu", Box::new(gelu), Box::new(reference::gelu), dims.clone(), 1));
        all.push(("relu", Box::new(relu), Box::new(reference::relu), dims.clone(), 1));
        // Six times as wide, so that a good part lies beyond the upper edge.
        all.push((
            "relu6",
            Box::new(|x| relu6(&(x * 6.)?)),
            Box::new(|x| reference::relu6(&(x * 6.)?)),
            dims.clone(),
            1,
        ));
        all.push(("silu", Box::new(silu), Box::new(reference::silu), dims.clone(), 1));
        // A tanh near -1 loses what the logistic function keeps: eight units of one.
        all.push(("gelu_tanh", Box::new(gelu_tanh), Box::new(reference::gelu_tanh), dims, 8));
    }
    for (dims, heads) in [
        ([1, 1, 3], 1),
        ([2, 5, 24], 2),
        ([3, 33, 18], 3),
        ([2, 7, 96], 4),
        ([9, 50, 192], 4),
        ([2, 140, 12], 2),
    ] {
        all.push((
            "attention",
            Box::new(move |x| multi_head_attention(x, None, heads)),
            Box::new(move |x| reference::multi_head_attention(x, None, heads)),
            dims.to_vec(),
            dims[1] * 8,
        ));
    }
    all
}

#[test]
fn agrees_with_its_twin_in_every_layout_and_dtype() -> Result<()> {
    for (name, op, twin, dims, terms) in cases() {
        for dtype in [DType::F32, DType::F64] {
            let xs = normal(&dims, dtype, 1)?;
            let want = twin(&xs)?;
            for (layout, laid) in layouts(&xs)? {
                let what = format!("{name} {dims:?} {layout}");
                let got = op(&laid)?;
                assert!(got.is_contiguous(), "{what}: output must be contiguous");
                assert_close(&what, &got, &want, Tolerance::for_op(dtype, dtype, terms))?;
            }
        }
    }
    Ok(())
}

#[test]
fn gradients_equal_differences() -> Result<()> {
    for (name, op, _, dims, _) in cases() {
        if dims.iter().product::<usize>() > 2000 {
            continue;
        }
        let xs = normal(&dims, DType::F64, 2)?;
        gradcheck(|x| op(&x[0]), &[xs]).map_err(|e| e.context(format!("{name} {dims:?}")))?;
    }
    Ok(())
}

#[test]
fn gradients_agree_with_the_twin_in_every_layout_and_dtype() -> Result<()> {
    for (name, op, twin, dims, terms) in cases() {
        for dtype in [DType::F32, DType::F64] {
            let xs = normal(&dims, dtype, 3)?;
            let grad = |f: &Op, layout: usize| -> Result<Tensor> {
                let var = candle_core::Var::from_tensor(&xs)?;
                let laid = layouts(var.as_tensor())?.swap_remove(layout).1;
                let ys = f(&laid)?;
                let cotangent = normal(ys.dims(), dtype, 4)?;
                let grads = (ys * cotangent)?.sum_all()?.backward()?;
                match grads.get(&var) {
                    Some(g) => Ok(g.clone()),
                    None => candle_core::bail!("{name} {dims:?}: no gradient"),
                }
            };
            let want = grad(&twin, 0)?;
            for layout in 0..layouts(&xs)?.len() {
                let what = format!("{name} {dims:?} gradient, layout {layout}");
                // candle's own erf derivative in the GELU twin is good to 1e-6 only.
                let mut tolerance = Tolerance::for_op(dtype, dtype, 4 * terms);
                if name == "gelu" {
                    tolerance.relative = tolerance.relative.max(2e-6);
                }
                assert_close(&what, &grad(&op, layout)?, &want, tolerance)?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_cut_tape_would_be_noticed() -> Result<()> {
    let xs = normal(&[2, 3, 6], DType::F32, 1)?;
    assert!(has_gradient(|x| multi_head_attention(x, None, 1), &xs)?);
    assert!(!has_gradient(|x| multi_head_attention(&x.detach(), None, 1), &xs)?);
    Ok(())
}

#[test]
fn an_empty_batch_is_an_empty_result() -> Result<()> {
    let empty = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu);
    assert_eq!(multi_head_attention(&empty(&[0, 4, 6])?, None, 1)?.dims(), [0, 4, 2]);
    assert_eq!(multi_head_attention(&empty(&[2, 0, 6])?, None, 1)?.dims(), [2, 0, 2]);
    assert_eq!(gelu(&empty(&[0, 4])?)?.dims(), [0, 4]);
    assert!(has_gradient(relu, &empty(&[0, 4])?)?);
    Ok(())
}

#[test]
fn edge_values() -> Result<()> {
    let at = Tensor::new(&[-3f64, -0., 0., 2.], &Device::Cpu)?;
    let var = candle_core::Var::from_tensor(&at)?;
    let grads = relu(var.as_tensor())?.sum_all()?.backward()?;
    let grad = grads.get(&var).map(Tensor::to_vec1::<f64>).transpose()?;
    assert_eq!(grad, Some(vec![0., 0., 0., 1.]), "the gradient of ReLU at zero is zero");
    let at = Tensor::new(&[-3f64, 0., 2., 6., 7.], &Device::Cpu)?;
    let var = candle_core::Var::from_tensor(&at)?;
    let ys = relu6(var.as_tensor())?;
    assert_eq!(ys.to_vec1::<f64>()?, [0., 0., 2., 6., 6.]);
    let grads = ys.sum_all()?.backward()?;
    let grad = grads.get(&var).map(Tensor::to_vec1::<f64>).transpose()?;
    assert_eq!(grad, Some(vec![0., 0., 1., 0., 0.]), "the gradient of ReLU6 at its edges is zero");
    let nan = relu(&Tensor::new(&[f32::NAN], &Device::Cpu)?)?.to_vec1::<f32>()?;
    assert!(nan[0].is_nan(), "NaN stays visible");
    let big = multi_head_attention(&normal_scaled(&[2, 5, 12], DType::F32, 5, 1e4)?, None, 2)?;
    assert!(big.flatten_all()?.to_vec1::<f32>()?.iter().all(|x| x.is_finite()));
    let far = gelu(&Tensor::new(&[-1e4f32, 1e4], &Device::Cpu)?)?.to_vec1::<f32>()?;
    assert_eq!(far, [0., 1e4]);
    Ok(())
}

#[test]
fn bad_input_is_named() -> Result<()> {
    let xs = Tensor::zeros((2, 3, 10), DType::F32, &Device::Cpu)?;
    let message = multi_head_attention(&xs, None, 2).unwrap_err().to_string();
    assert!(message.contains("attention: expected") && message.contains("[2, 3, 10]"), "{message}");
    // Three times these heads is 2 after a wrap.
    assert!(multi_head_attention(&xs.narrow(2, 0, 6)?, None, usize::MAX / 3 + 1).is_err());
    assert!(reference::multi_head_attention(&xs, None, 0).is_err());
    assert!(gelu(&Tensor::zeros(3, DType::U32, &Device::Cpu)?).is_err());
    assert!(relu(&Tensor::zeros(3, DType::U8, &Device::Cpu)?).is_err());
    Ok(())
}

proptest! {
    /// Each output row is a convex combination of the head's values: it lies within their range.
    #[test]
    fn attention_averages_values(tokens in 1usize..12, dim in 1usize..6, scale in 0.01f64..30., seed in 0u64..1000) {
        let qkv = normal_scaled(&[1, tokens, 3 * dim], DType::F64, seed, scale).unwrap();
        let out = multi_head_attention(&qkv, None, 1).unwrap().squeeze(0).unwrap().to_vec2::<f64>().unwrap();
        let values = qkv.narrow(2, 2 * dim, dim).unwrap().squeeze(0).unwrap().to_vec2::<f64>().unwrap();
        for c in 0..dim {
            let low = values.iter().map(|v| v[c]).fold(f64::INFINITY, f64::min);
            let high = values.iter().map(|v| v[c]).fold(f64::NEG_INFINITY, f64::max);
            let slack = 1e-12 * scale;
            prop_assert!(out.iter().all(|o| o[c] >= low - slack && o[c] <= high + slack));
        }
    }
}
