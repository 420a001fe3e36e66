//! Weights divided by their largest singular value.

use crate::ops::native_dtype;
use candle_core::{DType, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use vkd_norm::flags;

/// Least norm that a vector of the power iteration is divided by.
const LEAST: f64 = 1e-8;

/// Divides a weight by an estimate of its largest singular value, by one step of power iteration a forward pass (Miyato et al.,
/// arXiv:1802.05957), as BigGAN's code does it.
///
/// The weight counts as a matrix W of its first dimension by all others. With the buffer `u0` as the row u:
/// `v = n(u W)`, `u' = n(v Wᵀ)`, `σ = v Wᵀ u'ᵀ`, and the result is `W / σ`; `n` divides by the norm, at least 1e-8. In training `u0`
/// becomes `u'`, and `sv0` keeps σ for whoever wants to look; else the step is made and nothing is kept. So a checkpoint that holds the
/// buffers goes on to the bit.
///
/// # Gradient
/// Flows through σ; `u` and `v` are constants.
///
/// # Example
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// use vkd_nn::{VarStore, spectral_norm};
/// let store = VarStore::new(0, DType::F64, &Device::Cpu);
/// let norm = spectral_norm(2, store.builder())?;
/// let weight = Tensor::new(&[[3f64, 0.], [0., 1.]], &Device::Cpu)?;
/// let mut divided = weight.clone();
/// for _ in 0..30 {
///     divided = norm.forward(&weight, true)?;
/// }
/// let largest = divided.get(0)?.get(0)?.to_scalar::<f64>()?;
/// assert!((largest - 1.).abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct SpectralNorm {
    name: String,
    u: Tensor,
    sigma: Tensor,
}

/// Creates a [`SpectralNorm`] for weights of `rows` rows, with the buffers `u0` `(1, rows)`, standard normal, and `sv0` `(1)`, one; both
/// are f32 where the variables are a half type.
///
/// # Errors
/// No rows.
pub fn spectral_norm(rows: usize, vb: VarBuilder) -> Result<SpectralNorm> {
    if rows == 0 {
        bail!("spectral_norm {}: expected at least one row, got 0", vb.prefix())
    }
    let dtype = native_dtype(vb.dtype());
    let random = Init::Randn { mean: 0., stdev: 1. };
    Ok(SpectralNorm {
        name: vb.prefix(),
        // A builder of loaded tensors may hand out tracked ones; the iteration's state is constant.
        u: vb.get_with_hints_dtype((1, rows), "u0", random, dtype)?.detach(),
        sigma: vb.get_with_hints_dtype(1, "sv0", Init::Const(1.), dtype)?.detach(),
    })
}

impl SpectralNorm {
    /// `weight / σ`, of the same shape and dtype; with `update` the step of the power iteration is kept.
    ///
    /// # Errors
    /// Another number of rows, or with `update` a weight that is zero or has a value that is not finite: nothing is kept
    /// then. On a device, where nobody waits to hear of it, such a weight raises a [flag](vkd_norm::flags).
    pub fn forward(&self, weight: &Tensor, update: bool) -> Result<Tensor> {
        let rows = self.u.dim(1)?;
        if weight.rank() < 2 || weight.dim(0)? != rows {
            bail!(
                "spectral_norm {}: expected a weight ({rows}, ..), got {:?}",
                self.name,
                weight.dims()
            )
        }
        let matrix = weight.to_dtype(self.u.dtype())?.reshape((rows, ()))?;
        let constant = matrix.detach();
        // A copy: `u` is set below, and the tape must keep what this pass used.
        let u = self.u.copy()?;
        let v = normalised(&u.matmul(&constant)?)?;
        let next = normalised(&v.matmul(&constant.t()?)?)?;
        let sigma = (matrix.matmul(&v.t()?)? * next.t()?)?.sum_all()?;
        if update {
            let found = sigma.detach().reshape(1)?;
            // σ is a norm; of a weight of zeros it is zero, and would leave nothing to iterate on.
            if found.device().is_cpu() {
                let value = found.to_dtype(DType::F64)?.to_vec1::<f64>()?;
                if !value.iter().all(|s| s.is_finite() && *s > 0.) {
                    bail!(
                        "spectral_norm {}: expected a finite weight that is not zero, got σ {value:?}",
                        self.name
                    )
                }
            } else {
                let what = "a finite weight that is not zero";
                flags::expect("spectral_norm", what, &found, [f64::MIN_POSITIVE, f64::MAX])?;
            }
            self.u.slice_set(&next, 0, 0)?;
            self.sigma.slice_set(&found, 0, 0)?;
        }
        matrix.broadcast_div(&sigma)?.reshape(weight.shape())?.to_dtype(weight.dtype())
    }
}

/// A row divided by its norm.
fn normalised(row: &Tensor) -> Result<Tensor> {
    let norm = row.sqr()?.sum_all()?.sqrt()?.maximum(LEAST)?;
    row.broadcast_div(&norm)?.contiguous()
}
