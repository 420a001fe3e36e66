//! The gradient audit before the first update.

use crate::ranks::Ranks;
use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Var, bail};
use std::collections::BTreeSet;
use vkd_tasks::Term;

/// Steps within which every variable must have had a gradient that is not zero.
const PATIENCE: u64 = 3;

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
            Some(_) if is_zero(var, grads)? => faults.push(format!("{name} (zero everywhere)")),
            Some(_) => {}
        }
    }
    refuse(faults)
}

fn refuse(faults: Vec<String>) -> Result<()> {
    if faults.is_empty() {
        return Ok(());
    }
    bail!(
        "gradient audit: expected every trainable variable to learn, got none at: {}",
        faults.join(", ")
    )
}

/// Whether a variable's gradient is zero everywhere. NaN is not zero: it is the loss check's business.
fn is_zero(var: &Var, grads: &GradStore) -> Result<bool> {
    match grads.get(var) {
        Some(grad) => Ok(grad.ne(0.)?.to_dtype(DType::U32)?.sum_all()?.to_scalar::<u32>()? == 0),
        None => Ok(true),
    }
}

/// The audit of a training's first steps: a gradient must be there at the first, and not zero at one of the first three. Behind
/// a layer that starts at zero, as the last one of ViDT's boxes does, nothing learns before that layer has. What cancels between terms
/// learns from each: the last bias of a discriminator whose hinges all bend.
///
/// Steps whose batch says nothing, a detector's without objects, are not counted.
#[derive(Debug, Default)]
pub(crate) struct FirstSteps {
    begun: bool,
    looked: u64,
    quiet: BTreeSet<String>,
}

impl FirstSteps {
    /// Looks at the gradients of one more step, the `last` one of all or not, and where they are zero at those of its single terms, on all
    /// ranks alike.
    pub(crate) fn look(
        &mut self,
        parameters: &[(String, Var)],
        grads: &GradStore,
        terms: &[Term],
        last: bool,
        ranks: &Ranks,
    ) -> Result<()> {
        self.begun = true;
        let first = self.looked == 0;
        if first {
            let missing = parameters.iter().filter(|(_, var)| grads.get(var).is_none());
            refuse(missing.map(|(name, _)| format!("{name} (no gradient)")).collect())?;
        }
        let mut zero = Vec::new();
        for (name, var) in parameters {
            if first || self.quiet.contains(name) {
                match is_zero(var, grads)? {
                    true => zero.push((name, var)),
                    false => drop(self.quiet.remove(name)),
                }
            }
        }
        for term in terms {
            if zero.is_empty() || terms.len() < 2 {
                break;
            }
            if term.weight == 0. {
                continue;
            }
            let grads = term.value.backward()?;
            let moved =
                |(_, var): &(&String, &Var)| Ok(f64::from(u8::from(!is_zero(var, &grads)?)));
            let mut moved = zero.iter().map(moved).collect::<Result<Vec<f64>>>()?;
            // A term that is flat for one rank's samples need not be for another's.
            ranks.sum(&mut moved)?;
            let mut still = Vec::new();
            for ((name, var), moved) in zero.into_iter().zip(moved) {
                match moved > 0. {
                    false => still.push((name, var)),
                    true => drop(self.quiet.remove(name)),
                }
            }
            zero = still;
        }
        self.quiet.extend(zero.into_iter().map(|(name, _)| name.clone()));
        self.looked += 1;
        match last || self.looked >= PATIENCE {
            true => refuse(self.quiet.iter().map(|n| format!("{n} (zero everywhere)")).collect()),
            false => Ok(()),
        }
    }

    /// Whether step `step` is to be looked at. A training that goes on after a stop was looked at before.
    pub(crate) fn wants(&self, step: u64) -> bool {
        let more = self.looked == 0 || (self.looked < PATIENCE && !self.quiet.is_empty());
        more && (step == 0 || self.begun)
    }

    /// Passes over a step whose batch says nothing; the `last` one of all or not.
    pub(crate) fn pass(&mut self, last: bool) -> Result<()> {
        self.begun = true;
        match last && self.looked == 0 {
            true => {
                bail!("gradient audit: expected a batch that says something in all steps, got none")
            }
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

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

    #[test]
    fn what_stands_behind_a_zero_may_wait_three_steps() -> Result<()> {
        let (first, last) = (Var::new(&[1f32], &Device::Cpu)?, Var::new(&[0f32], &Device::Cpu)?);
        let all = [("first".to_owned(), first.clone()), ("last".to_owned(), last.clone())];
        let grads = || (first.as_tensor() * last.as_tensor())?.sum_all()?.backward();
        let mut audit = FirstSteps::default();
        audit.look(&all, &grads()?, &[], false, &Ranks::alone())?;
        assert!(audit.wants(1));
        last.set(&Tensor::new(&[0.5f32], &Device::Cpu)?)?;
        audit.look(&all, &grads()?, &[], false, &Ranks::alone())?;
        assert!(!audit.wants(2), "both have learnt");
        // One that never does is found at the third step, or at the last one.
        last.set(&Tensor::new(&[0f32], &Device::Cpu)?)?;
        let mut audit = FirstSteps::default();
        audit.look(&all, &grads()?, &[], false, &Ranks::alone())?;
        audit.look(&all, &grads()?, &[], false, &Ranks::alone())?;
        let message =
            audit.look(&all, &grads()?, &[], false, &Ranks::alone()).unwrap_err().to_string();
        assert!(message.contains("first (zero everywhere)"), "{message}");
        assert!(FirstSteps::default().look(&all, &grads()?, &[], true, &Ranks::alone()).is_err());
        Ok(())
    }

    #[test]
    fn what_cancels_between_terms_learns() -> Result<()> {
        let (bias, dead) = (Var::new(&[1f32], &Device::Cpu)?, Var::new(&[0f32], &Device::Cpu)?);
        let term = |sign: f64| -> Result<Term> {
            let nothing = (dead.as_tensor() * dead.zeros_like()?)?;
            let value = (bias.affine(sign, 0.)? + nothing)?.sum_all()?;
            Ok(Term { name: "hinge".to_owned(), weight: 1., value })
        };
        let terms = [term(1.)?, term(-1.)?];
        let grads = (&terms[0].value + &terms[1].value)?.backward()?;
        let bias = [("bias".to_owned(), bias.clone())];
        FirstSteps::default().look(&bias, &grads, &terms, true, &Ranks::alone())?;
        let both = [bias[0].clone(), ("dead".to_owned(), dead.clone())];
        let message =
            FirstSteps::default().look(&both, &grads, &terms, true, &Ranks::alone()).unwrap_err();
        let message = message.to_string();
        assert!(message.contains("got none at: dead (zero everywhere)"), "{message}");
        Ok(())
    }

    #[test]
    fn steps_that_say_nothing_are_not_counted() -> Result<()> {
        let var = Var::new(&[1f32], &Device::Cpu)?;
        let all = [("var".to_owned(), var.clone())];
        let mut audit = FirstSteps::default();
        for step in 0..7 {
            assert!(audit.wants(step));
            audit.pass(false)?;
        }
        audit.look(&all, &var.sum_all()?.backward()?, &[], false, &Ranks::alone())?;
        assert!(!audit.wants(8));
        assert!(!FirstSteps::default().wants(5), "a training that goes on");
        assert!(FirstSteps::default().pass(true).is_err());
        Ok(())
    }
}
