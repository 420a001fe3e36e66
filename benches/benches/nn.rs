//! Training steps of transformers: blocks of width 192 with three heads, forward, backward and AdamW; and AdamW, batch norm and
//! deformable attention alone.

use std::process::ExitCode;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Module, Result, Tensor, Var, bail};
use candle_nn::VarBuilder;
use vkd_benches::{Suite, Work, data, gradient, run};
use vkd_nn::{
    Activation, AdamW, AdamWConfig, BatchNormConfig, Context, LayerNorm, Linear, SelfAttention,
    VarStore, batch_norm2d, deformable_attention, layer_norm, linear, residual_attention,
    residual_mlp, self_attention,
};

/// A pre-norm block as in DeiT.
struct Block {
    norm1: LayerNorm,
    attention: SelfAttention,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Block {
    fn new(width: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            norm1: layer_norm(width, 1e-6, vb.pp("norm1"))?,
            attention: self_attention(width, 3, vb.pp("attention"))?,
            norm2: layer_norm(width, 1e-6, vb.pp("norm2"))?,
            fc1: linear(width, 4 * width, vb.pp("fc1"))?.with_activation(Activation::Gelu),
            fc2: linear(4 * width, width, vb.pp("fc2"))?,
        })
    }

    /// The same of one op per layer: what the tape adds between them.
    fn forward_by_layers(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = (xs + self.attention.forward(&self.norm1.forward(xs)?)?)?;
        &xs + self.fc2.forward(&self.fc1.forward(&self.norm2.forward(&xs)?)?)?
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = residual_attention(xs, &self.norm1, &self.attention, None)?;
        residual_mlp(&xs, &self.norm2, &self.fc1, &self.fc2, None)
    }
}

fn step(
    work: &Work,
    forward: fn(&Block, &Tensor) -> Result<Tensor>,
) -> Result<impl FnMut() -> Result<()> + use<>> {
    let [depth, batch, tokens, width] = work.shape[..] else {
        bail!("{}: expected depth, batch, tokens and width", work.name)
    };
    let store = VarStore::new(7, DType::F32, &Device::Cpu);
    let vb = store.builder();
    let blocks = (0..depth)
        .map(|index| Block::new(width, vb.pp(format!("blocks.{index}"))))
        .collect::<Result<Vec<_>>>()?;
    let xs = data((batch, tokens, width), 8)?;
    let config = AdamWConfig::default();
    let mut optimizer = AdamW::new(store.parameters(), config, |_, var| var.rank() > 1)?;
    Ok(move || {
        let mut ys = xs.clone();
        for block in &blocks {
            ys = forward(block, &ys)?;
        }
        optimizer.step(&ys.sqr()?.mean_all()?.backward()?, 1e-3)
    })
}

/// One step over many parameters, from gradients that stay.
fn adamw(work: &Work) -> Result<impl FnMut() -> Result<()> + use<>> {
    let (count, values) = work.matrix()?;
    let mut parameters = Vec::new();
    let mut grads = GradStore::default();
    for index in 0..count {
        let var = Var::from_tensor(&data(values, index as u32)?)?;
        grads.insert(&var, data(values, 100 + index as u32)?);
        parameters.push((format!("{index}.weight"), var));
    }
    let mut optimizer = AdamW::new(parameters, AdamWConfig::default(), |_, _| true)?;
    Ok(move || optimizer.step(&grads, 1e-3))
}

/// The whole layer in training: output, gradients of all three inputs, running statistics.
fn batch_norm(work: &Work) -> Result<impl FnMut() -> Result<Tensor> + use<>> {
    let (rows, channels) = work.matrix()?;
    let store = VarStore::new(7, DType::F32, &Device::Cpu);
    let layer = batch_norm2d(channels, BatchNormConfig::default(), store.builder())?;
    let xs = Var::from_tensor(&data((rows, channels), 8)?)?;
    let ctx = Context::train(0, 0, []);
    Ok(move || gradient(&layer.forward(&xs, &ctx)?, &xs))
}

/// Forward and backward, to values, locations and weights, over four levels of which each halves the one before; a good part
/// of the points is near the border.
fn deformable(work: &Work) -> Result<impl FnMut() -> Result<Tensor> + use<>> {
    let [batch, queries, heads, dim, points, side] = work.shape[..] else {
        bail!("{}: expected batch, queries, heads, dim, points and the largest side", work.name)
    };
    let levels = [1, 2, 4, 8].map(|part| (side / part, side / part));
    let pixels = levels.iter().map(|(rows, cols)| rows * cols).sum::<usize>();
    let values = Var::from_tensor(&data((batch, pixels, heads, dim), 1)?)?;
    let taps = (batch, queries, heads, levels.len(), points);
    let at = data(&[batch, queries, heads, levels.len(), points, 2][..], 2)?;
    let at = Var::from_tensor(&at.affine(0.5, 0.5)?)?;
    let weights = Var::from_tensor(&data(taps, 3)?)?;
    Ok(move || gradient(&deformable_attention(&values, &levels, &at, &weights)?, &values))
}

/// What candle's tape does with the gradient of every parameter that an op hands it: zeros, and a sum.
fn accumulation(work: &Work) -> Result<impl FnMut() -> Result<Vec<Tensor>> + use<>> {
    let [depth, _, _, width] = work.shape[..] else {
        bail!("{}: expected depth, batch, tokens and width", work.name)
    };
    let store = VarStore::new(7, DType::F32, &Device::Cpu);
    for index in 0..depth {
        Block::new(width, store.builder().pp(format!("blocks.{index}")))?;
    }
    let gradients: Vec<Tensor> =
        store.parameters().iter().map(|(_, var)| var.ones_like()).collect::<Result<_>>()?;
    Ok(move || gradients.iter().map(|gradient| gradient.zeros_like()?.add(gradient)).collect())
}

fn main() -> ExitCode {
    run(|suite: &mut Suite| {
        suite.works("nn/vit4_b32_t50_d192", |work| step(work, Block::forward))?;
        suite.works("nn/vit4_one_thread", |work| step(work, Block::forward))?;
        suite.works("nn/vit4_by_layers", |work| step(work, Block::forward_by_layers))?;
        suite.works("nn/vit4_accumulation", accumulation)?;
        suite.works("nn/deit_ti_b8_t198", |work| step(work, Block::forward))?;
        suite.works("nn/deit_ti_one_thread", |work| step(work, Block::forward))?;
        suite.works("nn/adamw_6m", adamw)?;
        suite.works("nn/batch_norm2d", batch_norm)?;
        suite.works("nn/deformable_attention", deformable)
    })
}
