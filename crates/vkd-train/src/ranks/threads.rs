//! Ranks that are threads of one process: for tests of what is computed, and for machines without MPI.

use super::{Communicator, Ranks};
use candle_core::{Result, bail};
use std::sync::{Arc, Condvar, Mutex};

/// What the threads share: one round of giving and taking after the other.
struct Table {
    state: Mutex<State>,
    turned: Condvar,
}

#[derive(Default)]
struct State {
    /// What was given in this round, by rank.
    given: Vec<Option<Vec<u8>>>,
    /// What all gave in the last full round.
    last: Arc<Vec<Vec<u8>>>,
    round: u64,
    /// Whose handle is gone.
    gone: Option<usize>,
}

struct Threads {
    rank: usize,
    size: usize,
    table: Arc<Table>,
}

/// `size` ranks, each for a thread of its own.
pub fn thread_ranks(size: usize) -> Vec<Ranks> {
    let state = State { given: vec![None; size], ..State::default() };
    let table = Arc::new(Table { state: Mutex::new(state), turned: Condvar::new() });
    (0..size).map(|rank| Ranks::new(Threads { rank, size, table: table.clone() })).collect()
}

impl Threads {
    /// Gives bytes and takes everybody's, by rank.
    fn exchange(&self, bytes: Vec<u8>) -> Result<Arc<Vec<Vec<u8>>>> {
        let broken = |_| candle_core::Error::Msg("ranks: expected no panic, got one".to_owned());
        let mut state = self.table.state.lock().map_err(|_| broken(()))?;
        let round = state.round;
        state.given[self.rank] = Some(bytes);
        if state.given.iter().all(Option::is_some) {
            state.last = Arc::new(state.given.iter_mut().filter_map(Option::take).collect());
            state.round += 1;
            self.table.turned.notify_all();
        }
        while state.round == round {
            if let Some(rank) = state.gone {
                bail!("ranks: expected rank {rank} to go on, got its end")
            }
            state = self.table.turned.wait(state).map_err(|_| broken(()))?;
        }
        Ok(state.last.clone())
    }

    fn summed<T: Copy + std::ops::AddAssign, const N: usize>(
        &self,
        values: &mut [T],
        to: impl Fn(T) -> [u8; N],
        from: impl Fn([u8; N]) -> T,
    ) -> Result<()> {
        let all = self.exchange(values.iter().flat_map(|v| to(*v)).collect())?;
        for (rank, given) in all.iter().enumerate() {
            if given.len() != values.len() * N {
                bail!(
                    "ranks: expected {} numbers of rank {rank}, got {}",
                    values.len(),
                    given.len() / N
                )
            }
            let (given, _) = given.as_chunks::<N>();
            for (value, given) in values.iter_mut().zip(given) {
                match rank {
                    0 => *value = from(*given),
                    _ => *value += from(*given),
                }
            }
        }
        Ok(())
    }
}

impl Communicator for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn sum(&self, values: &mut [f64]) -> Result<()> {
        self.summed(values, f64::to_le_bytes, f64::from_le_bytes)
    }

    fn sum_f32(&self, values: &mut [f32]) -> Result<()> {
        self.summed(values, f32::to_le_bytes, f32::from_le_bytes)
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        Ok(self.exchange(bytes)?[0].clone())
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(self.exchange(bytes.to_vec())?.to_vec())
    }

    fn barrier(&self) -> Result<()> {
        self.exchange(Vec::new()).map(|_| ())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Ok(mut state) = self.table.state.lock() {
            state.gone.get_or_insert(self.rank);
        }
        self.table.turned.notify_all();
    }
}
