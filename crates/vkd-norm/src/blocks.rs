//! Work on blocks of rows, side by side where there is enough of it.
//!
//! The blocks depend on the caller alone and results keep their order, so the number of threads changes no bit. Public for
//! vkd-loss, which shares it; no part of the stable interface.

use crate::dense::Real;
use rayon::prelude::*;
use std::ops::Range;

/// Below this many elements threads cost more than they give.
const PARALLEL_FROM: usize = 1 << 18;

/// Rows per block of about `elements` entries: a function of the row length alone.
pub fn rows_of(elements: usize, channels: usize) -> usize {
    // In eights, because kernels take several rows at a time.
    (elements / channels.max(1) / 8 * 8).clamp(8, 256)
}

/// Results of `f` on the ranges of `size` that make up `0..rows`, in order.
pub fn map<R: Send>(
    rows: usize,
    channels: usize,
    size: usize,
    f: impl Fn(Range<usize>) -> R + Sync + Send,
) -> Vec<R> {
    let blocks = rows.div_ceil(size);
    let block = |b: usize| f(b * size..rows.min((b + 1) * size));
    if rows.saturating_mul(channels) >= PARALLEL_FROM {
        (0..blocks).into_par_iter().map(block).collect()
    } else {
        (0..blocks).map(block).collect()
    }
}

/// A vector of `len` entries in rows of `channels`; `f` gets each block of `size` rows, all zero, with the index of its
/// first row, and its results come in order.
pub fn fill<T: Real, R: Send>(
    len: usize,
    channels: usize,
    size: usize,
    f: impl Fn(usize, &mut [T]) -> R + Sync + Send,
) -> (Vec<T>, Vec<R>) {
    let mut out: Vec<T> = if len >= PARALLEL_FROM {
        rayon::iter::repeat_n(T::zero(), len).collect()
    } else {
        vec![T::zero(); len]
    };
    // An empty tensor may have rows of any length.
    let block = size.saturating_mul(channels);
    let f = |(b, out): (usize, &mut [T])| f(b * size, out);
    let results = if len >= PARALLEL_FROM {
        out.par_chunks_mut(block).enumerate().map(f).collect()
    } else {
        out.chunks_mut(block).enumerate().map(f).collect()
    };
    (out, results)
}
