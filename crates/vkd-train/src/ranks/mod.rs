//! Several processes that train one model together, each on its part of every batch.

mod check;
mod gradients;
mod in_turn;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
#[cfg(test)]
mod tests;
mod threads;

#[cfg(feature = "mpi")]
pub use mpi::{MpiSession, mpi_ranks};
pub use threads::thread_ranks;

use crate::share::Share;
use candle_core::{DType, Error, Result, Tensor, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use vkd_norm::Replicas;

/// What one of several processes that train together asks of the others. All make the same calls in the same order, and each
/// call waits for the others.
///
/// Sums have the same bits on every rank, and for the same ranks and numbers always the same. (NCCL promises neither in so many words,
/// and nobody has run it here.)
pub trait Communicator: Send + Sync {
    /// Which one this is, from zero; the first one leads: it alone writes.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// Replaces each number by its sum over all ranks, each of which gives as many.
    ///
    /// # Errors
    /// Another rank that is gone.
    fn sum(&self, values: &mut [f64]) -> Result<()>;

    /// As [`sum`](Self::sum), of numbers of half the size.
    ///
    /// # Errors
    /// As there.
    fn sum_f32(&self, values: &mut [f32]) -> Result<()>;

    /// The sum over all ranks of a tensor of f32 or f64, of equal shape on each, on the tensor's device. By way of the host, where
    /// nothing better is known.
    ///
    /// # Errors
    /// As there, and another type.
    fn sum_tensor(&self, tensor: &Tensor) -> Result<Tensor> {
        let flat = tensor.flatten_all()?;
        match tensor.dtype() {
            DType::F64 => {
                let mut values = flat.to_vec1::<f64>()?;
                self.sum(&mut values)?;
                Tensor::from_vec(values, tensor.shape(), tensor.device())
            }
            _ => {
                let mut values = flat.to_vec1::<f32>()?;
                self.sum_f32(&mut values)?;
                Tensor::from_vec(values, tensor.shape(), tensor.device())
            }
        }
    }

    /// The first rank's bytes, on every rank.
    ///
    /// # Errors
    /// As there.
    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>>;

    /// Everybody's bytes, by rank, on every rank.
    ///
    /// # Errors
    /// As there.
    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Returns when all have called it.
    ///
    /// # Errors
    /// As there.
    fn barrier(&self) -> Result<()>;
}

/// A process that trains alone.
struct Alone;

impl Communicator for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn sum(&self, _values: &mut [f64]) -> Result<()> {
        Ok(())
    }

    fn sum_f32(&self, _values: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        Ok(bytes)
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![bytes.to_vec()])
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }
}

/// What a training has asked of other ranks so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Calls.
    pub calls: u64,
    /// Bytes that this rank gave.
    pub bytes: u64,
    /// Seconds in those calls: on their way and waiting for others; of NCCL's sums only those of asking for them.
    pub seconds: f64,
}

/// The ranks that train together, as one of them sees them. Clones are the same.
#[derive(Clone)]
pub struct Ranks {
    to_others: Arc<dyn Communicator>,
    counts: Arc<[AtomicU64; 3]>,
}

impl fmt::Debug for Ranks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ranks({} of {})", self.rank(), self.size())
    }
}

impl Default for Ranks {
    fn default() -> Self {
        Self::alone()
    }
}

impl Ranks {
    /// One process alone: nothing is exchanged.
    pub fn alone() -> Self {
        Self::new(Alone)
    }

    /// Those behind a communicator.
    pub fn new(to_others: impl Communicator + 'static) -> Self {
        Self { to_others: Arc::new(to_others), counts: Arc::default() }
    }

    /// Which one this is, from zero.
    pub fn rank(&self) -> usize {
        self.to_others.rank()
    }

    /// How many there are.
    pub fn size(&self) -> usize {
        self.to_others.size()
    }

    /// Whether this is the one that writes.
    pub fn leads(&self) -> bool {
        self.rank() == 0
    }

    /// What was exchanged so far.
    pub fn traffic(&self) -> Traffic {
        let [calls, bytes, nanos] = [0, 1, 2].map(|i| self.counts[i].load(Ordering::Relaxed));
        Traffic { calls, bytes, seconds: nanos as f64 * 1e-9 }
    }

    /// Counts a call that gives `bytes`.
    fn counted<T>(&self, bytes: usize, call: impl FnOnce() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        let result = call();
        let nanos = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        for (count, more) in self.counts.iter().zip([1, bytes as u64, nanos]) {
            count.fetch_add(more, Ordering::Relaxed);
        }
        result
    }

    /// Replaces each number by its sum over all ranks.
    ///
    /// # Errors
    /// Those of the communicator.
    pub fn sum(&self, values: &mut [f64]) -> Result<()> {
        self.counted(size_of_val(values), || self.to_others.sum(values))
    }

