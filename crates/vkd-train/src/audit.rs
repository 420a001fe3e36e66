//! The gradient audit before the first update.

use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Var, bail};

/// Fails if a trainable variable has no gradient, or one that is zero everywhere.
///
/// Several layers of candle-nn cut the tape without a word; a network with such a layer trains, only not all of
/// it. The audit runs on the real first batch, so it also finds a variable that a recipe leaves without a loss.
///
/// # Errors
/// The names of all such variables.
pub fn gradient_audit(parameters: &[(String, Var)], grads: &GradStore) -> Result<()> {
    let mut faults = Vec::new();
    for (name, var) in parameters {
        match grads.get(var) {
            None => faults.push(format!("{name} (no gradient)")),
            Some(grad) => {
                // NaN is not zero: it is the loss check's business.
                let nonzero = grad.ne(0.)?.to_dtype(DType::U32)?.sum_all()?.to_scalar::<u32>()?;
                if nonzero == 0 {
                    faults.push(format!("{name} (zero everywhere)"));
                }
            }
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    bail!(
        "gradient audit: expected every trainable variable to learn, got none at: {}",
        faults.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn names_what_does_not_learn() -> Result<()> {
        let var = |v: f32| Var::new(&[v, v], &Device::Cpu);
        let (used, cut, zero) = (var(1.)?, var(2.)?, var(3.)?);
        let product = (used.as_tensor() * cut.as_tensor().detach())?;
        let loss = (product.sum_all()?
            + (zero.as_tensor() * zero.as_tensor().zeros_like()?)?.sum_all()?)?;
        let grads = loss.backward()?;
        let named = |n: &str, v: &Var| (n.to_owned(), v.clone());
        gradient_audit(&[named("used", &used)], &grads)?;
        let all = [named("used", &used), named("cut", &cut), named("zero", &zero)];
        let message = gradient_audit(&all, &grads).unwrap_err().to_string();
        assert!(message.contains("cut (no gradient), zero (zero everywhere)"), "{message}");
        assert!(!message.contains("used"), "{message}");
        Ok(())
    }
}
