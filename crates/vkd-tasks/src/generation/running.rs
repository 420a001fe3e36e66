//! Whitening by a covariance that is gathered as training goes.

use candle_core::{DType, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use vkd_norm::{Moments, Replicas, WhitenConfig, Whitener};

/// Mean and covariance of features over the last batches, whose state lies in the buffer `moments` of the builder that made it: a
/// checkpoint with the other variables holds it to the bit.
///
/// The buffer, f64 `(d² + 3 d + 3)`, is a point near the mean and the [sums](Moments::to_sums) about it.
///
/// Sums and whitener are the host's work: on a device each batch waits for a copy of its rows and one of the buffer, which a
/// checkpoint may have written over since.
#[derive(Clone, Debug)]
pub struct RunningWhitening {
    state: Tensor,
    channels: usize,
    config: WhitenConfig,
    keep: f64,
}

impl RunningWhitening {
    /// Of no rows yet. Before each batch what was gathered is weighed by `keep`: 0 is the batch alone, 1 everything ever seen.
    ///
    /// # Errors
    /// No channels, `keep` outside `[0, 1]`, or a builder whose variables are no f64.
    pub fn new(channels: usize, config: WhitenConfig, keep: f64, vb: VarBuilder) -> Result<Self> {
        if channels == 0 || !(0. ..=1.).contains(&keep) {
            bail!(
                "running whitening {}: expected channels and a share kept in [0, 1], got {channels} and {keep}",
                vb.prefix()
            )
        }
        let length = channels * channels + 3 * channels + 3;
        let state = vb.get_with_hints_dtype(length, "moments", Init::Const(0.), DType::F64)?;
        if state.dtype() != DType::F64 {
            bail!(
                "running whitening {}: expected a buffer of f64, got {:?}",
                vb.prefix(),
                state.dtype()
            )
        }
        Ok(Self { state: state.detach(), channels, config, keep })
    }

    /// What was gathered.
    ///
    /// # Errors
    /// A buffer that holds no sums.
    pub fn moments(&self) -> Result<Moments> {
        self.of(&self.state.to_vec1::<f64>()?)
    }

    /// What a copy of the buffer holds.
    fn of(&self, state: &[f64]) -> Result<Moments> {
        let (point, sums) = state.split_at(self.channels.min(state.len()));
        Moments::from_sums(sums, point)
    }

    /// Takes in the rows `(N, d)`.
    ///
    /// # Errors
    /// Another width, or rows that are not finite; nothing is changed then.
    pub fn update(&self, rows: &Tensor) -> Result<()> {
        self.update_among(rows, None)
    }

    /// Takes in the rows of all replicas, of which these are one's: each then holds the same.
    ///
    /// # Errors
    /// Those of [`update`](Self::update), and those of the way to the others.
    pub fn update_among(&self, rows: &Tensor, replicas: Option<&Replicas>) -> Result<()> {
        self.taken_in(rows, replicas).map(drop)
    }

    /// [`update_among`](Self::update_among), and the [`whitener`](Self::whitener) after it without another copy of the buffer.
    pub(super) fn whitener_with(
        &self,
        rows: &Tensor,
        replicas: Option<&Replicas>,
    ) -> Result<Whitener> {
        Whitener::new(&self.of(&self.taken_in(rows, replicas)?)?, self.config)
    }

    /// What the buffer holds after an update.
    fn taken_in(&self, rows: &Tensor, replicas: Option<&Replicas>) -> Result<Vec<f64>> {
        let batch = match rows.dtype() {
            DType::F16 | DType::BF16 => Moments::from_rows(&rows.to_dtype(DType::F32)?, None)?,
            _ => Moments::from_rows(rows, None)?,
        };
        let batch = match replicas {
            None => batch,
            Some(replicas) => joined(&batch, replicas)?,
        };
        let before = self.state.to_vec1::<f64>()?;
        let mut gathered = self.of(&before)?;
        let first = gathered.count() == 0.;
        gathered.decay(self.keep)?;
        gathered.merge(&batch)?;
        // The point stays where the first batch put it, so that a state read back gives the same bits.
        let point = match first {
            true => batch.mean(),
            false => before.get(..self.channels).unwrap_or_default(),
        };
        let state = [point.to_vec(), gathered.to_sums(point)?].concat();
        self.state.slice_set(&Tensor::new(&*state, self.state.device())?, 0, 0)?;
        Ok(state)
    }

    /// The whitening of what was gathered.
    ///
    /// # Errors
    /// No rows yet, and those of [`Whitener::new`].
    pub fn whitener(&self) -> Result<Whitener> {
        Whitener::new(&self.moments()?, self.config)
    }
}

/// The moments of the rows of all replicas: added up about their common mean, where no digits cancel.
fn joined(own: &Moments, replicas: &Replicas) -> Result<Moments> {
    let mut sums: Vec<f64> = own.mean().iter().map(|mean| own.count() * mean).collect();
    sums.push(own.count());
    replicas.sum_numbers(&mut sums)?;
    let count = sums.pop().unwrap_or_default().max(1.);
    let mean: Vec<f64> = sums.iter().map(|sum| sum / count).collect();
    let mut sums = own.to_sums(&mean)?;
    replicas.sum_numbers(&mut sums)?;
    Moments::from_sums(&sums, &mean)
}
