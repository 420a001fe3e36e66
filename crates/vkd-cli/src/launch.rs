//! Whether MPI started this process as one of several, and the ranks if it did.

use candle_core::{Result, bail};
use std::env::var;
use vkd_train::{Ranks, Worker};

/// What tells of a launch: the number of processes, by launcher (Open MPI, MPICH and Slurm's PMI, a step of Slurm).
const SIZES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];

/// How many processes a launcher started; 1 without one.
pub(crate) fn size() -> usize {
    let of = |name: &&str| var(name).ok()?.parse::<usize>().ok();
    SIZES.iter().find_map(of).unwrap_or(1)
}

/// What tells which of the processes on one machine this is, by launcher.
#[cfg(all(feature = "mpi", unix))]
const LOCAL_RANKS: [&str; 3] = ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"];

/// The GPUs that CUDA shows to a process.
#[cfg(all(feature = "mpi", unix))]
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// The GPU of process `local` of a machine: of those that it is shown the one of its place; one alone is its own, as Slurm hands them
/// out. Where there is none of its place it sees none, and says so once it is to compute there.
#[cfg(any(all(feature = "mpi", unix), test))]
fn own_gpu(local: usize, shown: Option<&str>) -> String {
    match shown.map(|shown| shown.split(',').collect::<Vec<_>>()).as_deref() {
        None => local.to_string(),
        Some([one]) => (*one).to_owned(),
        Some(several) => several.get(local).copied().unwrap_or_default().to_owned(),
    }
}

/// To be one of several where a command has no use for them.
pub(crate) fn refused() -> Result<()> {
    bail!("vkd: expected one process, got {} from a launcher; only distill shares its work", size())
}

#[cfg(not(feature = "mpi"))]
pub(crate) fn together(_work: impl FnOnce(Ranks, Worker) -> Result<()>) -> Result<()> {
    bail!(
        "vkd distill: expected a vkd that was built with the feature mpi to train in {} processes (cargo build --release \
         --features mpi), got one without",
        size()
    )
}

/// Runs `work` as one rank of several. An error of one ends all: the others may wait for it in a call that never comes.
#[cfg(feature = "mpi")]
pub(crate) fn together(work: impl FnOnce(Ranks, Worker) -> Result<()>) -> Result<()> {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    one_thread()?;
    // Asks git, and MPI does not like to be forked.
    let worker = crate::worker::this_process(|who| crate::note(&format!("waits: {who}")));
    let (session, ranks) = vkd_train::mpi_ranks()?;
    if ranks.size() != size() {
        bail!(
            "mpi: expected the {} processes that a launcher started, got a world of {}: is the launcher that of the MPI library \
             that vkd was built with?",
            size(),
            ranks.size()
        )
    }
    let rank = ranks.rank();
    match catch_unwind(AssertUnwindSafe(|| work(ranks, worker))) {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(e)) => {
            let message = vkd_train::plain(&e);
            match vkd_train::is_of_another_rank(&message) {
                // That one says it itself, and ends this one.
                true => std::thread::sleep(std::time::Duration::from_secs(5)),
                false => crate::note(&format!("error: rank {rank}: {message}")),
            }
        }
        // The hook has told of it.
        Err(_) => crate::note(&format!("error: rank {rank} ends all")),
    }
    session.abort()
}

/// Starts this program anew with the environment of a worker, which has to be there from the start: one thread unless the user
/// wants more, and memory that is kept.
#[cfg(all(feature = "mpi", unix))]
fn one_thread() -> Result<()> {
    use std::os::unix::process::CommandExt;

    const MARK: &str = "VKD_RANK";
    if var(MARK).is_ok() {
        return Ok(());
    }
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1)).env(MARK, "1");
    let threads = var("RAYON_NUM_THREADS").unwrap_or_else(|_| "1".to_owned());
    command.env("CANDLE_NUM_THREADS", &threads).env("RAYON_NUM_THREADS", threads);
    for (name, value) in crate::worker::KEEP_MEMORY {
        command.env(name, value);
    }
    let local = LOCAL_RANKS.iter().find_map(|name| var(name).ok()?.parse().ok());
    if let Some(local) = local {
        command.env(VISIBLE, own_gpu(local, var(VISIBLE).ok().as_deref()));
    }
    Err(command.exec().into())
}

#[cfg(all(feature = "mpi", not(unix)))]
fn one_thread() -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::own_gpu;

    #[test]
    fn each_rank_of_a_machine_has_its_own_gpu() {
        assert_eq!(own_gpu(3, None), "3");
        assert_eq!(own_gpu(1, Some("4,GPU-a1,6")), "GPU-a1");
        // Slurm has given each of four tasks one.
        assert_eq!(own_gpu(2, Some("5")), "5");
        // Not that of another rank.
        assert_eq!(own_gpu(2, Some("0,1")), "");
    }
}
