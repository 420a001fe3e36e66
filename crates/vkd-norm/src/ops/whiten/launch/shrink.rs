//! The shrinkage on a device: given, or estimated from sums that stay there.

use super::{Kept, OP, Plan, Slope};
use crate::Shrinkage;
use crate::ops::program::{Arg, Program, Runner, Size, count};
use crate::ops::whiten::factor::pivot_floor;
use candle_core::{DType, Result, Tensor};

/// Numbers of a `state`, of a `unit` and of a `turn`; as in `shrink.cuh`.
const STATE: usize = 10;
const UNIT: usize = 3;
const TURN: usize = 3;

/// Where ρ and what it puts on the diagonal come from.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Ridge {
    Given {
        rho: f64,
        /// The ridge is this share of the trace ..
        share: f64,
        /// .. and this.
        level: f64,
    },
    /// An estimate is no less than `least`.
    Oas {
        least: f64,
    },
    LedoitWolf {
        least: f64,
    },
}

impl Ridge {
    /// `None` where it might not lift all directions over rounding and a factorisation `factors` would need it.
    pub(super) fn new(
        shrinkage: Shrinkage,
        rows: usize,
        channels: usize,
        factors: bool,
    ) -> Option<Self> {
        let (d, floor) = (channels as f64, pivot_floor(rows as f64, channels));
        // Twice what is enough.
        let least = if factors { 2. * floor * d } else { 0. };
        match shrinkage {
            // As on the CPU; the trace is on both sides.
            Shrinkage::Fixed(rho) => (!factors || rho / d > floor * (1. - rho + rho / d))
                .then_some(Self::Given { rho, share: rho / d, level: 0. }),
            // How the scale of the rows compares with the target is not known.
            Shrinkage::Absolute(eps) => {
                (!factors || eps > 0.).then_some(Self::Given { rho: eps, share: 0., level: eps })
            }
            Shrinkage::Oas => (least < 0.5).then_some(Self::Oas { least }),
            Shrinkage::LedoitWolf => (least < 0.5).then_some(Self::LedoitWolf { least }),
        }
    }

    /// ρ moves with the rows.
    fn is_estimated(self) -> bool {
        !matches!(self, Self::Given { .. })
    }
}

/// What a shrinkage has come to on the device: places as in `shrink.cuh`.
pub(super) struct Lift {
    pub(super) state: Tensor,
    /// How the covariance itself is brought to trace one and lifted over its rounding.
    pub(super) unit: Tensor,
}

impl Plan {
    /// The squared lengths of the rows, for Ledoit and Wolf.
    pub(super) fn lengths(&self, runner: &dyn Runner, centred: &Tensor) -> Result<Option<Tensor>> {
        if !matches!(self.ridge, Ridge::LedoitWolf { .. }) {
            return Ok(None);
        }
        let [rows, columns] = self.counts()?;
        let mut program = Program::default();
        let lengths = program.buffer(DType::F64, self.rows);
        let args = [Arg::Input(0), lengths, rows, columns];
        let size = Size::rows(self.rows, self.channels);
        program.launch("whiten_lengths".to_owned(), size, &args)?;
        Ok(Some(runner.run(&program, &[centred])?.swap_remove(0)))
    }

    /// Adds the sum of products of two `d x d` matrices and their scales, by parts; the second is how many parts there are.
    pub(super) fn dot(
        &self,
        program: &mut Program,
        [a, b]: [Arg; 2],
        scales: [f64; 2],
    ) -> Result<[Arg; 2]> {
        let size = Size::sums(self.square());
        let parts = program.buffer(DType::F64, size.grid[0]);
        let [of_a, of_b] = scales.map(Arg::F64);
        let args = [a, b, parts, count(OP, self.square())?, of_a, of_b];
        program.launch("whiten_dot".to_owned(), size, &args)?;
        Ok([parts, count(OP, size.grid[0])?])
    }

