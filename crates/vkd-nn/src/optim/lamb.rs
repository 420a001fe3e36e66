//! LAMB: Adam's direction, scaled by each parameter's own size.

use super::adamw::check_adam;
use super::device;
use super::optimizer::{At, CHUNK, Optimizer, Value, block_sums, lane_sums, squares};
use super::{AdamWConfig, Rule, for_parts};
use candle_core::{Result, Tensor, WithDType};

/// Settings of [`Lamb`]; the default is the paper's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LambConfig {
    /// Decay of the first moment; default 0.9.
    pub beta1: f64,
    /// Decay of the second moment; default 0.999.
    pub beta2: f64,
    /// Added to the root of the second moment; default 1e-6, at least the smallest normal f32.
    pub eps: f64,
    /// Decay of the parameters that the constructor's `decays` accepts; default 0.01.
    pub weight_decay: f64,
}

impl Default for LambConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-6, weight_decay: 0.01 }
    }
}

/// LAMB (You et al., arXiv:1904.00962, algorithm 2): `r = m̂ / (sqrt(v̂) + eps) + wd·p`, then
/// `p -= lr·(‖p‖ / ‖r‖)·r`.
///
/// The ratio is that of a whole parameter, and one where either norm is zero; the paper's scaling function is the
/// identity. The norms must be known before the first value changes, so an update takes two passes. Its state has two
/// buffers, `m` and `v`.
pub type Lamb = Optimizer<LambConfig>;

impl Rule for LambConfig {
    const NAME: &'static str = "lamb";

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn check(&self) -> Result<()> {
        let Self { beta1, beta2, eps, weight_decay } = *self;
        check_adam(Self::NAME, &AdamWConfig { beta1, beta2, eps, weight_decay })
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
        device::lamb(self, at, p, g, slots)
    }

    fn update<T: Value>(&self, at: &At, p: &mut [T], g: &[T], slots: &mut [Vec<T>]) {
        let [m, v] = slots else { return };
        let of = <T as WithDType>::from_f64;
        let (b1, b2, eps, scale) = (of(self.beta1), of(self.beta2), of(self.eps), of(at.scale));
        let (c1, c2) = (T::one() - b1, T::one() - b2);
        let of_m = of((1. - self.beta1.powi(at.step)).recip());
        let of_v = of((1. - self.beta2.powi(at.step)).recip());
        let decay = of(at.weight_decay);
        let direction = move |p: T, m: T, v: T| (m * of_m) / ((v * of_v).sqrt() + eps) + decay * p;

        let parts = g.chunks(CHUNK).zip(p.chunks(CHUNK));
        let parts = parts.zip(m.chunks_mut(CHUNK)).zip(v.chunks_mut(CHUNK));
        let of_r = block_sums(g.len(), parts, |(((g, p), m), v)| {
            let entries = g.iter().zip(p).zip(m.iter_mut()).zip(v.iter_mut());
            lane_sums(entries.map(|(((&g, &p), m), v)| {
                let g = g * scale;
                *m = b1 * *m + c1 * g;
                *v = b2 * *v + c2 * g * g;
                WithDType::to_f64(direction(p, *m, *v)).powi(2)
            }))
        });
        let of_p = squares(p);
        let trust = if of_p > 0. && of_r > 0. { (of_p / of_r).sqrt() } else { 1. };
        let lr = of(at.lr * trust);
        let parts = p.chunks_mut(CHUNK).zip(m.chunks(CHUNK)).zip(v.chunks(CHUNK));
        for_parts(g.len(), parts, |((p, m), v)| {
            for ((p, &m), &v) in p.iter_mut().zip(m).zip(v) {
                *p -= lr * direction(*p, m, v);
            }
        });
    }
}
