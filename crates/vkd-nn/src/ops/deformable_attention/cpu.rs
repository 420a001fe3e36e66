//! Sampling on slices: one head of one query at a time forward, one head of a sample at a time backward.

use crate::ops::{PARALLEL_FROM, Real};
use faer::MatMut;
use faer::prelude::ReborrowMut;
use rayon::prelude::*;
use vkd_norm::lanes::{sums, vectorized};

/// One map among the values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Level {
    /// Pixels before it.
    pub(super) start: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

/// Sizes of the operands.
#[derive(Clone, Debug)]
pub(super) struct Geometry {
    pub(super) batch: usize,
    pub(super) queries: usize,
    pub(super) heads: usize,
    pub(super) dim: usize,
    pub(super) points: usize,
    /// Pixels of all levels.
    pub(super) pixels: usize,
    pub(super) levels: Vec<Level>,
}

/// Where a position lies: the two rows and columns around it, where the map has them, and its distances to the first ones.
#[derive(Clone, Copy)]
struct Cell {
    rows: [Option<usize>; 2],
    cols: [Option<usize>; 2],
    down: f64,
    right: f64,
}

/// What a point takes from the map.
enum Sample {
    Inside(Cell),
    /// Further from every pixel than one.
    Outside,
    /// A position or a weight that is none.
    Nan,
}

/// The pixels on both sides of `position`, and its distance to the first; none where it is further than one from all.
#[inline(always)]
fn between(position: f64, length: usize) -> Option<([Option<usize>; 2], f64)> {
    if !(position > -1. && position < length as f64) {
        return None;
    }
    let first = position.floor();
    // The first one is -1 at least.
    let second = (first + 1.) as usize;
    Some(([second.checked_sub(1), Some(second).filter(|&at| at < length)], position - first))
}

impl Level {
    /// In f64 whatever the dtype: a position among hundreds of pixels has few digits of a fraction left in f32.
    #[inline(always)]
    fn sample<T: Real>(&self, location: &[T], weight: T) -> Sample {
        let (x, y) = (location[0].wide(), location[1].wide());
        if x.is_nan() || y.is_nan() || weight.wide().is_nan() {
            return Sample::Nan;
        }
        let across = between(x * self.cols as f64 - 0.5, self.cols);
        let along = between(y * self.rows as f64 - 0.5, self.rows);
        match (along, across) {
            (Some((rows, down)), Some((cols, right))) => {
                Sample::Inside(Cell { rows, cols, down, right })
            }
            _ => Sample::Outside,
        }
    }

    /// The pixels that the map has of the four around a cell: whether each is below and on the right, its number and its share.
    #[inline(always)]
    fn corners(&self, cell: Cell, mut visit: impl FnMut([usize; 2], usize, f64)) {
        let rows = [(0, cell.rows[0], 1. - cell.down), (1, cell.rows[1], cell.down)];
        let cols = [(0, cell.cols[0], 1. - cell.right), (1, cell.cols[1], cell.right)];
        for (i, row, down) in rows {
            for (j, col, right) in cols {
                if let (Some(row), Some(col)) = (row, col) {
                    visit([i, j], self.start + row * self.cols + col, down * right);
                }
            }
        }
    }
}

impl Geometry {
    /// Points of one head and query, over all levels.
    fn taps(&self) -> usize {
        self.levels.len() * self.points
    }

    fn large(&self) -> bool {
        self.batch * self.queries * self.heads * self.dim * self.taps() >= PARALLEL_FROM
    }

    /// Where the values of a pixel begin.
    #[inline(always)]
    fn pixel(&self, sample: usize, pixel: usize, head: usize) -> usize {
        ((sample * self.pixels + pixel) * self.heads + head) * self.dim
    }

    /// The level of a tap.
    #[inline(always)]
    fn level(&self, tap: usize) -> &Level {
        &self.levels[tap / self.points]
    }
}

#[inline(always)]
fn add_scaled<T: Real>(sums: &mut [T], values: &[T], scale: T) {
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += *value * scale);
}

pub(super) fn forward<T: Real>(
    g: &Geometry,
    values: &[T],
    locations: &[T],
    weights: &[T],
) -> Vec<T> {
    let mut out = vec![T::zero(); g.batch * g.queries * g.heads * g.dim];
    if out.is_empty() {
        return out;
    }
    let one = |(at, out): (usize, &mut [T])| {
        let (sample, head) = (at / (g.queries * g.heads), at % g.heads);
        vectorized(
            #[inline(always)]
            || {
                for tap in 0..g.taps() {
                    let k = at * g.taps() + tap;
                    let (level, weight) = (g.level(tap), weights[k]);
                    match level.sample(&locations[2 * k..2 * k + 2], weight) {
                        Sample::Outside => {}
                        Sample::Nan => out.fill(T::nan()),
                        Sample::Inside(cell) => level.corners(
                            cell,
                            #[inline(always)]
                            |_, pixel, share| {
                                let value = &values[g.pixel(sample, pixel, head)..][..g.dim];
                                add_scaled(out, value, T::from_f64(share) * weight);
                            },
                        ),
                    }
                }
            },
        );
    };
    if g.large() {
        out.par_chunks_mut(g.dim).enumerate().for_each(one);
    } else {
        out.chunks_mut(g.dim).enumerate().for_each(one);
    }
    out
}

