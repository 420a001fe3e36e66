//! Layers, optimisers and schedules for candle whose gradients are tested.
//!
//! Several layers of candle-nn cut the tape silently or return a wrong gradient. Everything here is built from ops
//! that are checked against finite differences, and every random initial value comes from a seed.
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
mod schedule;
mod var_store;

pub use adamw::{AdamW, AdamWConfig};
pub use attention::{SelfAttention, self_attention};
pub use conv::{Conv2d, ConvTranspose2d, conv_transpose2d, conv2d};
pub use drop_path::drop_path;
pub use layer_norm::{LayerNorm, layer_norm};
pub use linear::{Linear, linear};
pub use ops::{Conv2dConfig, ConvTranspose2dConfig, Pool2dConfig};
pub use ops::{add_bias, gelu, multi_head_attention, relu};
pub use ops::{avg_pool2d, global_avg_pool2d, max_pool2d, pixel_shuffle, pixel_unshuffle};
pub use ops::{upsample_bilinear2d, upsample_nearest2d};
pub use schedule::cosine;
pub use var_store::{VarStore, is_buffer};
pub use vkd_norm::{Context, stream};
