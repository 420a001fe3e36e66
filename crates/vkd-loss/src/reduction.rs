//! How the entries of a loss become one number.

use candle_core::{Result, Tensor};

/// How the entries of a loss become its value.
///
/// An entry is one element for the losses that compare element by element ([`mse`](crate::mse),
/// [`smooth_l1`](crate::smooth_l1), [`bce_with_logits`](crate::bce_with_logits)), and one row for those that compare
/// rows ([`kl`](crate::kl), the cross entropies, [`cosine`](crate::cosine), [`token_l2`](crate::token_l2)). There a row's
/// own sum, over classes or channels, is part of the loss. With `n` entries in `rows` rows:
///
/// | variant | value |
/// |---|---|
/// | `Mean` | sum / n |
/// | `Sum` | sum |
/// | `BatchMean` | sum / rows |
/// | `None` | the entries themselves |
///
/// `rows` is the size of the first dimension for losses by element, so `Mean` and `BatchMean` differ there. For losses by
/// row the two are the same: PyTorch's `kl_div` calls it `batchmean`, and its `mean` is this one divided by the classes.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::{Reduction, mse};
/// let student = Tensor::new(&[[1f32, 3.], [0., 0.]], &Device::Cpu)?;
/// let teacher = student.zeros_like()?;
/// let loss = |reduction| mse(&student, &teacher, reduction)?.to_scalar::<f32>();
/// assert_eq!((loss(Reduction::Mean)?, loss(Reduction::Sum)?, loss(Reduction::BatchMean)?), (2.5, 10., 5.));
/// assert_eq!(mse(&student, &teacher, Reduction::None)?.dims(), [2, 2]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Sum over entries, divided by their number.
    Mean,
    /// Sum over entries.
    Sum,
    /// Sum over entries, divided by the number of rows.
    BatchMean,
    /// No sum: one value an entry.
    None,
}

impl Reduction {
    /// What the sum is divided by; nothing where there is no sum.
    pub(crate) fn divisor(self, entries: usize, rows: usize) -> Option<f64> {
        match self {
            Self::Mean => Some(entries as f64),
            Self::Sum => Some(1.),
            Self::BatchMean => Some(rows as f64),
            Self::None => None,
        }
    }

    /// Reduces a tensor of entries.
    pub(crate) fn apply(self, entries: &Tensor, rows: usize) -> Result<Tensor> {
        match self.divisor(entries.elem_count(), rows) {
            Some(divisor) => entries.sum_all()? / divisor,
            None => Ok(entries.clone()),
        }
    }
}
