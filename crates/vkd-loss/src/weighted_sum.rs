//! The total loss of a step, with its parts by name.

use candle_core::{Result, Tensor, bail};

/// One named part of a loss.
#[derive(Clone, Debug)]
pub struct Term {
    /// Name for the log: `label`, `logits`, `feature.TAP`.
    pub name: String,
    /// Factor in the sum.
    pub weight: f64,
    /// Value before the factor, rank 0, on the tape.
    pub value: Tensor,
}

/// `Σ weight · value`. The terms stay with the caller, for the log.
///
/// # Errors
/// No term at all (there would be nothing to train on), a weight that is not finite or a value that is not one number (the
/// message names the term), or a value of another dtype than the first (both terms are named).
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::{Term, weighted_sum};
/// let term = |name: &str, weight, value: f32| -> candle_core::Result<Term> {
///     Ok(Term { name: name.to_owned(), weight, value: Tensor::new(value, &Device::Cpu)? })
/// };
/// let terms = [term("label", 1., 2.)?, term("feature", 0.5, 3.)?];
/// assert_eq!(weighted_sum(&terms)?.to_scalar::<f32>()?, 3.5);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn weighted_sum(terms: &[Term]) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for Term { name, weight, value } in terms {
        if !weight.is_finite() {
            bail!("weighted_sum: {name}: expected a finite weight, got {weight}")
        }
        if value.rank() != 0 {
            bail!("weighted_sum: {name}: expected one number, got shape {:?}", value.dims())
        }
        if let Some(first) = terms.first().filter(|t| t.value.dtype() != value.dtype()) {
            bail!(
                "weighted_sum: {name}: expected dtype {:?} as in {}, got {:?}",
                first.value.dtype(),
                first.name,
                value.dtype()
            )
        }
        let part = (value * *weight)?;
        sum = Some(match sum {
            Some(sum) => (sum + part)?,
            None => part,
        });
    }
    match sum {
        Some(sum) => Ok(sum),
        None => bail!("weighted_sum: expected at least one loss term, got none"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Term, weighted_sum};
    use candle_core::{DType, Device, Result, Tensor, Var};

    #[test]
    fn the_gradient_of_a_term_is_its_weight() -> Result<()> {
        let vars = [Var::new(2f64, &Device::Cpu)?, Var::new(3f64, &Device::Cpu)?];
        let term = |i: usize, weight| Term {
            name: i.to_string(),
            weight,
            value: vars[i].as_tensor().clone(),
        };
        let terms = [term(0, 0.25), term(1, -2.)];
        let grads = weighted_sum(&terms)?.backward()?;
        for (var, term) in vars.iter().zip(&terms) {
            assert_eq!(grads.get(var).unwrap().to_scalar::<f64>()?, term.weight);
        }
        Ok(())
    }

    #[test]
    fn bad_terms_are_named() -> Result<()> {
        let message = |weight, value: &Tensor| {
            let term = Term { name: "feature.x".into(), weight, value: value.clone() };
            weighted_sum(&[term]).unwrap_err().to_string()
        };
        let one = Tensor::new(1f32, &Device::Cpu)?;
        assert!(message(f64::NAN, &one).contains("feature.x: expected a finite weight, got NaN"));
        assert!(message(1., &one.reshape(1)?).contains("feature.x: expected one number"));
        let term = |name: &str, value: &Tensor| Term {
            name: name.into(),
            weight: 1.,
            value: value.clone(),
        };
        let mixed = [term("label", &one), term("feature.x", &one.to_dtype(DType::F64)?)];
        let e = weighted_sum(&mixed).unwrap_err().to_string();
        assert!(e.contains("feature.x: expected dtype F32 as in label, got F64"), "{e}");
        assert!(weighted_sum(&[]).unwrap_err().to_string().contains("at least one loss term"));
        Ok(())
    }
}
