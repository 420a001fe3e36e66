//! Replicas as threads: a sum over all of them.

use candle_core::Result;
use std::sync::{Arc, Barrier, Mutex, PoisonError};

/// Replaces each number by its sum over all replicas.
pub type Sum = Arc<dyn Fn(&mut [f64]) -> Result<()> + Send + Sync>;

/// A sum among `count` threads, by rank: all give, then all add up in the order of ranks.
///
/// A thread that leaves early makes the others wait for ever, so what runs in them must not fail on one alone.
pub fn sums_among(count: usize) -> Vec<Sum> {
    let barrier = Arc::new(Barrier::new(count));
    let given = Arc::new(Mutex::new(vec![Vec::new(); count]));
    let one = |rank: usize| -> Sum {
        let (barrier, given) = (barrier.clone(), given.clone());
        Arc::new(move |values| {
            let lock = || given.lock().unwrap_or_else(PoisonError::into_inner);
            lock()[rank] = values.to_vec();
            barrier.wait();
            let all = lock().clone();
            values.fill(0.);
            for of in &all {
                assert_eq!(of.len(), values.len(), "every replica must give as many numbers");
                values.iter_mut().zip(of).for_each(|(sum, v)| *sum += v);
            }
            barrier.wait();
            Ok(())
        })
    };
    (0..count).map(one).collect()
}
