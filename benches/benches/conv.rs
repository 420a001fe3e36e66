//! Convolutions: a small classifier's and a residual block's training step, and depthwise filters alone.

use std::process::ExitCode;

use candle_core::{DType, Device, Module, Result, Tensor, Var, bail};
use vkd_benches::{Suite, Work, data, gradient, run};
use vkd_nn::{
    AdamW, AdamWConfig, Conv2dConfig, Pool2dConfig, VarStore, conv2d, linear, max_pool2d, ops, relu,
};

/// 3×3 with one pixel of padding: the size of the image stays.
fn same() -> Conv2dConfig {
    Conv2dConfig { padding: (1, 1), ..Conv2dConfig::default() }
}

/// Forward and backward to every variable, and AdamW.
fn step(
    store: VarStore,
    forward: impl Fn() -> Result<Tensor>,
) -> Result<impl FnMut() -> Result<()>> {
    let config = AdamWConfig::default();
    let mut optimizer = AdamW::new(store.parameters(), config, |_, var| var.rank() > 1)?;
    Ok(move || optimizer.step(&forward()?.sqr()?.mean_all()?.backward()?, 1e-3))
}

fn sizes(work: &Work) -> Result<(usize, usize)> {
    match work.shape[..] {
        [batch, size] => Ok((batch, size)),
        _ => bail!("{}: expected batch and size of the image", work.name),
    }
}

/// Two convolutions with ReLU and pooling, and a linear head.
fn cnn(work: &Work) -> Result<impl FnMut() -> Result<()> + use<>> {
    let (batch, size) = sizes(work)?;
    let store = VarStore::new(7, DType::F32, &Device::Cpu);
    let vb = store.builder();
    let first = conv2d(1, 32, 3, same(), vb.pp("first"))?;
    let second = conv2d(32, 64, 3, same(), vb.pp("second"))?;
    let head = linear(64 * (size / 4) * (size / 4), 10, vb.pp("head"))?;
    let xs = data((batch, size, size, 1), 8)?;
    step(store, move || {
        let half = Pool2dConfig::new(2);
        let ys = max_pool2d(&first.forward_relu(&xs)?, half)?;
        let ys = max_pool2d(&second.forward_relu(&ys)?, half)?;
        head.forward(&ys.flatten_from(1)?)
    })
}

/// Two convolutions of 64 channels around a skip; the input wants a gradient, as within a network.
fn basic_block(work: &Work) -> Result<impl FnMut() -> Result<()> + use<>> {
    let (batch, size) = sizes(work)?;
    let store = VarStore::new(7, DType::F32, &Device::Cpu);
    let vb = store.builder();
    let first = conv2d(64, 64, 3, same(), vb.pp("first"))?;
    let second = conv2d(64, 64, 3, same(), vb.pp("second"))?;
    let xs = Var::from_tensor(&data((batch, size, size, 64), 8)?)?;
    step(store, move || {
        let ys = second.forward(&first.forward_relu(&xs)?)?;
        relu(&(xs.as_tensor() + ys)?)
    })
}

/// 96 channels, each with its own 3×3 filter.
fn depthwise(work: &Work) -> Result<impl FnMut() -> Result<Tensor> + use<>> {
    let (batch, size) = sizes(work)?;
    let xs = Var::from_tensor(&data((batch, size, size, 96), 7)?)?;
    let weight = Var::from_tensor(&data((96, 1, 3, 3), 8)?)?;
    let bias = Var::from_tensor(&data(96, 9)?)?;
    let config = Conv2dConfig { groups: 96, ..same() };
    Ok(move || gradient(&ops::conv2d(&xs, &weight, Some(bias.as_tensor()), config)?, &xs))
}

fn main() -> ExitCode {
    run(|suite: &mut Suite| {
        suite.works("nn/cnn_b64_mnist", cnn)?;
        suite.works("nn/cnn_one_thread", cnn)?;
        suite.works("nn/basic_block_c64_s56_b8", basic_block)?;
        suite.works("nn/depthwise3x3_c96_s56_b8", depthwise)
    })
}
