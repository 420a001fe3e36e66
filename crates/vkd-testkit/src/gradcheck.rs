//! Central finite differences against the tape.

use crate::{normal, to_f64};
use candle_core::{DType, Result, Tensor, Var, bail};

/// Settings of a gradient check; [`gradcheck`] uses the default.
///
/// The checked loss is `<G, f(inputs)>` for a fixed random `G`, so that every output entry counts.
/// Up to 24 input entries are checked one by one, larger inputs along three random directions.
#[derive(Clone, Copy, Debug)]
pub struct GradCheck {
    /// Half width of the central difference; default `eps^(1/3)`, which balances truncation and rounding.
    pub step: f64,
    /// Allowed relative error of a directional derivative; default 1e-6.
    pub relative: f64,
    /// Seed of `G` and of the directions; default 0.
    pub seed: u64,
}

impl Default for GradCheck {
    fn default() -> Self {
        Self { step: f64::EPSILON.cbrt(), relative: 1e-6, seed: 0 }
    }
}

/// Checks the gradient of `f` with respect to every input with the default [`GradCheck`].
///
/// # Errors
/// An input that is not f64, a missing gradient, or a derivative that differs: the message names input, direction,
/// both values.
pub fn gradcheck(f: impl Fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor]) -> Result<()> {
    GradCheck::default().run(f, inputs)
}

impl GradCheck {
    /// Checks the gradient of `f` with respect to every input, all of them f64.
    pub fn run(&self, f: impl Fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor]) -> Result<()> {
        if let Some(x) = inputs.iter().find(|x| x.dtype() != DType::F64) {
            bail!("gradcheck: expected f64 inputs, got {:?}", x.dtype())
        }
        let vars = inputs.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
        let tracked: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let output = f(&tracked)?;
        let cotangent = normal(output.dims(), DType::F64, self.seed ^ 0x9e37)?;
        let grads = (output * &cotangent)?.sum_all()?.backward()?;
        for (i, input) in inputs.iter().enumerate() {
            let Some(grad) = grads.get(&vars[i]) else {
                bail!("gradcheck: no gradient reaches input {i} of shape {:?}", input.dims())
            };
            for (name, direction) in self.directions(input)? {
                let analytic = (grad * &direction)?.sum_all()?.to_scalar::<f64>()?;
                let (numeric, noise) = self.difference(&f, inputs, i, &direction, &cotangent)?;
                let allowed = self.relative * analytic.abs().max(numeric.abs()) + noise;
                // Negated so that NaN fails.
                if !((analytic - numeric).abs() <= allowed) {
                    bail!(
                        "gradcheck: input {i} {:?}, {name}: expected {numeric:e} from differences, got {analytic:e} from the tape (allowed {allowed:e}, seed {})",
                        input.dims(),
                        self.seed
                    )
                }
            }
        }
        Ok(())
    }

    fn directions(&self, input: &Tensor) -> Result<Vec<(String, Tensor)>> {
        let n = input.elem_count();
        if n <= 24 {
            return (0..n)
                .map(|j| {
                    let mut unit = vec![0f64; n];
                    unit[j] = 1.;
                    let unit = Tensor::from_vec(unit, input.dims(), input.device())?;
                    Ok((format!("entry {j}"), unit))
                })
                .collect();
        }
        (0..3)
            .map(|j| {
                let d = normal(input.dims(), DType::F64, self.seed + 1 + j)?;
                let length = d.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt();
                Ok((format!("direction {j}"), (d / length)?))
            })
            .collect()
    }

    /// The central difference, and the part of it that may be rounding of the loss itself.
    fn difference(
        &self,
        f: &impl Fn(&[Tensor]) -> Result<Tensor>,
        inputs: &[Tensor],
        i: usize,
        direction: &Tensor,
        cotangent: &Tensor,
    ) -> Result<(f64, f64)> {
        let scale = to_f64(&inputs[i])?.iter().fold(1f64, |m, v| m.max(v.abs()));
        let step = self.step * scale;
        let mut magnitude = 0f64;
        let mut loss = |sign: f64| -> Result<f64> {
            let mut moved: Vec<Tensor> = inputs.iter().map(Tensor::detach).collect();
            moved[i] = (&inputs[i] + (direction * (sign * step))?)?.detach();
            let terms = (f(&moved)? * cotangent)?;
            magnitude = magnitude.max(terms.abs()?.sum_all()?.to_scalar::<f64>()?);
            terms.sum_all()?.to_scalar::<f64>()
        };
        let numeric = (loss(1.)? - loss(-1.)?) / (2. * step);
        Ok((numeric, 8. * f64::EPSILON * magnitude / step))
    }
}