    /// As [`sum`](Self::sum), in f32.
    ///
    /// # Errors
    /// Those of the communicator.
    pub fn sum_f32(&self, values: &mut [f32]) -> Result<()> {
        self.counted(size_of_val(values), || self.to_others.sum_f32(values))
    }

    /// The sum of a tensor of f32 or f64 over all ranks.
    ///
    /// # Errors
    /// Those of the communicator.
    pub fn sum_tensor(&self, tensor: &Tensor) -> Result<Tensor> {
        let bytes = tensor.elem_count() * tensor.dtype().size_in_bytes();
        self.counted(bytes, || self.to_others.sum_tensor(tensor))
    }

    /// Whether it is so on any rank.
    ///
    /// # Errors
    /// Those of the communicator.
    pub fn any(&self, here: bool) -> Result<bool> {
        let mut count = [f64::from(u8::from(here))];
        self.sum(&mut count)?;
        Ok(count[0] > 0.)
    }

    /// Everybody's bytes, by rank.
    ///
    /// # Errors
    /// Those of the communicator.
    pub fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.counted(bytes.len(), || self.to_others.gather(bytes))
    }

    /// Returns when all have called it.
    ///
    /// # Errors
    /// Those of the communicator.
    pub fn barrier(&self) -> Result<()> {
        self.counted(0, || self.to_others.barrier())
    }

    /// What `find` says on the first rank, which alone calls it, on every rank.
    ///
    /// # Errors
    /// Those of `find`, on every rank, and those of the communicator.
    pub fn from_first<T: Serialize + DeserializeOwned>(
        &self,
        find: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if self.size() == 1 {
            return find();
        }
        let (mine, bytes) = match self.leads() {
            false => (None, Vec::new()),
            true => {
                let found = find();
                let said = found.as_ref().map_err(crate::plain);
                let bytes = serde_json::to_vec(&said).map_err(Error::wrap)?;
                (Some(found), bytes)
            }
        };
        let bytes = self.counted(bytes.len(), || self.to_others.broadcast(bytes))?;
        // The first rank keeps what it has: text need not give every bit back.
        if let Some(found) = mine {
            return found;
        }
        match serde_json::from_slice::<std::result::Result<T, String>>(&bytes) {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(message)) => Err(of_rank(0, &message)),
            Err(e) => bail!("ranks: expected an answer of rank 0: {e}"),
        }
    }

    /// The part of every batch that this rank makes.
    pub(crate) fn share(&self) -> Result<Share> {
        Share::new(self.rank(), self.size())
    }

    /// What every rank has by itself, where all have it.
    ///
    /// # Errors
    /// On every rank that of the first one in need; those of the communicator.
    pub fn all_well<T>(&self, found: Result<T>) -> Result<T> {
        if self.size() == 1 {
            return found;
        }
        let (value, said) = match found {
            Ok(value) => (Some(value), Ok(Vec::new())),
            Err(e) => (None, Err(e)),
        };
        self.gather_well(said)?;
        value.ok_or_else(|| Error::Msg("ranks: expected a value where all are well".to_owned()))
    }

    /// Everybody's bytes, by rank, where all have some.
    ///
    /// # Errors
    /// Those of [`all_well`](Self::all_well).
    fn gather_well(&self, found: Result<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        /// Before the bytes, and before what is wrong.
        const MARKS: [u8; 2] = [0, 1];
        let said = match &found {
            Ok(bytes) => [&MARKS[..1], bytes].concat(),
            Err(e) => [&MARKS[1..], crate::plain(e).as_bytes()].concat(),
        };
        let mut all = self.gather(&said)?;
        match (all.iter().position(|said| said.first() != Some(&MARKS[0])), found) {
            (Some(rank), Err(e)) if rank == self.rank() => Err(e),
            (Some(rank), _) => {
                let text = all[rank].get(1..).unwrap_or_default();
                Err(of_rank(rank, &String::from_utf8_lossy(text)))
            }
            (None, _) => {
                all.iter_mut().for_each(|bytes| drop(bytes.drain(..1)));
                Ok(all)
            }
        }
    }

    /// The replicas that layers, normalisers and losses see; none for a process alone, so that it computes what it always did.
    pub fn replicas(&self) -> Option<Replicas> {
        if self.size() == 1 {
            return None;
        }
        let ranks = self.clone();
        let sum = Arc::new(move |values: &mut [f64]| ranks.sum(values));
        Replicas::new(self.rank(), self.size(), sum).ok()
    }
}

/// What another rank has said to all.
fn of_rank(rank: usize, message: &str) -> Error {
    Error::Msg(format!("rank {rank}: {message}"))
}

/// Whether an error is one that another rank has said to all, and says itself.
pub fn is_of_another_rank(message: &str) -> bool {
    let rank = message.strip_prefix("rank ").and_then(|rest| rest.split_once(": "));
    rank.is_some_and(|(rank, _)| rank.parse::<usize>().is_ok())
}
