//! The op: what it keeps for its gradient, and how it comes to it.

use super::cpu::{Centred, mean};
use super::fit::Fit;
use super::single::triangular_gradient;
use crate::dense::{Real, dense, with_slices};
use crate::{Replicas, Shrinkage, WhitenConfig};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use faer::Mat;
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
    /// Those whose rows count beside the input's.
    replicas: Option<Replicas>,
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
                    Some(found) if self.replicas.is_none() => {
                        single(self.op, found, [xs, ys, &grad])?
                    }
                    _ => None,
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
        Self { op, config, kept: tracked.then(Kept::default), replicas: None }
    }

    /// With the rows of all replicas in the statistics.
    pub(super) fn over(self, replicas: &Replicas) -> Self {
        Self { replicas: Some(replicas.clone()), ..self }
    }

    /// Sums over the replicas, where there are any.
    fn summed(&self, values: &mut [f64]) -> Result<()> {
        match &self.replicas {
            Some(replicas) => replicas.sum_numbers(values),
            None => Ok(()),
        }
    }

    /// As [`summed`](Self::summed), of a matrix.
    fn summed_matrix(&self, matrix: &mut Mat<f64>) -> Result<()> {
        if self.replicas.is_none() {
            return Ok(());
        }
        let (rows, columns) = (matrix.nrows(), matrix.ncols());
        let at = |i: usize| (i / columns, i % columns);
        let mut values: Vec<f64> = (0..rows * columns).map(|i| matrix[at(i)]).collect();
        self.summed(&mut values)?;
        (0..).zip(values).for_each(|(i, value)| matrix[at(i)] = value);
        Ok(())
    }

    /// The rows less the mean of all, and how many there are in all.
    fn centred<T: Real>(&self, values: &[T], channels: usize) -> Result<(Centred, usize)> {
        let (own, rows) = (Centred::new(values, channels), values.len() / channels);
        if self.replicas.is_none() {
            return Ok((own, rows));
        }
        let mut sums: Vec<f64> = own.mean.iter().map(|m| rows as f64 * m).collect();
        sums.push(rows as f64);
        self.summed(&mut sums)?;
        let all = sums.pop().unwrap_or(rows as f64);
        let mean: Vec<f64> = sums.iter().map(|sum| sum / all).collect();
        Ok((Centred::about(values, &mean), all as usize))
    }

    fn fit(&self, xs: &Centred, rows: usize) -> Result<Fit> {
        let mut scatter = xs.scatter_matrix();
        self.summed_matrix(&mut scatter)?;
        let mut quartic = [0.];
        if self.config.shrinkage == Shrinkage::LedoitWolf {
            quartic = [xs.higher().last().copied().unwrap_or(0.)];
            self.summed(&mut quartic)?;
        }
        Fit::of_sums(self.op, scatter, quartic[0], rows, self.config)
    }

    fn forward<T: Real>(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
        channels: usize,
    ) -> Result<CpuStorage> {
        let values = dense::<T>(self.op, storage, layout)?;
        let (xs, rows) = self.centred(values, channels)?;
        let fit = self.fit(&xs, rows)?;
        let ys = xs.through(fit.w(), fit.shape());
        if let Some(kept) = &self.kept
            && let Ok(mut kept) = kept.lock()
        {
            *kept = Some(Found { fingerprint: fingerprint(values), mean: xs.mean, fit });
        }
        Ok(T::to_cpu_storage_owned(ys))
    }

    fn backward<T: Real>(&self, xs: &Tensor, grad: &Tensor, kept: Option<Found>) -> Result<Tensor> {
        let channels = xs.dims2()?.1;
        let dxs = with_slices::<T, _, 2>(self.op, [xs, grad], |[values, grad]| {
            let (xs, rows) = self.centred(values, channels)?;
            let fit = match kept.filter(|found| found.fingerprint == fingerprint(values)) {
                Some(found) => found.fit,
                None => self.fit(&xs, rows)?,
            };
            // The mean passes nothing on of what all rows have in common.
            let mut common = mean(grad, channels, &vec![0.; channels]);
            if self.replicas.is_some() {
                let own = (grad.len() / channels) as f64;
                common.iter_mut().for_each(|g| *g *= own / rows as f64);
                self.summed(&mut common)?;
            }
            let grad = Centred::about(grad, &common);
            let mut of_w = grad.beside(&xs, fit.shape());
            self.summed_matrix(&mut of_w)?;
            let (mut covariance, quartic) = fit.adjoint(&of_w)?;
            covariance *= faer::Scale(2. / (rows.max(2) - 1) as f64);
            let cubic = match quartic != 0. {
                false => None,
                true => {
                    let mut mean = xs.higher();
                    self.summed(&mut mean)?;
                    mean.iter_mut().for_each(|c| *c /= rows as f64);
                    Some((4. * quartic, mean))
                }
            };
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
