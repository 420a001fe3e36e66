//! Free parameters to matrices with orthonormal columns, for [candle](candle_core).
//!
//! A layer whose weight must keep lengths and angles can't be trained by moving the weight itself: one
//! optimiser step leaves the set of orthonormal matrices. Here the optimiser moves a free `n x k` tensor instead, and
//! the weight is a smooth function of it that is orthonormal for *every* value. There is no constraint left to break:
//! any optimiser, any learning rate and weight decay are safe.
//!
//! ```
//! use candle_core::{DType, Device, Module, Tensor};
//! use candle_nn::{Optimizer, SGD, VarBuilder, VarMap};
//! use vkd_ortho::{OrthogonalConfig, OrthogonalMap, orthogonal};
//!
//! let store = VarMap::new();
//! let vb = VarBuilder::from_varmap(&store, DType::F32, &Device::Cpu);
//! let config = OrthogonalConfig::new(OrthogonalMap::Cayley, 7);
//! let layer = orthogonal(3, 8, config, vb.pp("embed"))?;
//!
//! let xs = Tensor::new(&[[3f32, 0., 4.]], &Device::Cpu)?;
//! let length = layer.forward(&xs)?.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt();
//! assert!((length - 5.).abs() < 1e-5, "lengths are kept");
//!
//! // Train on whatever you like: here, the layer learns to point at a target.
//! let mut sgd = SGD::new(store.all_vars(), 0.5)?;
//! let target = Tensor::new(&[[0f32, 0., 0., 0., 0., 0., 0., 5.]], &Device::Cpu)?;
//! for _ in 0..50 {
//!     sgd.backward_step(&(layer.forward(&xs)? - &target)?.sqr()?.mean_all()?)?;
//! }
//! let error = (layer.forward(&xs)? - &target)?.sqr()?.mean_all()?.to_scalar::<f32>()?;
//! assert!(error < 0.1);
//! assert!(layer.residual()? <= 1e-6, "still orthonormal");
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! # Which map
//!
//! [`OrthogonalMap`] lists the three maps. All are also free functions on tensors: [`householder_product`], [`cayley`],
//! [`matrix_exp`]. The derivations are in `docs/math/stiefel.md` of the repository.
//!
//! | map | reaches | forward cost | remarks |
//! | --- | --- | --- | --- |
//! | Householder | every frame with `n > k`, up to a null set | `O(n k^2)` | cheapest; PyTorch's default for rectangular weights |
//! | Cayley | every frame whose top block has no eigenvalue -1 | `O(n k^2)` | one `k x k` inverse in the usual case |
//! | matrix exponential | every frame with `n > k`; one component of `n = k` | `O(n k^2)` and one `2k x 2k` eigenproblem | the paper's map |
//!
//! # Without distillation
//!
//! [`Stiefel`] is the bare parameter for recurrent cells, attention and flows; its page has examples. [`orthogonal_linear`] is a
//! layer with a bias. [`polar`], [`Stiefel::keep`], [`Stiefel::nearest`] and [`Stiefel::assign`] start from weights that exist
//! already; [`Parametrization::right_inverse`] does so on plain tensors.
//!
//! # What holds throughout
//!
//! - No square matrix larger than `2k` is built for an `n x k` weight.
//! - Only the part of a parameter strictly below the diagonal is read; the gradient is exactly zero elsewhere.
//! - The residual does not grow with the size or the scale: `k x k` cores are in f64, the large products of an f32 tensor in
//!   f32 (but for one Gram matrix of the exponential), and every forward pass measures its own result. Where that misses the law (1e-6 in f32, 1e-13 in f64), the
//!   map is computed again in a form that holds it. bf16 and f16 are computed in f32 and rounded once.
//! - A parameter that is not finite is an error that names its place, never a poisoned weight.
//! - Backward passes are analytic; a factor is kept for the first one and freed by it; second derivatives are out of scope, because
//!   candle detaches the gradients that it hands to custom ops.
//! - Kernels are for the CPU and, with the feature `cuda`, for NVIDIA's devices, where nothing is copied to the host for them and so nothing is measured; elsewhere the maps are made of products of matrices. Equal inputs give equal bits from run to run on one machine; across processors results agree to rounding.
//!
//! # References
//!
//! - Miles, Elezi, Deng, *VkD: Improving Knowledge Distillation using Orthogonal Projections*, CVPR 2024, arXiv:2403.06213.
//! - Lezcano-Casado, Martínez-Rubio, *Cheap Orthogonal Constraints in Neural Networks*, ICML 2019, arXiv:1901.08428.
//! - Golub, Van Loan, *Matrix Computations*, 4th ed., section 5.1.

mod base;
mod frame;
mod inverse;
mod linalg;
mod logarithm;
mod map;
mod ops;
mod parametrization;
mod polar;
mod projector;
mod skew;
mod stiefel;
mod torch;

pub use frame::{Init, OrthogonalConfig, Stiefel};
pub use map::OrthogonalMap;
pub use ops::{cayley, householder_product, matrix_exp, reference};
pub use parametrization::Parametrization;
pub use polar::polar;
pub use projector::{BuiltProjector, OrthogonalProjector, orthogonal, orthogonal_linear};
pub use stiefel::{sample_stiefel, stiefel_residual, stiefel_residual_tensor};
pub use torch::{TorchFault, TorchWeight, torch_default_map, torch_weight};