/// The columns of every head of every sample of `(B, rows, heads · width)`, in order: what one task writes.
fn by_head<T>(values: &mut [T], rows: usize, heads: usize, width: usize) -> Vec<MatMut<'_, T>> {
    let mut parts = Vec::new();
    for sample in values.chunks_exact_mut((rows * heads * width).max(1)) {
        let mut rest = MatMut::from_row_major_slice_mut(sample, rows, heads * width);
        for _ in 0..heads {
            let (part, others) = rest.split_at_col_mut(width);
            parts.push(part);
            rest = others;
        }
    }
    parts
}

/// A row of such columns.
#[inline(always)]
fn row<'a, T>(part: &'a mut MatMut<'_, T>, at: usize) -> &'a mut [T] {
    // Rows of a row-major matrix are contiguous.
    part.rb_mut().row_mut(at).try_as_row_major_mut().map_or(&mut [], |row| row.as_slice_mut())
}

/// The gradients of values, locations and weights.
///
/// One head of one sample is summed by one thread, in the order of its queries and taps, so no bit depends on their number.
pub(super) fn backward<T: Real>(
    g: &Geometry,
    values: &[T],
    locations: &[T],
    weights: &[T],
    grad: &[T],
) -> [Vec<T>; 3] {
    let mut of_values = vec![T::zero(); values.len()];
    let mut of_locations = vec![T::zero(); locations.len()];
    let mut of_weights = vec![T::zero(); weights.len()];
    let parts = by_head(&mut of_values, g.pixels, g.heads, g.dim)
        .into_iter()
        .zip(by_head(&mut of_locations, g.queries, g.heads, 2 * g.taps()))
        .zip(by_head(&mut of_weights, g.queries, g.heads, g.taps()));
    let parts: Vec<_> = parts.map(|((v, l), w)| [v, l, w]).collect();
    let work = |(at, part): (usize, [MatMut<'_, T>; 3])| {
        let (sample, head) = (at / g.heads, at % g.heads);
        vectorized(
            #[inline(always)]
            || head_backward(g, [values, locations, weights, grad], sample, head, part),
        );
    };
    if g.large() {
        parts.into_par_iter().enumerate().for_each(work);
    } else {
        parts.into_iter().enumerate().for_each(work);
    }
    [of_values, of_locations, of_weights]
}

/// With `v` the values at the corners, `s` their shares and `u` the upstream gradient: the corners get `weight · s · u`, the
/// weight `Σ s ⟨u, v⟩`, and the location the weight times the slopes of that sum, per unit of the map's size.
#[inline(always)]
fn head_backward<T: Real>(
    g: &Geometry,
    [values, locations, weights, grad]: [&[T]; 4],
    sample: usize,
    head: usize,
    [mut of_values, mut of_locations, mut of_weights]: [MatMut<'_, T>; 3],
) {
    for query in 0..g.queries {
        let at = (sample * g.queries + query) * g.heads + head;
        let upstream = &grad[at * g.dim..][..g.dim];
        let location_row = row(&mut of_locations, query);
        let weight_row = row(&mut of_weights, query);
        for tap in 0..g.taps() {
            let k = at * g.taps() + tap;
            let (level, weight) = (g.level(tap), weights[k]);
            let cell = match level.sample(&locations[2 * k..2 * k + 2], weight) {
                Sample::Outside => continue,
                Sample::Nan => {
                    weight_row[tap] = T::nan();
                    location_row[2 * tap..2 * tap + 2].fill(T::nan());
                    continue;
                }
                Sample::Inside(cell) => cell,
            };
            let mut dots = [[0f64; 2]; 2];
            let mut total = 0f64;
            level.corners(
                cell,
                #[inline(always)]
                |[i, j], pixel, share| {
                    let value = &values[g.pixel(sample, pixel, head)..][..g.dim];
                    let [dot] = sums::<T, 2, 1, 8>(
                        [upstream, value],
                        #[inline(always)]
                        |[u, v]| [u * v],
                    );
                    dots[i][j] = dot;
                    total += share * dot;
                    let target = row(&mut of_values, pixel);
                    add_scaled(target, upstream, T::from_f64(share) * weight);
                },
            );
            let [[a, b], [c, d]] = dots;
            let across = (1. - cell.down) * (b - a) + cell.down * (d - c);
            let along = (1. - cell.right) * (c - a) + cell.right * (d - b);
            let weight = weight.wide();
            weight_row[tap] = T::from_f64(total);
            location_row[2 * tap] = T::from_f64(weight * level.cols as f64 * across);
            location_row[2 * tap + 1] = T::from_f64(weight * level.rows as f64 * along);
        }
    }
}
