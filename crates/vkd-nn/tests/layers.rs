//! Layers: gradients of every variable, construction errors, and the optimiser against its formula.

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use std::collections::HashMap;
use vkd_nn::{
    AdamW, AdamWConfig, BatchNormConfig, Context, Conv2dConfig, VarStore, batch_norm2d, conv2d,
    conv2d_no_bias, layer_norm, linear, self_attention,
};
use vkd_nn::{ConvTranspose2dConfig, conv_transpose2d};
use vkd_testkit::{Tolerance, assert_close, gradcheck_variables, normal};

fn store() -> VarStore {
    VarStore::new(11, DType::F64, &Device::Cpu)
}

#[test]
fn gradients_of_every_variable() -> Result<()> {
    let s = store();
    let vb = s.builder();
    let xs = normal(&[2, 4, 8], DType::F64, 1)?;
    let (norm, attention, head) = (
        layer_norm(8, 1e-6, vb.pp("n"))?,
        self_attention(8, 2, vb.pp("a"))?,
        linear(8, 3, vb.pp("l"))?,
    );
    gradcheck_variables(&s.parameters(), || {
        head.forward(&attention.forward(&norm.forward(&xs)?)?)?.sqr()?.mean_all()
    })?;

    let s = store();
    let conv = conv2d(
        2,
        3,
        3,
        Conv2dConfig { stride: (2, 2), padding: (1, 1), ..Conv2dConfig::default() },
        s.builder(),
    )?;
    let xs = normal(&[2, 5, 6, 2], DType::F64, 2)?;
    gradcheck_variables(&s.parameters(), || conv.forward(&xs)?.sqr()?.mean_all())?;
    gradcheck_variables(&s.parameters(), || conv.forward_relu(&xs)?.sqr()?.mean_all())?;

    let s = store();
    let bare = conv2d_no_bias(2, 3, 3, Conv2dConfig::default(), s.builder())?;
    assert_eq!(s.parameters().len(), 1, "a weight alone");
    gradcheck_variables(&s.parameters(), || bare.forward(&xs)?.sqr()?.mean_all())?;

    let s = store();
    let config = ConvTranspose2dConfig { stride: (2, 2), ..ConvTranspose2dConfig::default() };
    let conv = conv_transpose2d(2, 3, 3, config, s.builder())?;
    gradcheck_variables(&s.parameters(), || conv.forward(&xs)?.sqr()?.mean_all())
}

#[test]
fn convolution_equals_candles_forward() -> Result<()> {
    let s = store();
    let conv = conv2d(
        2,
        3,
        3,
        Conv2dConfig { stride: (2, 2), padding: (1, 1), ..Conv2dConfig::default() },
        s.builder(),
    )?;
    let xs = normal(&[2, 2, 7, 6], DType::F64, 3)?;
    let ours = conv.forward(&xs.permute((0, 2, 3, 1))?)?.permute((0, 3, 1, 2))?;
    let candles = xs.conv2d(&s.tensors()["weight"], 1, 2, 1, 1)?;
    assert_close("conv2d", &ours, &candles, Tolerance::for_op(DType::F64, DType::F64, 18))
}

#[test]
fn construction_errors_name_the_layer() {
    let vb = store().builder().pp("blocks.0");
    let grouped = Conv2dConfig { groups: 2, ..Conv2dConfig::default() };
    let dense = ConvTranspose2dConfig::default();
    let beyond = ConvTranspose2dConfig { output_padding: (1, 0), ..dense };
    let zero = Conv2dConfig { stride: (0, 1), ..Conv2dConfig::default() };
    for message in [
        linear(0, 3, vb.clone()).err(),
        layer_norm(4, 0., vb.clone()).err(),
        layer_norm(4, f64::NAN, vb.clone()).err().or_else(|| layer_norm(0, 1., vb.clone()).err()),
        self_attention(8, 3, vb.clone()).err(),
        self_attention(8, 0, vb.clone()).err(),
        conv2d(1, 1, 3, zero, vb.clone()).err(),
        conv2d(1, 1, 0, Conv2dConfig::default(), vb.clone()).err(),
        conv2d(0, 1, 3, Conv2dConfig::default(), vb.clone()).err(),
        conv2d(4, 3, 3, grouped, vb.clone()).err(),
        conv2d(3, 4, 3, Conv2dConfig { groups: 0, ..grouped }, vb.clone()).err(),
        conv_transpose2d(1, 1, 0, dense, vb.clone()).err(),
        conv_transpose2d(1, 1, 3, beyond, vb.clone()).err(),
        conv_transpose2d(3, 2, 3, ConvTranspose2dConfig { groups: 2, ..dense }, vb.clone()).err(),
    ] {
        let message = message.map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains("blocks.0") && message.contains("expected"), "{message}");
    }
}

