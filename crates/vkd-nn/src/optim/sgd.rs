//! Stochastic gradient descent with momentum, one pass per parameter.

use super::device;
use super::optimizer::{At, CHUNK, Optimizer, Value};
use super::{Rule, for_parts};
use candle_core::{Result, Tensor, WithDType, bail};
use vkd_norm::lanes::vectorized;

/// Settings of [`Sgd`]; the default is plain descent, as in PyTorch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SgdConfig {
    /// Share of the last direction that is kept; default 0.
    pub momentum: f64,
    /// Looks ahead by one step of momentum (Nesterov); default off.
    pub nesterov: bool,
    /// Decay of the parameters that the constructor's `decays` accepts, added to the gradient; default 0.
    pub weight_decay: f64,
}

/// Stochastic gradient descent as in PyTorch: `d = momentum·d + g + wd·p`, then `p -= lr·d`, or with Nesterov
/// `p -= lr·(g + wd·p + momentum·d)` (Sutskever et al., ICML 2013).
///
/// Its state is one buffer, `momentum`, and none without momentum.
pub type Sgd = Optimizer<SgdConfig>;

impl Rule for SgdConfig {
    const NAME: &'static str = "sgd";

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn check(&self) -> Result<()> {
        let Self { momentum, nesterov, weight_decay } = *self;
        if !((0. ..1.).contains(&momentum) && weight_decay >= 0. && weight_decay.is_finite()) {
            bail!(
                "sgd: expected a momentum in [0, 1) and a finite weight decay of at least 0, got {self:?}"
            )
        }
        if nesterov && momentum == 0. {
            bail!("sgd: expected a momentum above 0 with nesterov, got 0")
        }
        Ok(())
    }

    fn slots(&self) -> &'static [&'static str] {
        if self.momentum > 0. { &["momentum"] } else { &[] }
    }

    fn update_on_device(
        &self,
        at: &At,
        p: &Tensor,
        g: &Tensor,
        slots: &mut [Tensor],
    ) -> Result<Tensor> {
        device::sgd(self, at, p, g, slots)
    }

    fn update<T: Value>(&self, at: &At, p: &mut [T], g: &[T], slots: &mut [Vec<T>]) {
        let of = <T as WithDType>::from_f64;
        let (lr, decay, scale, mu) =
            (of(at.lr), of(at.weight_decay), of(at.scale), of(self.momentum));
        let nesterov = self.nesterov;
        let parts = p.chunks_mut(CHUNK).zip(g.chunks(CHUNK));
        match slots {
            [momentum] => {
                for_parts(g.len(), parts.zip(momentum.chunks_mut(CHUNK)), |((p, g), momentum)| {
                    vectorized(
                        #[inline(always)]
                        || {
                            for ((p, &g), d) in p.iter_mut().zip(g).zip(momentum.iter_mut()) {
                                let g = g * scale + decay * *p;
                                *d = mu * *d + g;
                                *p -= lr * if nesterov { g + mu * *d } else { *d };
                            }
                        },
                    );
                })
            }
            _ => for_parts(g.len(), parts, |(p, g)| {
                for (p, &g) in p.iter_mut().zip(g) {
                    *p -= lr * (g * scale + decay * *p);
                }
            }),
        }
    }
}
