//! Newton-Schulz on a device: products alone, as on the CPU.

use super::{Kept, OP, Plan, Slope};
use crate::ops::program::{Arg, Program, Runner, Size};
use candle_core::{DType, Result, Tensor, bail};

/// A matrix and its derivative.
struct Dual {
    value: Tensor,
    tangent: Option<Tensor>,
}

impl Plan {
    /// `Y = S' / t`, lifted by the floor.
    pub(super) fn polynomial_start(
        &self,
        runner: &dyn Runner,
        scatter: &Tensor,
        state: &Tensor,
    ) -> Result<Tensor> {
        let [_, columns] = self.counts()?;
        let mut program = Program::default();
        let y = program.buffer(DType::F64, self.square());
        let [factor, floor] = [self.factor(), self.floor()].map(Arg::F64);
        let args = [Arg::Input(0), Arg::Input(1), y, columns, factor, floor];
        program.launch("whiten_scaled".to_owned(), Size::entries(self.square()), &args)?;
        self.matrix(&runner.run(&program, &[scatter, state])?.swap_remove(0))
    }

    /// `W` from `start`.
    pub(super) fn polynomial(
        &self,
        runner: &dyn Runner,
        start: Tensor,
        state: &Tensor,
        iterations: usize,
    ) -> Result<Tensor> {
        let start = Dual { value: start, tangent: None };
        let z = self.iterate(runner, start, iterations)?.value;
        self.folded(runner, &z, state, false)
    }

    /// `Z` after the iterations `T = (3 I - Z Y) / 2, Y <- Y T, Z <- T Z` from `Z = I`, in this order of factors; see the CPU's.
    fn iterate(&self, runner: &dyn Runner, start: Dual, iterations: usize) -> Result<Dual> {
        let Dual { value: mut y, tangent: mut dy } = start;
        // The identity is not multiplied with.
        let mut z: Option<Dual> = None;
        for at in 0..iterations {
            let inner = match &z {
                Some(z) => z.value.matmul(&y)?,
                None => y.clone(),
            };
            let step = self.newton(runner, &inner)?;
            // After the last step nobody reads Y.
            let last = at + 1 == iterations;
            let tangent = match &dy {
                None => None,
                Some(along) => {
                    let turn = match &z {
                        None => (along * -0.5)?,
                        Some(Dual { value, tangent: Some(dz) }) => {
                            ((dz.matmul(&y)? + value.matmul(along)?)? * -0.5)?
                        }
                        Some(_) => bail!("{OP}: expected a derivative of Z, got none"),
                    };
                    let dz = match &z {
                        Some(Dual { value, tangent: Some(dz) }) => {
                            (turn.matmul(value)? + step.matmul(dz)?)?
                        }
                        _ => turn.clone(),
                    };
                    if !last {
                        dy = Some((along.matmul(&step)? + y.matmul(&turn)?)?);
                    }
                    Some(dz)
                }
            };
            if !last {
                y = y.matmul(&step)?;
            }
            let value = match &z {
                Some(z) => step.matmul(&z.value)?,
                None => step,
            };
            z = Some(Dual { value, tangent });
        }
        match z {
            Some(z) => Ok(z),
            None => bail!("{OP}: expected at least one Newton-Schulz iteration, got 0"),
        }
    }

    /// `(3 I - x) / 2`.
    fn newton(&self, runner: &dyn Runner, x: &Tensor) -> Result<Tensor> {
        let [_, columns] = self.counts()?;
        let mut program = Program::default();
        let out = program.buffer(DType::F64, self.square());
        let args = [Arg::Input(0), out, columns];
        program.launch("whiten_newton".to_owned(), Size::entries(self.square()), &args)?;
        self.matrix(&runner.run(&program, &[x])?.swap_remove(0))
    }

    /// The symmetric part over the root of the trace, and over the trace where `again`.
    fn folded(
        &self,
        runner: &dyn Runner,
        z: &Tensor,
        state: &Tensor,
        again: bool,
    ) -> Result<Tensor> {
        let [_, columns] = self.counts()?;
        let mut program = Program::default();
        let out = program.buffer(DType::F64, self.square());
        let args = [Arg::Input(0), Arg::Input(1), out, columns, Arg::U32(u32::from(again))];
        program.launch("whiten_fold".to_owned(), Size::entries(self.square()), &args)?;
        self.matrix(&runner.run(&program, &[z, state])?.swap_remove(0))
    }

    /// `W = p(S'/t) t^(-1/2)` with a polynomial `p`, whose derivative is its own adjoint.
    pub(super) fn polynomial_slope(
        &self,
        runner: &dyn Runner,
        kept: &Kept,
        iterations: usize,
        of_w: &Tensor,
    ) -> Result<Slope> {
        let along = ((of_w + of_w.t()?)? * 0.5)?;
        let start = self.polynomial_start(runner, &kept.squares, &kept.state)?;
        let start = Dual { value: start, tangent: Some(along.clone()) };
        let Some(moved) = self.iterate(runner, start, iterations)?.tangent else {
            bail!("{OP}: expected a derivative of Z, got none")
        };
        let matrix = self.folded(runner, &moved, &kept.state, true)?;
        let [_, columns] = self.counts()?;
        let mut program = Program::default();
        let turn = program.buffer(DType::F64, 3);
        let [x, scatter, along_, w, state] = [0, 1, 2, 3, 4].map(Arg::Input);
        let [parts, count] = self.dot(&mut program, [x, scatter], [1., self.factor()])?;
        let [others, _] = self.dot(&mut program, [along_, w], [1.; 2])?;
        let args = [x, parts, others, state, turn, columns, count];
        program.launch("whiten_trace_turn".to_owned(), Size::join(self.channels), &args)?;
        let inputs = [&matrix, &kept.squares, &along, &kept.w, &kept.state];
        let turn = runner.run(&program, &inputs)?.swap_remove(0);
        Ok(Slope { matrix, scale: 1., whole: false, turn })
    }
}
