//! Pixels of a scene.

use super::{Image, grey};
use candle_core::Result;
use rand::Rng;
use rand_distr::StandardNormal;

/// Least and largest value of paper and of ink, as shares of the range: they never meet.
const PAPER: [f32; 2] = [0., 0.35];
const INK: [f32; 2] = [0.5, 1.];

/// Ink that lies somewhere.
pub(super) struct Piece {
    /// How much ink each pixel has, 0 to 255.
    ink: Image,
    /// Place of its upper left corner, which may be outside.
    at: [i64; 2],
    color: [f32; 3],
}

impl Piece {
    /// `ink` at (left, top) in a colour that is drawn.
    pub(super) fn new(ink: Image, at: [i64; 2], rng: &mut impl Rng) -> Self {
        Self { ink, at, color: color(INK, rng) }
    }
}

fn color([low, high]: [f32; 2], rng: &mut impl Rng) -> [f32; 3] {
    std::array::from_fn(|_| rng.random_range(low..=high))
}

/// Paper that goes from one colour to another, the pieces on it one after the other, and noise over all.
pub(super) fn paint(
    [size, channels]: [usize; 2],
    pieces: &[Piece],
    noise: f64,
    rng: &mut impl Rng,
) -> Result<Image> {
    let (from, to) = (color(PAPER, rng), color(PAPER, rng));
    let mut canvas = Vec::with_capacity(size * size * channels);
    for y in 0..size {
        for x in 0..size {
            let share = (x + y) as f32 / (2 * size) as f32;
            canvas.extend((0..channels).map(|c| from[c] + share * (to[c] - from[c])));
        }
    }
    for piece in pieces {
        let (width, _, ink) = grey(&piece.ink);
        for (y, row) in (piece.at[1]..).zip(ink.chunks_exact(width)) {
            for (x, ink) in (piece.at[0]..).zip(row) {
                let inside = |v: i64| usize::try_from(v).ok().filter(|v| *v < size);
                let (Some(x), Some(y)) = (inside(x), inside(y)) else { continue };
                let share = f32::from(*ink) / 255.;
                let pixel = &mut canvas[(y * size + x) * channels..][..channels];
                for (value, color) in pixel.iter_mut().zip(piece.color) {
                    *value += share * (color - *value);
                }
            }
        }
    }
    let bytes = canvas.into_iter().map(|value| {
        let noise =
            if noise > 0. { noise as f32 * rng.sample::<f32, _>(StandardNormal) } else { 0. };
        // Saturates at both ends.
        ((value + noise) * 255.).round() as u8
    });
    Image::new(size, size, channels, bytes.collect())
}