#[test]
fn adamw_follows_its_formula_and_resumes_exactly() -> Result<()> {
    let config = AdamWConfig { beta1: 0.9, beta2: 0.99, eps: 1e-6, weight_decay: 0.1 };
    let start = [0.5f64, -2., 3.];
    let gradient = |p: f64| 2. * p - 1.;
    let (mut p, mut m, mut v) = (start.to_vec(), vec![0f64; 3], vec![0f64; 3]);
    let var = Var::new(&start, &Device::Cpu)?;
    let free = Var::new(&start, &Device::Cpu)?;
    let named = |var: &Var| vec![("w".to_owned(), var.clone())];
    let mut adamw = AdamW::new(
        [named(&var), vec![("b".to_owned(), free.clone())]].concat(),
        config,
        |n, _| n == "w",
    )?;
    let step = |adamw: &mut AdamW, var: &Var| -> Result<()> {
        let x = var.as_tensor();
        let loss = ((x.sqr()? - x)?.sum_all()? + free.as_tensor().sum_all()?)?;
        adamw.step(&loss.backward()?, 0.05)
    };
    let lr = 0.05;
    for t in 1..=5 {
        step(&mut adamw, &var)?;
        for i in 0..3 {
            let g = gradient(p[i]);
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.99 * v[i] + 0.01 * g * g;
            let (mh, vh) = (m[i] / (1. - 0.9f64.powi(t)), v[i] / (1. - 0.99f64.powi(t)));
            p[i] -= lr * (0.1 * p[i] + mh / (vh.sqrt() + 1e-6));
        }
    }
    assert_close(
        "adamw",
        var.as_tensor(),
        &Tensor::new(&p[..], &Device::Cpu)?,
        Tolerance::relative(1e-13),
    )?;
    // The undecayed variable has a constant gradient of one: each step moves it by lr.
    let moved: Vec<f64> = start.iter().map(|s| s - 5. * lr).collect();
    assert_close(
        "no decay",
        free.as_tensor(),
        &Tensor::new(&moved[..], &Device::Cpu)?,
        Tolerance::relative(1e-5),
    )?;

    // Save, take up elsewhere, go on: the same bits.
    let (count, state) = adamw.state()?;
    let copy = Var::from_tensor(&var.as_detached_tensor().copy()?)?;
    let other_free = Var::from_tensor(&free.as_detached_tensor().copy()?)?;
    let mut resumed =
        AdamW::new([named(&copy), vec![("b".to_owned(), other_free)]].concat(), config, |n, _| {
            n == "w"
        })?;
    assert!(resumed.load_state(count, &HashMap::new()).is_err());
    resumed.load_state(count, &state.into_iter().collect())?;
    step(&mut adamw, &var)?;
    step(&mut resumed, &copy)?;
    assert_eq!(var.to_vec1::<f64>()?, copy.to_vec1::<f64>()?);
    Ok(())
}

#[test]
fn adamw_refuses_bad_settings() -> Result<()> {
    let var = Var::new(&[1f32], &Device::Cpu)?;
    let with = |c: AdamWConfig| AdamW::new(vec![("w".to_owned(), var.clone())], c, |_, _| true);
    let good = AdamWConfig::default();
    for bad in [
        AdamWConfig { beta1: 1., ..good },
        AdamWConfig { eps: 0., ..good },
        // Zero in f32: a gradient of zero would give 0 / 0.
        AdamWConfig { eps: 1e-60, ..good },
        AdamWConfig { eps: f64::INFINITY, ..good },
        AdamWConfig { weight_decay: f64::NAN, ..good },
        AdamWConfig { weight_decay: f64::INFINITY, ..good },
    ] {
        assert!(with(bad).is_err());
    }
    let grads = var.as_tensor().sqr()?.sum_all()?.backward()?;
    for lr in [-1., f64::NAN, f64::INFINITY] {
        assert!(with(good)?.step(&grads, lr).is_err());
    }
    // A step count beyond i32 must not turn the bias correction around.
    let mut late = with(good)?;
    let state = late.state()?.1.into_iter().collect();
    late.load_state(1 << 31, &state)?;
    late.step(&grads, 0.1)?;
    assert!(var.to_vec1::<f32>()?[0].is_finite());
    let whole = Var::zeros(2, DType::U32, &Device::Cpu)?;
    assert!(AdamW::new(vec![("h".to_owned(), whole)], good, |_, _| true).is_err());
    Ok(())
}

/// The norm in evaluation, folded into the convolution before it: same values and gradients, in one op.
#[test]
fn a_convolution_takes_its_norm_in() -> Result<()> {
    let store = VarStore::new(3, DType::F64, &Device::Cpu);
    let vb = store.builder();
    let config = Conv2dConfig { padding: (1, 1), groups: 2, ..Conv2dConfig::default() };
    let conv = conv2d(4, 6, 3, config, vb.pp("conv"))?;
    let plain = conv2d_no_bias(4, 6, 3, config, vb.pp("plain"))?;
    let norm = batch_norm2d(6, BatchNormConfig::default(), vb.pp("norm"))?;
    // Values of their own everywhere, variances above zero.
    let tensors = store.tensors().into_iter().enumerate().map(|(i, (name, tensor))| {
        let values = normal(tensor.dims(), DType::F64, 20 + i as u64)?;
        Ok((name, if i % 2 == 0 { values } else { (values.abs()? + 0.3)? }))
    });
    let mut tensors = tensors.collect::<Result<HashMap<_, _>>>()?;
    let variance = (tensors["norm.running_var"].abs()? + 0.3)?;
    tensors.insert("norm.running_var".to_owned(), variance);
    store.load(&tensors)?;
    let xs = normal(&[2, 5, 4, 4], DType::F64, 1)?;
    let cot = normal(&[2, 5, 4, 6], DType::F64, 2)?;
    for conv in [&conv, &plain] {
        let apart = norm.forward(&conv.forward(&xs)?, &Context::eval())?;
        let folded = conv.with_norm(&norm)?.forward(&xs)?;
        // Sums of 18 products in f64.
        assert_close("folded", &folded, &apart, Tolerance { relative: 1e-13, absolute: 1e-13 })?;
        let apart = (apart * &cot)?.sum_all()?.backward()?;
        let folded = (folded * &cot)?.sum_all()?.backward()?;
        for (name, var) in store.parameters() {
            match (apart.get(&var), folded.get(&var)) {
                (Some(a), Some(b)) => {
                    assert_close(&name, b, a, Tolerance { relative: 1e-12, absolute: 1e-12 })?
                }
                (None, None) => {}
                _ => panic!("{name}: a gradient on one side only"),
            }
        }
    }
    Ok(())
}
