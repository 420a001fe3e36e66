//! n ranks, threads of one process, train what one does: losses and weights after 50 steps.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod laws;

use candle_core::Result;
use laws::{Law, Train, Trained, alone, compare};
use vkd_train::thread_ranks;

/// The same on `size` ranks, as the first one has it; all must end at the same bits.
fn together(size: usize, train: &Train) -> Result<Trained> {
    let all = std::thread::scope(|scope| {
        let ranks = thread_ranks(size);
        let threads: Vec<_> =
            ranks.into_iter().map(|ranks| scope.spawn(move || train(&ranks))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect::<Result<Vec<_>>>()
    })?;
    for (rank, (losses, variables)) in all.iter().enumerate() {
        assert!(variables == &all[0].1, "rank {rank} has variables of its own");
        assert_eq!(losses.is_empty(), rank > 0, "the first rank alone logs");
    }
    Ok(all.into_iter().next().unwrap())
}

/// One, two and four ranks end where one process does; one at the same bits.
fn hold(laws: Vec<Law>) -> Result<()> {
    for law in laws {
        let want = alone(&law)?;
        let one = together(1, &law.train)?;
        assert!(one == want, "{}: one rank is no rank", law.name);
        for size in [2, 4] {
            let what = format!("{}, {size} ranks", law.name);
            compare(&what, law.within, &together(size, &law.train)?, &want);
        }
    }
    Ok(())
}

#[test]
fn classification_with_every_normaliser() -> Result<()> {
    hold(laws::classification_with_every_normaliser())
}

#[test]
fn classification_with_batch_norm_mixing_and_relations() -> Result<()> {
    hold(laws::classification_with_batch_norm_mixing_and_relations())
}

#[test]
fn single_precision_is_as_near_as_rounding_lets_it() -> Result<()> {
    hold(laws::single_precision())
}

#[test]
fn detection_by_objects_of_the_whole_batch() -> Result<()> {
    hold(laws::detection_by_objects_of_the_whole_batch())
}

#[test]
fn generation_by_every_covariance() -> Result<()> {
    hold(laws::generation_by_every_covariance())
}
