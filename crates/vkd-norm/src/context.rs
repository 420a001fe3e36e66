//! What a layer may know of the run: mode, seed, step and the samples of the batch.

use crate::Replicas;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

/// Passed to every layer that has randomness or statistics; pure layers don't take one.
///
/// Every random number is a function of `(seed, layer name, step, sample id)`, so that a result depends
/// neither on the order of layers nor on how a batch is split among workers.
#[derive(Clone, Debug, PartialEq)]
pub struct Context {
    /// Training (random layers active, batch statistics) or evaluation.
    pub train: bool,
    /// Seed of the run.
    pub seed: u64,
    /// Optimiser step, counted from 0.
    pub step: u64,
    /// Identity of each row of the batch in its data set; empty where nothing random is drawn per sample.
    pub sample_ids: Arc<[u64]>,
    /// Where this batch is a part of one that replicas share: what is a function of the whole batch is then computed over all
    /// of them. None for a model that trains alone.
    pub replicas: Option<Replicas>,
}

impl Context {
    /// Context of one training step.
    pub fn train(seed: u64, step: u64, sample_ids: impl Into<Arc<[u64]>>) -> Self {
        Self { train: true, seed, step, sample_ids: sample_ids.into(), replicas: None }
    }

    /// The same of one of the replicas that share the batch.
    pub fn with_replicas(self, replicas: Option<Replicas>) -> Self {
        Self { replicas, ..self }
    }

    /// Context of evaluation: nothing is drawn.
    pub fn eval() -> Self {
        Self { train: false, seed: 0, step: 0, sample_ids: Arc::from([]), replicas: None }
    }

    /// The random stream of `name` for one sample at this step.
    pub fn rng(&self, name: &str, sample_id: u64) -> ChaCha8Rng {
        stream(self.seed, name, self.step, sample_id)
    }
}

/// The random stream that belongs to `(seed, name, step, sample)`: ChaCha8 keyed by the four, the name through FNV-1a.
///
/// Stable across platforms and releases; a change of it is a breaking change, because it changes every run.
pub fn stream(seed: u64, name: &str, step: u64, sample: u64) -> ChaCha8Rng {
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let mut key = [0u8; 32];
    for (slot, word) in key.chunks_exact_mut(8).zip([seed, hash, step, sample]) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngCore;

    #[test]
    fn every_part_of_the_key_matters_and_the_stream_is_pinned() {
        let first = |s, n, t, i| stream(s, n, t, i).next_u64();
        let base = first(1, "drop", 2, 3);
        assert_eq!(base, first(1, "drop", 2, 3));
        // Recorded once: another value changes every run.
        assert_eq!(base, 0x18f0_f5b1_a599_1aa1);
        for other in [
            first(2, "drop", 2, 3),
            first(1, "dros", 2, 3),
            first(1, "drop", 3, 3),
            first(1, "drop", 2, 4),
        ] {
            assert_ne!(base, other);
        }
        assert_eq!(Context::train(1, 2, [3]).rng("drop", 3).next_u64(), base);
    }
}
