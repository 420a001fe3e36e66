//! Whitening from plain tensor ops: slow, differentiable, and sharing no code with what it checks.

use crate::{Shrinkage, WhitenConfig, WhitenMethod};
use candle_core::{DType, Result, Tensor, bail};

/// Twin of [`super::whiten`] where the shrunk covariance is of full rank; not PCA.
pub(crate) fn whiten(xs: &Tensor, config: WhitenConfig) -> Result<Tensor> {
    let dtype = xs.dtype();
    let xs = &xs.to_dtype(DType::F64)?;
    let (rows, channels) = xs.dims2()?;
    let centred = xs.broadcast_sub(&xs.mean_keepdim(0)?)?;
    let s = (centred.t()?.matmul(&centred)? / (rows - 1) as f64)?;
    let s = shrunk(&s, &centred, config.shrinkage)?;
    let ys = match config.method {
        WhitenMethod::Cholesky => cholesky(centred, s),
        // Each iteration halves what is left of the exponent: 60 suffice for a condition number of 1e9.
        WhitenMethod::Zca => newton_schulz(&centred, &s, 60),
        WhitenMethod::NewtonSchulz { iterations } => newton_schulz(&centred, &s, iterations),
        WhitenMethod::Pca => bail!("no twin for {channels} components"),
    };
    ys?.to_dtype(dtype)
}

fn shrunk(s: &Tensor, centred: &Tensor, shrinkage: Shrinkage) -> Result<Tensor> {
    let (rows, channels) = centred.dims2()?;
    let (n, d) = (rows as f64, channels as f64);
    let eye = Tensor::eye(channels, DType::F64, s.device())?;
    let t = (s * &eye)?.sum_all()?;
    let q = s.sqr()?.sum_all()?;
    let spread = (&q - (t.sqr()? / d)?)?;
    let rho = match shrinkage {
        Shrinkage::Fixed(rho) | Shrinkage::Absolute(rho) => Tensor::new(rho, s.device())?,
        Shrinkage::Oas => {
            let above = ((&q * (1. - 2. / d))? + t.sqr()?)?;
            (above / (spread * (n + 1. - 2. / d))?)?
        }
        Shrinkage::LedoitWolf => {
            // Of the biased covariance.
            let k = (n - 1.) / n;
            let quartic = centred.sqr()?.sum(1)?.sqr()?.sum_all()?;
            let above = ((quartic / n)? - (q * (k * k))?)?;
            (above / (spread * (n * k * k))?)?
        }
    };
    let rho = match rho.to_scalar::<f64>()? {
        r if (0. ..1.).contains(&r) => rho,
        r => Tensor::new(r.clamp(0., 1.), s.device())?,
    };
    let target = match shrinkage {
        Shrinkage::Absolute(_) => eye,
        _ => eye.broadcast_mul(&(t / d)?)?,
    };
    s.broadcast_mul(&rho.affine(-1., 1.)?)? + target.broadcast_mul(&rho)?
}

/// Elimination channel by channel.
fn cholesky(mut left: Tensor, mut s: Tensor) -> Result<Tensor> {
    let channels = s.dim(0)?;
    let mut ys = Vec::with_capacity(channels);
    for j in 0..channels {
        let rest = channels - j - 1;
        let root = s.narrow(0, 0, 1)?.narrow(1, 0, 1)?.sqrt()?;
        let y = left.narrow(1, 0, 1)?.broadcast_div(&root)?;
        if rest > 0 {
            let column = s.narrow(0, 1, rest)?.narrow(1, 0, 1)?.broadcast_div(&root)?;
            let row = column.t()?;
            left = (left.narrow(1, 1, rest)? - y.matmul(&row)?)?;
            s = (s.narrow(0, 1, rest)?.narrow(1, 1, rest)? - column.matmul(&row)?)?;
        }
        ys.push(y);
    }
    Tensor::cat(&ys, 1)
}

/// IterNorm's loop, in its coupled form.
fn newton_schulz(centred: &Tensor, s: &Tensor, iterations: usize) -> Result<Tensor> {
    let eye = Tensor::eye(s.dim(0)?, DType::F64, s.device())?;
    let t = (s * &eye)?.sum_all()?;
    let (mut y, mut z) = (s.broadcast_div(&t)?, eye.clone());
    for _ in 0..iterations {
        let step = ((&eye * 1.5)? - (z.matmul(&y)? * 0.5)?)?;
        y = y.matmul(&step)?;
        z = step.matmul(&z)?;
    }
    centred.matmul(&z.t()?)?.broadcast_div(&t.sqrt()?)
}
