//! Cholesky's `W` by elimination over tiles, and its adjoint.

use super::{Kept, OP, Plan, Slope};
use crate::ops::program::{Arg, Program, Runner, Size, count};
use candle_core::{DType, Result, Tensor};

/// Rows, columns and pivots of a tile; as in `tiles.cuh`.
const TILE: usize = 32;

impl Plan {
    /// Adds the elimination of the covariance that `scatter` and `state` stand for, and returns the buffer of the inverse of its
    /// lower Cholesky factor.
    pub(super) fn elimination(
        &self,
        program: &mut Program,
        scatter: Arg,
        state: Arg,
    ) -> Result<Arg> {
        let [_, columns] = self.counts()?;
        let w = program.buffer(DType::F64, self.square());
        let [mut from, mut to] = [0, 1].map(|_| program.buffer(DType::F64, self.square()));
        let [mut pivot, mut next] = [0, 1].map(|_| program.buffer(DType::F64, TILE * TILE));
        let tiles = self.channels.div_ceil(TILE);
        let size = Size { grid: [tiles, tiles, 1], block: [256, 1], shared: 0 };
        let args = [scatter, state, from, pivot, columns, Arg::F64(self.factor())];
        program.launch("whiten_start".to_owned(), size, &args)?;
        for step in 0..tiles {
            let args = [from, pivot, state, to, next, w, columns, count(OP, step)?];
            program.launch("whiten_step".to_owned(), size, &args)?;
            std::mem::swap(&mut from, &mut to);
            std::mem::swap(&mut pivot, &mut next);
        }
        Ok(w)
    }

    /// `W`, lower triangular, from the scatter of the rows.
    pub(super) fn triangle(
        &self,
        runner: &dyn Runner,
        scatter: &Tensor,
        state: &Tensor,
    ) -> Result<Tensor> {
        let mut program = Program::default();
        // The first buffer that is made.
        self.elimination(&mut program, Arg::Input(0), Arg::Input(1))?;
        self.matrix(&runner.run(&program, &[scatter, state])?.swap_remove(0))
    }

    /// With `P` the lower triangle of `W̄ Wᵀ`, mirrored: the shrunk covariance's gradient is `-Wᵀ P W / 2`.
    pub(super) fn triangular_slope(
        &self,
        runner: &dyn Runner,
        kept: &Kept,
        of_w: &Tensor,
    ) -> Result<Slope> {
        let w = &kept.w;
        let [_, columns] = self.counts()?;
        let mut program = Program::default();
        let mirrored = program.buffer(DType::F64, self.square());
        let args = [Arg::Input(0), mirrored, columns];
        program.launch("whiten_mirror".to_owned(), Size::entries(self.square()), &args)?;
        let mirrored = runner.run(&program, &[&of_w.matmul(&w.t()?)?])?.swap_remove(0);
        let matrix = w.t()?.matmul(&self.matrix(&mirrored)?.matmul(w)?)?;
        let scale = -0.5;
        let turn = self.turn(runner, kept, &matrix, scale)?;
        Ok(Slope { matrix, scale, whole: false, turn })
    }
}
