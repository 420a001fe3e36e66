//! AdamW, one pass per parameter.

use super::device;
use super::optimizer::{At, CHUNK, Optimizer, Value};
use super::{Rule, for_parts};
use candle_core::{Result, Tensor, bail};
use vkd_norm::lanes::vectorized;

/// Settings of [`AdamW`]; the default is PyTorch's and the paper's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment; default 0.9.
    pub beta1: f64,
    /// Decay of the second moment; default 0.999.
    pub beta2: f64,
    /// Added to the root of the second moment; default 1e-8, at least the smallest normal f32.
    pub eps: f64,
    /// Decoupled decay of the parameters that the constructor's `decays` accepts; default 0.05 as in DeiT and V_kD.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.05 }
    }
}

/// AdamW (Loshchilov and Hutter, arXiv:1711.05101): `p -= lr·(wd·p + m̂ / (sqrt(v̂) + eps))`.
///
/// Its state has two buffers, `m` and `v`.
pub type AdamW = Optimizer<AdamWConfig>;

/// Refuses Adam's settings where they are out of range.
pub(super) fn check_adam(op: &str, config: &AdamWConfig) -> Result<()> {
    let AdamWConfig { beta1, beta2, eps, weight_decay } = *config;
    // Negated comparisons: NaN is refused too.
    if !((0. ..1.).contains(&beta1)
        && (0. ..1.).contains(&beta2)
        && eps >= f64::from(f32::MIN_POSITIVE)
        && eps.is_finite()
        && weight_decay >= 0.
        && weight_decay.is_finite())
    {
        bail!(
            "{op}: expected betas in [0, 1), a finite eps of at least {:e} and a finite weight decay of at least 0, got {config:?}",
            f32::MIN_POSITIVE
        )
    }
    Ok(())
}

impl Rule for AdamWConfig {
    const NAME: &'static str = "adamw";

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn check(&self) -> Result<()> {
        check_adam(Self::NAME, self)
    }

    fn slots(&self) -> &'static [&'static str] {
        &["m", "v"]
    }

    fn update_on_device(
        &self,
        at: &At,
        p: &Tensor,
        g: &Tensor,
        slots: &mut [Tensor],
    ) -> Result<Tensor> {
        device::adamw(self, at, p, g, slots)
    }

    fn update_all_on_devices(&self, jobs: &mut [device::Job<'_>]) -> Result<()> {
        device::adamw_all(self, jobs)
    }

    fn update<T: Value>(&self, at: &At, p: &mut [T], g: &[T], slots: &mut [Vec<T>]) {
        let [m, v] = slots else { return };
        let of = <T as candle_core::WithDType>::from_f64;
        let AdamWConfig { beta1, beta2, eps, .. } = *self;
        // PyTorch's order of operations: decay first, bias corrections folded into the step size and the root.
        let keep = of(1. - at.lr * at.weight_decay);
        let step_size = of(at.lr / (1. - beta1.powi(at.step)));
        let root = of((1. - beta2.powi(at.step)).sqrt().recip());
        let (b1, b2, eps, scale) = (of(beta1), of(beta2), of(eps), of(at.scale));
        let (c1, c2) = (T::one() - b1, T::one() - b2);
        let parts = p.chunks_mut(CHUNK).zip(g.chunks(CHUNK));
        let parts = parts.zip(m.chunks_mut(CHUNK)).zip(v.chunks_mut(CHUNK));
        for_parts(g.len(), parts, |(((p, g), m), v)| {
            vectorized(
                #[inline(always)]
                || {
                    for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m.iter_mut()).zip(v.iter_mut())
                    {
                        let g = g * scale;
                        *m = b1 * *m + c1 * g;
                        *v = b2 * *v + c2 * g * g;
                        *p = keep * *p - step_size * *m / (v.sqrt() * root + eps);
                    }
                },
            );
        });
    }
}
