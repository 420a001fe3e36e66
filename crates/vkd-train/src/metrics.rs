//! Scores.

use candle_core::{D, DType, Result, Tensor, bail};

/// Share of rows whose largest logit is the label's.
///
/// # Shapes
/// `logits` `(B, K)`, `labels` u32 `(B)`.
///
/// # Errors
/// No rows, different numbers of rows, or a logit that is not finite (its arg max would be arbitrary).
pub fn accuracy(logits: &Tensor, labels: &Tensor) -> Result<f64> {
    let (rows, _) = logits.dims2()?;
    if rows == 0 || labels.dims() != [rows] {
        bail!(
            "accuracy: expected one label for each of at least one row, got {rows} rows and {:?}",
            labels.dims()
        )
    }
    if !logits.to_dtype(DType::F64)?.abs()?.sum_all()?.to_scalar::<f64>()?.is_finite() {
        bail!("accuracy: expected finite logits, got others")
    }
    let hits = logits
        .argmax(D::Minus1)?
        .eq(labels)?
        .to_dtype(DType::U32)?
        .sum_all()?
        .to_scalar::<u32>()?;
    Ok(f64::from(hits) / rows as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn counts_hits() -> Result<()> {
        let logits = Tensor::new(&[[1f32, 2.], [3., 0.], [0., 1.], [1., 0.]], &Device::Cpu)?;
        let labels = Tensor::new(&[1u32, 0, 0, 0], &Device::Cpu)?;
        assert_eq!(accuracy(&logits, &labels)?, 0.75);
        assert!(accuracy(&logits, &labels.narrow(0, 0, 3)?).is_err());
        assert!(accuracy(&(logits * f64::NAN)?, &labels).is_err());
        Ok(())
    }
}
