//! Layers, optimisers and schedules for candle whose gradients are tested.
//!
//! Layers: convolution and linear, attention, layer, batch, group, RMS and spectral norm, dropout, stochastic depth, embedding. Around
//! them: a [`VarStore`] with seeded [`init`]ial values, [`AdamW`], [`Sgd`] and [`Lamb`] with parameter groups, clipping, gradient
//! accumulation, moving averages ([`Ema`]) and learning-rate schedules.
//!
//! Several layers of candle-nn cut the tape silently or return a wrong gradient. Everything here is built from ops
//! that are checked against finite differences, and every random initial value comes from a seed.
//!
//! candle's tape adds up gradients between ops in passes of its own, so the ops are large: an affine map ends in its
//! activation, and [`residual_attention`] and [`residual_mlp`] are a whole pre-norm sub-layer each.
//!
//! Everything takes f32 and f64, and bf16 and f16 through f32 (see [`ops`]); a model in a half type has optimiser state, running
//! statistics and averages in f32. Replicas of a model share batch statistics by [`BatchNorm2d::forward_synchronised`].
//!
//! Invariant: a value depends on the run's seed and on its variable's name, never on the order in which layers
//! are built, on a hash map's order or on the number of threads.
//!
//! ```
//! use candle_core::{DType, Device, Module, Result, Tensor};
//! use vkd_nn::{AdamW, AdamWConfig, VarStore, layer_norm, linear};
//!
//! # fn main() -> Result<()> {
//! let store = VarStore::new(7, DType::F32, &Device::Cpu);
//! let vb = store.builder();
//! let (norm, head) = (layer_norm(4, 1e-6, vb.pp("norm"))?, linear(4, 2, vb.pp("head"))?);
//! let xs = Tensor::arange(0f32, 12., &Device::Cpu)?.reshape((3, 4))?;
//! let loss = head.forward(&norm.forward(&xs)?)?.sqr()?.mean_all()?;
//! let mut adamw = AdamW::new(store.parameters(), AdamWConfig::default(), |_, var| var.rank() > 1)?;
//! adamw.step(&loss.backward()?, 1e-3)?;
//! # Ok(())
//! # }
//! ```

mod attention;
mod conv;
mod drop;
mod embedding;
pub mod init;
mod layer_norm;
mod linear;
mod norm;
pub mod ops;
mod optim;
mod residual;
mod spectral_norm;
mod var_store;

pub use attention::{SelfAttention, self_attention};
pub use conv::{
    Conv2d, ConvTranspose2d, conv_transpose2d, conv2d, conv2d_no_bias, conv2d_rect_no_bias,
};
pub use drop::{drop_path, drop_path_scales, dropout};
pub use embedding::{Embedding, embedding};
pub use layer_norm::{LayerNorm, layer_norm};
pub use linear::{Linear, linear, linear_no_bias};
pub use norm::{
    BatchNorm2d, BatchNormConfig, BatchStatistics, ConditionalBatchNorm2d, GroupNorm, RmsNorm,
    batch_norm2d, conditional_batch_norm2d, group_norm, rms_norm,
};
pub use ops::{Activation, gelu, gelu_tanh, relu, relu6, silu};
pub use ops::{Conv2dConfig, ConvTranspose2dConfig, Pool2dConfig, gather_rows};
pub use ops::{avg_pool2d, global_avg_pool2d, max_pool2d, pixel_shuffle, pixel_unshuffle};
pub use ops::{cross_attention, deformable_attention, multi_head_attention};
pub use ops::{upsample_bilinear2d, upsample_nearest2d};
pub use optim::schedule::{cosine, linear_decay, step_decay};
pub use optim::{
    AdamW, AdamWConfig, Ema, GradAccumulator, Group, Lamb, LambConfig, Optimizer, Rule, Sgd,
    SgdConfig, global_norm,
};
pub use residual::{residual_attention, residual_mlp};
pub use spectral_norm::{SpectralNorm, spectral_norm};
pub use var_store::{VarStore, is_buffer};
pub use vkd_norm::{
    ChannelStats, Context, Replicas, SumOverReplicas, log_softmax, softmax, stream,
};
