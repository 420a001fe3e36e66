//! Focal loss.

use crate::Reduction;
use crate::checks::{finite, widen, widen_pair};
use crate::ops::{Pointwise, pointwise};
use candle_core::{DType, Result, Tensor, bail};
use vkd_norm::flags;

const OP: &str = "sigmoid_focal";

/// The two numbers of [`sigmoid_focal`]; the defaults are RetinaNet's, which DETR's descendants and FCOS kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FocalConfig {
    /// Share of a target of 1, against `1 − alpha` of a target of 0; 0.25.
    pub alpha: f64,
    /// How fast an entry that is right already loses weight; 2. With 0 it keeps all of it.
    pub gamma: f64,
}

impl Default for FocalConfig {
    fn default() -> Self {
        Self { alpha: 0.25, gamma: 2. }
    }
}

/// Focal loss of each logit with a target of 0 or 1, for detectors whose background outnumbers everything else.
///
/// With `p = σ(x)` and a target `t`, each entry counts
/// ```text
/// a · (1 − q)^gamma · ce,   q = p t + (1 − p)(1 − t),   a = alpha t + (1 − alpha)(1 − t)
/// ```
/// where `ce` is [`bce_with_logits`](crate::bce_with_logits). Detectors divide the sum by the number of objects.
///
/// # Shapes
/// - `logits`: `(.., K)`, at least one entry; f32, f64, or a half type, which is computed in f32
/// - `targets`: either of the shape and dtype of `logits`, each in [0, 1], or class indices, u32 `(..)`, where `K` is the
///   background: a row of zeros
/// - output: rank 0, or the shape of `logits` with [`Reduction::None`]
///
/// # Gradient
/// Flows to `logits`. `targets` must carry no gradient. One pass each way.
///
/// # Numerics
/// Entries in f64, finite for every finite logit, from one exponential of `−|x|`.
///
/// # Errors
/// `alpha` outside [0, 1], `gamma` negative or not finite, different shapes or dtypes, no entries, a target outside [0, 1] (with
/// its entry) or a class above K (with its row), which on a device set a bit of [`flags`], tracked targets (detach them), another
/// dtype, or a NaN or infinity in the logits, which is named (where the loss is one number on the CPU).
///
/// # References
/// Lin et al., arXiv:1708.02002, equation 5.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::{FocalConfig, Reduction, sigmoid_focal};
/// let logits = Tensor::new(&[[0f64, 0.], [0., 0.]], &Device::Cpu)?;
/// // The first box is of class 1, the second is background.
/// let targets = Tensor::new(&[1u32, 2], &Device::Cpu)?;
/// let loss = sigmoid_focal(&logits, &targets, FocalConfig::default(), Reduction::Sum)?;
/// let want = (0.25 + 3. * 0.75) * 0.25 * 2f64.ln();
/// assert!((loss.to_scalar::<f64>()? - want).abs() < 1e-15);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn sigmoid_focal(
    logits: &Tensor,
    targets: &Tensor,
    config: FocalConfig,
    reduction: Reduction,
) -> Result<Tensor> {
    let FocalConfig { alpha, gamma } = config;
    if !(0. ..=1.).contains(&alpha) {
        bail!("{OP}: expected alpha in [0, 1], got {alpha}")
    }
    if !(gamma >= 0. && gamma.is_finite()) {
        bail!("{OP}: expected a finite gamma of at least 0, got {gamma}")
    }
    let (logits, targets) = match targets.dtype() {
        DType::U32 => {
            let logits = widen(logits)?;
            let targets = one_hot(&logits, targets)?;
            (logits, targets)
        }
        _ => {
            flags::expect(OP, "targets in [0, 1]", targets, [0., 1.])?;
            widen_pair(logits, targets)?
        }
    };
    let loss = pointwise(Pointwise::Focal { alpha, gamma }, &logits, &targets, reduction)?;
    finite(OP, loss, &[("logits", &logits)])
}

/// Class indices `(..)` as rows of the shape of `logits`; the class K is a row of zeros.
fn one_hot(logits: &Tensor, classes: &Tensor) -> Result<Tensor> {
    let (rows, k) = match logits.dims() {
        [rows @ .., k] if rows == classes.dims() => (classes.elem_count(), *k),
        dims => bail!(
            "{OP}: expected class indices of the shape of the logits {dims:?} without the last dimension, got {:?}",
            classes.dims()
        ),
    };
    if !logits.device().is_cpu() {
        flags::expect(OP, "classes of at most K, the background", classes, [0., k as f64])?;
        return one_hot_on_device(logits, classes);
    }
    let mut values = vec![0f32; rows * k];
    for (row, class) in classes.flatten_all()?.to_vec1::<u32>()?.into_iter().enumerate() {
        match class as usize {
            class if class < k => values[row * k + class] = 1.,
            class if class == k => {}
            class => bail!("{OP}: expected class <= {k}, got class {class} in row {row}"),
        }
    }
    Tensor::from_vec(values, logits.shape(), logits.device())?.to_dtype(logits.dtype())
}

/// [`one_hot`] of any classes, those above K with a row of zeros too, without a look at them.
fn one_hot_on_device(logits: &Tensor, classes: &Tensor) -> Result<Tensor> {
    if logits.elem_count() == 0 {
        return logits.zeros_like();
    }
    let k = logits.dims().last().map_or(0, |k| *k as u32);
    let columns = Tensor::arange(0, k, logits.device())?.unsqueeze(0)?;
    let rows = classes.flatten_all()?.unsqueeze(1)?.broadcast_eq(&columns)?;
    rows.to_dtype(logits.dtype())?.reshape(logits.shape())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use vkd_testkit::{Tolerance, assert_close, normal};

    #[test]
    fn the_device_path_makes_the_cpu_s_rows() -> Result<()> {
        for dtype in [DType::F32, DType::F64] {
            let classes = Tensor::new(&[[0u32, 3, 2], [1, 0, 3]], &Device::Cpu)?;
            // Of a transposed tensor too, whose rows are elsewhere in memory.
            for classes in [classes.clone(), classes.t()?] {
                let dims = [classes.dims(), &[3]].concat();
                let logits = normal(&dims, dtype, 1)?;
                let want = one_hot(&logits, &classes)?;
                let got = one_hot_on_device(&logits, &classes)?;
                assert_eq!(got.dtype(), dtype);
                assert_close("one_hot", &got, &want, Tolerance::EXACT)?;
            }
        }
        let logits = normal(&[1, 3], DType::F32, 1)?;
        let above = one_hot_on_device(&logits, &Tensor::new(&[4u32], &Device::Cpu)?)?;
        assert_eq!(above.to_vec2::<f32>()?, [[0.; 3]]);
        Ok(())
    }
}
