//! The test harness of every op: one call compares an op with its twin, with finite differences, across layouts and
//! between f32 and f64.

use crate::{Tolerance, assert_close, gradcheck, layouts, normal};
use candle_core::{DType, Result, Tensor, Var, bail};

type Op<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// Inputs of one check; the first `active` carry a gradient.
pub struct OpCase<'a> {
    /// Name for messages.
    pub what: &'a str,
    /// Inputs, all on the CPU.
    pub inputs: &'a [Tensor],
    /// How many of them carry a gradient.
    pub active: usize,
    /// Relative tolerance of f64 against the twin.
    pub f64_tolerance: f64,
    /// Relative tolerance of f32 against f64.
    pub f32_tolerance: f64,
}

impl OpCase<'_> {
    /// Runs all comparisons; f64 inputs are first rounded to f32, so that both dtypes see the same numbers.
    pub fn check(
        &self,
        op: impl Fn(&[Tensor]) -> Result<Tensor>,
        twin: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<()> {
        let narrow =
            |x: &Tensor| if x.dtype().is_float() { x.to_dtype(DType::F32) } else { Ok(x.clone()) };
        let wide =
            |x: &Tensor| if x.dtype().is_float() { x.to_dtype(DType::F64) } else { Ok(x.clone()) };
        let inputs32 = self.inputs.iter().map(narrow).collect::<Result<Vec<_>>>()?;
        let inputs = inputs32.iter().map(wide).collect::<Result<Vec<_>>>()?;
        let base = self.run(&op, &inputs, 0)?;
        let tolerance = Tolerance { relative: self.f64_tolerance, absolute: 1e-14 };
        self.compare("twin", &base, &self.run(&twin, &inputs, 0)?, tolerance)?;
        let (active, fixed) = inputs.split_at(self.active);
        gradcheck(|x| op(&[x, fixed].concat()), active)?;
        let base32 = self.run(&op, &inputs32, 0)?;
        let tolerance = Tolerance { relative: self.f32_tolerance, absolute: 1e-7 };
        self.compare("f32 against f64", &base32, &base, tolerance)?;
        for layout in 1..4 {
            self.compare("f64 layout", &self.run(&op, &inputs, layout)?, &base, Tolerance::EXACT)?;
            self.compare(
                "f32 layout",
                &self.run(&op, &inputs32, layout)?,
                &base32,
                Tolerance::EXACT,
            )?;
        }
        Ok(())
    }

    /// Output, then the gradient of every active input, with the inputs laid out in one of four ways; in the odd ones
    /// the incoming gradient is not contiguous either.
    fn run(
        &self,
        f: impl Fn(&[Tensor]) -> Result<Tensor>,
        inputs: &[Tensor],
        layout: usize,
    ) -> Result<Vec<Tensor>> {
        let (active, fixed) = inputs.split_at(self.active);
        let vars = active.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
        let all = vars.iter().map(|v| v.as_tensor()).chain(fixed);
        let laid = all
            .map(|x| {
                let ways = layouts(x)?;
                Ok(ways[layout.min(ways.len() - 1)].1.clone())
            })
            .collect::<Result<Vec<_>>>()?;
        let output = f(&laid)?;
        let cotangent = normal(output.dims(), DType::F32, 11)?.to_dtype(output.dtype())?;
        let loss = match output.rank() {
            r if r >= 2 && layout % 2 == 1 => {
                let flip = |x: &Tensor| x.transpose(r - 2, r - 1);
                (flip(&output)? * flip(&cotangent)?)?.sum_all()?
            }
            _ => (&output * cotangent)?.sum_all()?,
        };
        let grads = loss.backward()?;
        let mut results = vec![output.detach()];
        for (i, var) in vars.iter().enumerate() {
            match grads.get(var) {
                Some(grad) => results.push(grad.clone()),
                None => bail!("{}: no gradient reaches input {i}", self.what),
            }
        }
        Ok(results)
    }

    fn compare(
        &self,
        how: &str,
        got: &[Tensor],
        want: &[Tensor],
        tolerance: Tolerance,
    ) -> Result<()> {
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let part =
                if i == 0 { "output".to_owned() } else { format!("gradient of input {}", i - 1) };
            assert_close(&format!("{}: {how}: {part}", self.what), got, want, tolerance)?;
        }
        Ok(())
    }

    /// The harness must accept the op, and reject it when it is detached, one per cent off, or has a gradient one per
    /// cent off.
    pub fn has_teeth(
        &self,
        op: impl Fn(&[Tensor]) -> Result<Tensor>,
        twin: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<()> {
        // Else a fault of the case itself would pass for teeth.
        self.check(&op, &twin)?;
        let broken: [(&str, Op<'_>); 3] = [
            ("detached", &|x| Ok(op(x)?.detach())),
            ("value off", &|x| op(x)? * 1.01),
            ("gradient off", &|x| {
                let y = op(x)?;
                let fixed = y.detach();
                (y * 1.01)? - (fixed * 0.01)?
            }),
        ];
        for (name, f) in broken {
            if self.check(f, &twin).is_ok() {
                bail!("{}: the harness accepts an op that is {name}", self.what)
            }
        }
        Ok(())
    }
}