    pub(super) fn lift(
        &self,
        runner: &dyn Runner,
        scatter: &Tensor,
        lengths: Option<&Tensor>,
    ) -> Result<Lift> {
        let [rows, columns] = self.counts()?;
        let mut program = Program::default();
        let state = program.buffer(DType::F64, STATE);
        let unit = program.buffer(DType::F64, UNIT);
        let factor = self.factor();
        let [parts, count_] = match self.ridge.is_estimated() {
            false => [Arg::Null, Arg::U32(0)],
            true => self.dot(&mut program, [Arg::Input(0); 2], [factor; 2])?,
        };
        let (kind, [rho, level, share, least]) = match self.ridge {
            Ridge::Given { rho, share, level } => (0, [rho, level, share, 0.]),
            Ridge::Oas { least } => (1, [0., 0., 0., least]),
            Ridge::LedoitWolf { least } => (2, [0., 0., 0., least]),
        };
        let of_rows = if lengths.is_some() { Arg::Input(1) } else { Arg::Null };
        let args = [Arg::Input(0), parts, of_rows, state, unit, columns, count_, rows];
        let numbers = [factor, rho, level, share, least, 2. * self.floor()].map(Arg::F64);
        let args = [&args[..], &[Arg::U32(kind)], &numbers].concat();
        program.launch("whiten_shrink".to_owned(), Size::join(self.channels), &args)?;
        let inputs: Vec<&Tensor> = std::iter::once(scatter).chain(lengths).collect();
        let mut found = runner.run(&program, &inputs)?.into_iter();
        match (found.next(), found.next()) {
            (Some(state), Some(unit)) => Ok(Lift { state, unit }),
            _ => candle_core::bail!("{OP}: expected the state of the shrinkage, got no buffer"),
        }
    }

    /// `turn` of the gradient `scale` times `x` of the shrunk covariance.
    pub(super) fn turn(
        &self,
        runner: &dyn Runner,
        kept: &Kept,
        x: &Tensor,
        scale: f64,
    ) -> Result<Tensor> {
        let [_, columns] = self.counts()?;
        let mut program = Program::default();
        let turn = program.buffer(DType::F64, TURN);
        let inputs = [0, 1, 2].map(Arg::Input);
        let [parts, count_] = match self.ridge.is_estimated() {
            false => [Arg::Null, Arg::U32(0)],
            true => self.dot(&mut program, [inputs[0], inputs[2]], [scale, self.factor()])?,
        };
        let args = [inputs[0], parts, inputs[1], turn, columns, count_, Arg::F64(scale)];
        program.launch("whiten_turn".to_owned(), Size::join(self.channels), &args)?;
        Ok(runner.run(&program, &[x, &kept.state, &kept.squares])?.swap_remove(0))
    }

    /// Twice the gradient of the covariance over N - 1.
    pub(super) fn adjoint(
        &self,
        runner: &dyn Runner,
        kept: &Kept,
        slope: &Slope,
    ) -> Result<Tensor> {
        let [_, columns] = self.counts()?;
        let mut program = Program::default();
        let out = program.buffer(DType::F64, self.square());
        let squares = if self.ridge.is_estimated() { Arg::Input(3) } else { Arg::Null };
        let [x, state, turn] = [0, 1, 2].map(Arg::Input);
        let whole = Arg::U32(u32::from(slope.whole));
        let scale = [2. * self.factor(), slope.scale, self.factor()].map(Arg::F64);
        let args = [&[x, squares, state, turn, out, columns, whole][..], &scale].concat();
        program.launch("whiten_adjoint".to_owned(), Size::entries(self.square()), &args)?;
        let inputs = [&slope.matrix, &kept.state, &slope.turn, &kept.squares];
        self.matrix(&runner.run(&program, &inputs)?.swap_remove(0))
    }

    /// The gradient of the rows through the covariance, with what fourth powers add.
    pub(super) fn with_fourth(
        &self,
        runner: &dyn Runner,
        kept: &Kept,
        slope: &Slope,
        product: Tensor,
    ) -> Result<Tensor> {
        let Some(lengths) = &kept.lengths else { return Ok(product) };
        let [rows, columns] = self.counts()?;
        let sums = lengths.reshape((1, self.rows))?.matmul(&kept.centred)?;
        let entries = self.rows * self.channels;
        let mut program = Program::default();
        let out = program.buffer(DType::F64, entries);
        let args = [0, 1, 2, 3, 4].map(Arg::Input);
        let args = [&args[..], &[out, rows, columns]].concat();
        program.launch("whiten_fourth".to_owned(), Size::entries(entries), &args)?;
        let inputs = [&product, &kept.centred, lengths, &sums, &slope.turn];
        runner.run(&program, &inputs)?.swap_remove(0).reshape((self.rows, self.channels))
    }
}
