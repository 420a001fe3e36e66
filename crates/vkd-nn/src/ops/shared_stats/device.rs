//! Sums and gradient of tensors that are on a device: from plain tensor ops, in f64. The sums come to the host, since replicas are joined
//! there.

use candle_core::{DType, Device, Result, Tensor};
use vkd_norm::ChannelStats;

/// Gradient and normalised values, `(rows, C)` in f64.
fn normalised(
    grad: &Tensor,
    xs: &Tensor,
    stats: &ChannelStats,
    eps: f64,
) -> Result<(Tensor, Tensor)> {
    let channels = stats.channels();
    let rows = xs.elem_count() / channels.max(1);
    let flat = |t: &Tensor| t.detach().to_dtype(DType::F64)?.reshape((rows, channels));
    let here = |t: &Tensor| t.to_device(xs.device());
    let inverse = (here(stats.biased())? + eps)?.sqrt()?.recip()?;
    let apart = flat(xs)?.broadcast_sub(&here(stats.mean())?)?;
    Ok((flat(grad)?, apart.broadcast_mul(&inverse)?))
}

/// As [`shared_sums`](super::shared_sums).
pub(super) fn sums(grad: &Tensor, xs: &Tensor, stats: &ChannelStats, eps: f64) -> Result<Vec<f64>> {
    let (g, h) = normalised(grad, xs, stats, eps)?;
    let both = Tensor::cat(&[g.sum(0)?, (g * h)?.sum(0)?], 0)?;
    both.to_device(&Device::Cpu)?.to_vec1()
}

/// As [`shared_gradient`](super::shared_gradient); there are two sums a channel.
pub(super) fn gradient(
    grad: &Tensor,
    xs: &Tensor,
    stats: &ChannelStats,
    eps: f64,
    sums: &[f64],
) -> Result<Tensor> {
    let (g, h) = normalised(grad, xs, stats, eps)?;
    let channels = stats.channels();
    let means: Vec<f64> = sums.iter().map(|sum| sum / stats.rows() as f64).collect();
    let means = Tensor::from_vec(means, (2, channels), xs.device())?;
    let along = h.broadcast_mul(&means.get(1)?)?;
    let dxs = (g.broadcast_sub(&means.get(0)?)? - along)?;
    dxs.to_dtype(xs.dtype())?.reshape(xs.shape())
}

#[cfg(test)]
mod tests {
    use super::super::{shared_gradient, shared_sums};
    use super::*;
    use vkd_testkit::{Tolerance, assert_close, normal};

    #[test]
    fn the_device_path_is_the_cpu_s() -> Result<()> {
        let eps = 1e-3;
        for (dtype, tolerance) in [(DType::F64, 1e-13), (DType::F32, 1e-5)] {
            // At an offset, with rows in two dimensions.
            let xs = (normal(&[4, 5, 3], dtype, 1)?.narrow(0, 1, 3)? + 0.5)?;
            let grad = normal(&[4, 5, 3], dtype, 2)?.narrow(0, 1, 3)?;
            let stats = ChannelStats::new(40, vec![0.3, 0.5, -0.2], vec![0.9, 1.1, 2.])?;
            let want = shared_sums(&grad, &xs, &stats, eps)?;
            let got = sums(&grad, &xs, &stats, eps)?;
            let tensor = |v: &[f64]| Tensor::from_slice(v, v.len(), &Device::Cpu);
            let tolerance = Tolerance::relative(tolerance);
            assert_close("sums", &tensor(&got)?, &tensor(&want)?, tolerance)?;
            let other = gradient(&grad, &xs, &stats, eps, &want)?;
            assert_eq!(other.dtype(), dtype);
            let want = shared_gradient(&grad, &xs, &stats, eps, &want)?;
            assert_close("gradient", &other, &want, tolerance)?;
        }
        Ok(())
    }
}
