//! The op: what it keeps for its gradient, and how it comes to it.

use super::cpu::{Centred, mean};
use super::fit::Fit;
use super::single::triangular_gradient;
use crate::WhitenConfig;
use crate::dense::{Real, dense, with_slices};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use std::sync::{Arc, Mutex};

/// What one forward pass found. Freed by the backward pass; a second one computes it again.
struct Found {
    /// Of the input: it may be overwritten before the backward pass reads it.
    fingerprint: u64,
    mean: Vec<f64>,
    fit: Fit,
}

type Kept = Arc<Mutex<Option<Found>>>;

/// The op on the tape.
pub(super) struct Whiten {
    op: &'static str,
    config: WhitenConfig,
    /// Absent where no backward pass can follow.
    kept: Option<Kept>,
}

impl CustomOp1 for Whiten {
    fn name(&self) -> &'static str {
        self.op
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let channels = layout.shape().dims2()?.1;
        let ys = match storage {
            CpuStorage::F32(_) => self.forward::<f32>(storage, layout, channels)?,
            _ => self.forward::<f64>(storage, layout, channels)?,
        };
        Ok((ys, layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        // A lock is only poisoned by a panic, after which nothing is worth keeping.
        let kept = self.kept.as_ref().and_then(|kept| kept.lock().ok()?.take());
        let dxs = match xs.dtype() {
            DType::F32 => {
                let single = match &kept {
                    Some(found) => single(self.op, found, [xs, ys, &grad])?,
                    None => None,
                };
                match single {
                    Some(dxs) => Ok(dxs),
                    None => self.backward::<f32>(xs, &grad, kept),
                }
            }
            _ => self.backward::<f64>(xs, &grad, kept),
        };
        dxs.map(Some)
    }
}

/// The gradient in f32, where that is as good.
fn single(op: &'static str, found: &Found, tensors: [&Tensor; 3]) -> Result<Option<Tensor>> {
    let dxs = with_slices::<f32, _, 3>(op, tensors, |[xs, ys, grad]| {
        if found.fingerprint != fingerprint(xs) {
            return Ok(None);
        }
        Ok(triangular_gradient(&found.fit, xs, ys, grad, &found.mean))
    })?;
    dxs.map(|dxs| Tensor::from_vec(dxs, tensors[0].shape(), tensors[0].device())).transpose()
}

impl Whiten {
    /// `tracked`: a backward pass may follow.
    pub(super) fn new(op: &'static str, config: WhitenConfig, tracked: bool) -> Self {
        Self { op, config, kept: tracked.then(Kept::default) }
    }

    fn forward<T: Real>(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
        channels: usize,
    ) -> Result<CpuStorage> {
        let values = dense::<T>(self.op, storage, layout)?;
        let xs = Centred::new(values, channels);
        let fit = Fit::of_rows(self.op, &xs, values.len() / channels, self.config)?;
        let ys = xs.through(fit.w(), fit.shape());
        if let Some(kept) = &self.kept
            && let Ok(mut kept) = kept.lock()
        {
            *kept = Some(Found { fingerprint: fingerprint(values), mean: xs.mean, fit });
        }
        Ok(T::to_cpu_storage_owned(ys))
    }

    fn backward<T: Real>(&self, xs: &Tensor, grad: &Tensor, kept: Option<Found>) -> Result<Tensor> {
        let (rows, channels) = xs.dims2()?;
        let dxs = with_slices::<T, _, 2>(self.op, [xs, grad], |[values, grad]| {
            let xs = Centred::new(values, channels);
            let fit = match kept.filter(|found| found.fingerprint == fingerprint(values)) {
                Some(found) => found.fit,
                None => Fit::of_rows(self.op, &xs, rows, self.config)?,
            };
            // The mean passes nothing on of what all rows have in common.
            let common = mean(grad, channels, &vec![0.; channels]);
            let grad = Centred::about(grad, &common);
            let (mut covariance, quartic) = fit.adjoint(&grad.beside(&xs, fit.shape()))?;
            covariance *= faer::Scale(2. / (rows.max(2) - 1) as f64);
            let cubic = (quartic != 0.).then(|| {
                let mean = xs.higher().into_iter().map(|c| c / rows as f64).collect();
                (4. * quartic, mean)
            });
            Ok(grad.back::<T>(fit.w(), fit.shape(), &xs, &covariance, cubic))
        })?;
        Tensor::from_vec(dxs, xs.shape(), xs.device())
    }
}

/// Of the bits of a matrix; eight lanes, because one would wait for each product.
fn fingerprint<T: Real>(values: &[T]) -> u64 {
    // Turned, because a product carries upwards only: two signs of one lane would cancel in the highest bit.
    let mix = |hash: u64, x: &T| {
        (hash ^ x.wide().to_bits()).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    };
    let mut lanes = [0x243f_6a88_85a3_08d3u64; 8];
    let rows = values.chunks_exact(8);
    let rest = rows.remainder();
    for row in rows {
        for (lane, x) in lanes.iter_mut().zip(row) {
            *lane = mix(*lane, x);
        }
    }
    let hash = rest.iter().fold(values.len() as u64, mix);
    lanes
        .iter()
        .fold(hash, |hash, lane| (hash.rotate_left(31) ^ lane).wrapping_mul(0x2545_f491_4f6c_dd1d))
}
