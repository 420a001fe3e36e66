//! The laws of `ranks_laws.rs` with ranks that MPI starts: this program starts itself under `mpirun`, with one rank, two and four.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

#[cfg(feature = "mpi")]
mod laws;

#[cfg(not(feature = "mpi"))]
fn main() {
    println!("SKIPPED: built without the feature mpi");
}

#[cfg(feature = "mpi")]
fn main() {
    match std::env::var_os("OMPI_COMM_WORLD_SIZE").or(std::env::var_os("PMI_SIZE")) {
        Some(_) => rank(),
        None => start(),
    }
}

/// What `cargo test` runs.
#[cfg(feature = "mpi")]
fn start() {
    use std::process::Command;

    let mpirun = |ranks: &str| {
        let mut command = Command::new("mpirun");
        command.args(["--oversubscribe", "--bind-to", "none", "-n", ranks]);
        // A container's superuser; ranks that wait give their core to others.
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        command.env("OMPI_MCA_mpi_yield_when_idle", "1");
        command
    };
    if !mpirun("2").arg("true").output().is_ok_and(|o| o.status.success()) {
        return println!("SKIPPED: mpirun is not installed, or can't start two processes");
    }
    for ranks in ["1", "2", "4"] {
        let mut command = mpirun(ranks);
        command.arg(std::env::current_exe().unwrap());
        command.env("RAYON_NUM_THREADS", "1").env("CANDLE_NUM_THREADS", "1");
        assert!(command.status().unwrap().success(), "{ranks} ranks");
    }
}

/// One rank of several: each law with the others, against what this one does alone.
#[cfg(feature = "mpi")]
fn rank() {
    use laws::{alone, compare};

    let (session, ranks) = vkd_train::mpi_ranks().unwrap();
    let held = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let all = [
            laws::classification_with_every_normaliser(),
            laws::classification_with_batch_norm_mixing_and_relations(),
            laws::single_precision(),
            laws::detection_by_objects_of_the_whole_batch(),
            laws::generation_by_every_covariance(),
        ];
        for law in all.into_iter().flatten() {
            let what = format!("{}, rank {} of {}", law.name, ranks.rank(), ranks.size());
            let want = alone(&law).unwrap();
            let got = (law.train)(&ranks).unwrap();
            assert_eq!(got.0.is_empty(), !ranks.leads(), "the first rank alone logs");
            compare(&what, law.within, &got, &want);
            assert!(ranks.size() > 1 || got == want, "{what}: one rank is no rank");
            if ranks.leads() {
                println!("{} on {} ranks: as one", law.name, ranks.size());
            }
        }
    }));
    if held.is_err() {
        session.abort()
    }
}
