//! ZCA and PCA on a device: eigenvectors by rotations of the rows of Cholesky's `W`.

use super::{Plan, Slope};
use crate::WhitenMethod;
use crate::ops::program::{Arg, Program, Runner, Size, count};
use candle_core::{DType, Result, Tensor, bail};

const OP: &str = super::OP;

/// A sweep is a launch for each channel but one, whose blocks read two rows each; wider covariances go to the CPU.
pub(super) const WIDEST: usize = 1024;

/// What the adjoint reads: eigenvectors as rows, by falling eigenvalue, and the eigenvalues of the covariance before those of
/// the shrunk one.
pub(super) struct Spectrum {
    vectors: Tensor,
    values: Tensor,
}

/// Sweeps over `d` rows. Up to 1024 rows, of flat, steep and deficient spectra, none needed more than `5 + log2(d)`, rounded up, and the
/// last of those turned nothing.
fn sweeps(d: usize) -> usize {
    6 + d.next_power_of_two().ilog2() as usize
}

impl Plan {
    fn is_principal(&self) -> bool {
        self.method == WhitenMethod::Pca
    }

    /// Adds the rotations of the rows of `w`, and returns what the last sweep has done.
    fn rotations(&self, program: &mut Program, w: Arg) -> Result<Arg> {
        let d = self.channels;
        let pairs = d.div_ceil(2);
        let [_, columns] = self.counts()?;
        let [mut before, mut done] = [0, 1].map(|_| program.buffer(DType::U32, pairs));
        let tolerance = Arg::F64(f64::EPSILON * (8. + (d as f64).sqrt()));
        for sweep in 0..sweeps(d) {
            for step in 0..2 * pairs - 1 {
                let last = if sweep == 0 { Arg::Null } else { before };
                let args = [w, last, done, columns, count(OP, step)?, tolerance];
                program.launch("whiten_rotate".to_owned(), Size::rows(pairs, d), &args)?;
            }
            std::mem::swap(&mut before, &mut done);
        }
        Ok(before)
    }

    /// `W` and what it was made of.
    pub(super) fn spectrum(
        &self,
        runner: &dyn Runner,
        scatter: &Tensor,
        state: &Tensor,
        unit: &Tensor,
    ) -> Result<(Tensor, Spectrum)> {
        let d = self.channels;
        let [_, columns] = self.counts()?;
        let mut program = Program::default();
        let [vectors, scaled] = [0, 1].map(|_| program.buffer(DType::F64, d * d));
        let values = program.buffer(DType::F64, 2 * d);
        let lengths = program.buffer(DType::F64, d);
        let [scatter_, state_, unit_] = [0, 1, 2].map(Arg::Input);
        let w = self.elimination(&mut program, scatter_, unit_)?;
        let done = self.rotations(&mut program, w)?;
        let args = [w, lengths, columns, columns];
        program.launch("whiten_lengths".to_owned(), Size::rows(d, d), &args)?;
        let principal = Arg::U32(u32::from(self.is_principal()));
        let args = [w, lengths, done, unit_, state_, vectors, values, scaled, columns, principal];
        program.launch("whiten_sorted".to_owned(), Size::rows(d, d), &args)?;
        let mut found = runner.run(&program, &[scatter, state, unit])?.into_iter();
        let (Some(vectors), Some(scaled), Some(values)) =
            (found.next(), found.next(), found.next())
        else {
            bail!("{OP}: expected eigenvectors and eigenvalues, got no buffers")
        };
        let scaled = self.matrix(&scaled)?;
        let w = if self.is_principal() { scaled } else { scaled.t()?.matmul(&scaled)? };
        Ok((w, Spectrum { vectors: self.matrix(&vectors)?, values }))
    }

    /// The covariance's gradient between the eigenvectors.
    pub(super) fn spectral_slope(
        &self,
        runner: &dyn Runner,
        spectrum: &Spectrum,
        state: &Tensor,
        of_w: &Tensor,
    ) -> Result<Slope> {
        let Spectrum { vectors, values } = spectrum;
        let turned = vectors.t()?;
        let within = match self.is_principal() {
            true => vectors.matmul(&of_w.t()?)?,
            false => vectors.matmul(&of_w.matmul(&turned)?)?,
        };
        let [_, columns] = self.counts()?;
        let mut program = Program::default();
        let core = program.buffer(DType::F64, self.square());
        let turn = program.buffer(DType::F64, 3);
        let [c, values_, state_] = [0, 1, 2].map(Arg::Input);
        let principal = Arg::U32(u32::from(self.is_principal()));
        let args = [c, values_, state_, core, columns, principal];
        program.launch("whiten_core".to_owned(), Size::entries(self.square()), &args)?;
        let args = [c, values_, state_, turn, columns];
        program.launch("whiten_core_turn".to_owned(), Size::join(self.channels), &args)?;
        let mut found = runner.run(&program, &[&within, values, state])?.into_iter();
        let (Some(core), Some(turn)) = (found.next(), found.next()) else {
            bail!("{OP}: expected a gradient between the eigenvectors, got no buffers")
        };
        let matrix = turned.matmul(&self.matrix(&core)?.matmul(vectors)?)?;
        Ok(Slope { matrix, scale: 1., whole: true, turn })
    }
}
