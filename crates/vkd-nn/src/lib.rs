//! Layers, optimisers and schedules for candle whose gradients are tested.
//!
//! Several layers of candle-nn cut the tape silently or return a wrong gradient. Everything here is built from ops
//! that are checked against finite differences, and every random initial value comes from a seed.
//!
//! candle's tape adds up gradients between ops in passes of its own, so the ops are large: an affine map ends in its
//! activation, and [`residual_attention`] and [`residual_mlp`] are a whole pre-norm sub-layer each.
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

mod adamw;
mod attention;
mod conv;
mod drop_path;
mod layer_norm;
mod linear;
pub mod ops;
mod residual;
mod schedule;
mod var_store;

pub use adamw::{AdamW, AdamWConfig};
pub use attention::{SelfAttention, self_attention};
pub use conv::{Conv2d, Conv2dConfig, conv2d};
pub use drop_path::{drop_path, drop_path_scales};
pub use layer_norm::{LayerNorm, layer_norm};
pub use linear::{Linear, linear, linear_no_bias};
pub use ops::{
    Activation, add_bias, cross_attention, gelu, gelu_tanh, multi_head_attention, relu, silu,
    unfold2d,
};
pub use residual::{residual_attention, residual_mlp};
pub use schedule::cosine;
pub use var_store::{VarStore, is_buffer};
pub use vkd_norm::{Context, stream};
