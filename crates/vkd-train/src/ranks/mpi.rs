//! Ranks that MPI started: Open MPI's `mpirun`, Slurm's `srun`.

use super::{Communicator, Ranks};
use candle_core::{Result, bail};
use mpi::Threading;
use mpi::collective::{CommunicatorCollectives, Root, SystemOperation};
use mpi::datatype::PartitionMut;
use mpi::environment::Universe;
use mpi::topology::{Communicator as _, SimpleCommunicator};
use std::sync::{Mutex, PoisonError};

/// MPI, from its start to its end; kept by whoever asked for it, to the end of the process.
pub struct MpiSession(Universe);

impl MpiSession {
    /// Ends the processes of all ranks at once. For an error of one rank: the others wait for it in a call that never comes.
    pub fn abort(&self) -> ! {
        self.0.world().abort(1)
    }
}

struct Mpi {
    rank: usize,
    size: usize,
    /// MPI was promised one call at a time; the backward pass may run in another thread than the loop.
    one: Mutex<()>,
}

/// Starts MPI; the ranks are those of its world.
///
/// # Errors
/// MPI was started before, or does not let several threads call it in turn.
pub fn mpi_ranks() -> Result<(MpiSession, Ranks)> {
    let Some((universe, threading)) = mpi::initialize_with_threading(Threading::Serialized) else {
        bail!("mpi: expected to start it, got one that is running")
    };
    if threading < Threading::Serialized {
        bail!("mpi: expected calls of several threads in turn, got {threading:?}")
    }
    let world = universe.world();
    let (rank, size) = (world.rank() as usize, world.size() as usize);
    Ok((MpiSession(universe), Ranks::new(Mpi { rank, size, one: Mutex::new(()) })))
}

/// Numbers of one call: MPI counts in 32 bits.
const MOST: usize = 1 << 28;

impl Mpi {
    /// One call after the other; a handle of the world is not kept, because it must not be shared.
    fn with<T>(&self, call: impl FnOnce(&SimpleCommunicator) -> T) -> T {
        let _one = self.one.lock().unwrap_or_else(PoisonError::into_inner);
        call(&SimpleCommunicator::world())
    }

    fn summed<T: Copy>(&self, values: &mut [T]) -> Result<()>
    where
        [T]: mpi::datatype::Buffer + mpi::datatype::BufferMut,
    {
        self.with(|world| {
            for part in values.chunks_mut(MOST) {
                let own = part.to_vec();
                world.all_reduce_into(&own[..], part, SystemOperation::sum());
            }
        });
        Ok(())
    }
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn sum(&self, values: &mut [f64]) -> Result<()> {
        self.summed(values)
    }

    fn sum_f32(&self, values: &mut [f32]) -> Result<()> {
        self.summed(values)
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let mut bytes = bytes;
        self.with(|world| {
            let first = world.process_at_rank(0);
            let mut length = bytes.len() as u64;
            first.broadcast_into(&mut length);
            bytes.resize(length as usize, 0);
            for part in bytes.chunks_mut(MOST) {
                first.broadcast_into(part);
            }
        });
        Ok(bytes)
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        // One byte more, so that no buffer is empty: the address of an empty one is what Open MPI calls `MPI_IN_PLACE`.
        let bytes = &[&[0], bytes].concat()[..];
        let (all, counts) = self.with(|world| {
            let mut counts = vec![0i32; self.size];
            let own = i32::try_from(bytes.len()).unwrap_or(-1);
            world.all_gather_into(&own, &mut counts[..]);
            if counts.iter().any(|count| *count < 0) {
                return (Vec::new(), counts);
            }
            let places: Vec<i32> = counts
                .iter()
                .scan(0i32, |at, count| {
                    let here = *at;
                    *at = at.saturating_add(*count);
                    Some(here)
                })
                .collect();
            let mut all = vec![0u8; counts.iter().map(|count| *count as usize).sum()];
            let mut parts = PartitionMut::new(&mut all[..], &counts[..], &places[..]);
            world.all_gather_varcount_into(bytes, &mut parts);
            (all, counts)
        });
        let mut rest = &all[..];
        let mut parts = Vec::with_capacity(self.size);
        for (rank, count) in counts.into_iter().enumerate() {
            match usize::try_from(count).ok().and_then(|count| rest.split_at_checked(count)) {
                Some((part, others)) => {
                    parts.push(part.get(1..).unwrap_or_default().to_vec());
                    rest = others;
                }
                None => bail!("mpi: expected less than 2 GiB of rank {rank}, got more"),
            }
        }
        Ok(parts)
    }

    fn barrier(&self) -> Result<()> {
        self.with(CommunicatorCollectives::barrier);
        Ok(())
    }
}