/// Checks, for every variable, the derivative of `loss` along one random direction against a central difference.
///
/// The values of the variables are moved and put back. An absolute part of 1e-9 allows for derivatives that are
/// zero up to rounding.
///
/// # Errors
/// A variable without a gradient, or a derivative that differs by more than 1e-6: the message names it.
pub fn gradcheck_variables(
    variables: &[(String, Var)],
    loss: impl Fn() -> Result<Tensor>,
) -> Result<()> {
    let grads = loss()?.backward()?;
    for (i, (name, var)) in variables.iter().enumerate() {
        let Some(grad) = grads.get(var) else { bail!("gradcheck: no gradient reaches {name}") };
        let start = var.as_detached_tensor().copy()?;
        let direction = normal(var.dims(), DType::F64, 100 + i as u64)?;
        let step = GradCheck::default().step;
        let at = |sign: f64| -> Result<f64> {
            var.set(&(&start + (&direction * (sign * step))?)?)?;
            loss()?.to_scalar::<f64>()
        };
        let numeric = (at(1.)? - at(-1.)?) / (2. * step);
        var.set(&start)?;
        let analytic = (grad * &direction)?.sum_all()?.to_scalar::<f64>()?;
        // Negated so that NaN fails.
        if !((analytic - numeric).abs() <= 1e-6 * analytic.abs().max(numeric.abs()) + 1e-9) {
            bail!(
                "gradcheck: {name}: expected {numeric:e} from differences, got {analytic:e} from the tape"
            )
        }
    }
    Ok(())
}

/// Whether a backward pass from `f(x)` reaches `x` at all: the test for a silently cut tape.
pub fn has_gradient(f: impl Fn(&Tensor) -> Result<Tensor>, x: &Tensor) -> Result<bool> {
    let var = Var::from_tensor(x)?;
    let out = f(var.as_tensor())?.to_dtype(DType::F64)?.sum_all()?;
    Ok(out.backward()?.get(&var).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_with_right_gradients_pass_and_others_fail() -> Result<()> {
        let w = Var::from_tensor(&normal(&[3, 4], DType::F64, 5)?)?;
        let named = [("w".to_owned(), w.clone())];
        gradcheck_variables(&named, || w.sqr()?.sum_all())?;
        let cut = gradcheck_variables(&named, || w.as_detached_tensor().sqr()?.sum_all());
        assert!(cut.is_err(), "a cut tape must fail");
        let off = || w.sqr()?.sum_all()? + (w.as_detached_tensor().sqr()?.sum_all()? * 0.01)?;
        assert!(gradcheck_variables(&named, off).is_err(), "one per cent off must fail");
        Ok(())
    }

    #[test]
    fn accepts_right_and_rejects_wrong_gradients() -> Result<()> {
        for dims in [vec![2, 3], vec![7, 9]] {
            let x = normal(&dims, DType::F64, 3)?;
            gradcheck(|x| x[0].sqr()?.sin(), std::slice::from_ref(&x))?;
            let cut = gradcheck(
                |x| (x[0].detach().sin()? + x[0].affine(1e-9, 0.)?)?.sin(),
                std::slice::from_ref(&x),
            );
            assert!(cut.is_err(), "a detached path must fail");
            // One per cent off: value of 1.01 x, gradient of x.
            let off = gradcheck(|x| &x[0] + (x[0].detach() * 0.01)?, &[x]);
            assert!(off.is_err(), "a gradient one per cent off must fail");
        }
        Ok(())
    }
}
