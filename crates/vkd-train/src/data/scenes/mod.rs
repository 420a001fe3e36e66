//! Scenes: the embedded handwritten digits at several scales on one image, with overlap, clutter and noise.
//!
//! A scene is a function of (seed, part, index). Each part draws from digits of its own: those of the test are seen in no other.

mod paint;
mod write;

pub use write::write_scenes;

use super::{Dataset, Image};
use crate::augment::resize;
use crate::recipe::{DataConfig, ScenesConfig};
use candle_core::{Result, bail};
use paint::{Piece, paint};
use rand::Rng;
use vkd_nn::stream;
use vkd_tasks::Objects;

/// Digits for training and validation; the other 400 are the test's.
const DIGITS: [usize; 2] = [1197, 200];

/// From this share of ink on, of 255, a pixel belongs to a digit: a quarter.
const INK: u8 = 64;

/// Largest ratio of a digit's width to its height, and of its height to its width, in logarithm.
const STRETCH: f64 = 0.2;

/// Places that are tried for a digit.
const ATTEMPTS: usize = 30;

/// A part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Train,
    Validation,
    Test,
}

impl Part {
    /// In the order of the indices.
    pub(crate) const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// The name in files and random streams.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "val",
            Self::Test => "test",
        }
    }
}

/// Makes scenes.
pub(crate) struct Scenes {
    config: ScenesConfig,
    /// Every digit as ink of 0 to 255, 8×8, with its class; a list a part.
    digits: [Vec<(Image, u32)>; 3],
}

/// What is where in a scene.
struct Layout {
    clutter: Vec<Piece>,
    digits: Vec<Piece>,
    objects: Objects,
}

impl Scenes {
    /// Scenes as `config` says.
    ///
    /// # Errors
    /// Settings that can't be met, by their key.
    pub(crate) fn new(config: &ScenesConfig) -> Result<Self> {
        config.check()?;
        let data = Dataset::open(&DataConfig::digits(DIGITS[0], DIGITS[1]))?;
        let ink = |&index: &usize| -> Result<(Image, u32)> {
            let digit = data.image(index)?;
            let (width, height, values) = grey(&digit);
            // 0 to 16 in the file.
            let values = values.iter().map(|v| (u16::from(*v) * 255 / 16) as u8).collect();
            Ok((Image::new(width, height, 1, values)?, data.label(index)))
        };
        let part = |indices: &[usize]| indices.iter().map(ink).collect::<Result<Vec<_>>>();
        let digits = [part(&data.train)?, part(&data.validation)?, part(&data.test)?];
        Ok(Self { config: config.clone(), digits })
    }

    /// Number of scenes of a part.
    pub(crate) fn count(&self, part: Part) -> usize {
        match part {
            Part::Train => self.config.train,
            Part::Validation => self.config.validation,
            Part::Test => self.config.test,
        }
    }

    /// The index among all of a part's first scene.
    pub(crate) fn first(&self, part: Part) -> usize {
        Part::ALL
            .into_iter()
            .take_while(|other| *other != part)
            .map(|other| self.count(other))
            .sum()
    }

    /// The part of scene `index` of all, and its index there.
    ///
    /// # Errors
    /// An index beyond the last scene.
    pub(crate) fn locate(&self, index: usize) -> Result<(Part, u64)> {
        let mut rest = index;
        for part in Part::ALL {
            let count = self.count(part);
            if rest < count {
                return Ok((part, rest as u64));
            }
            rest -= count;
        }
        bail!("scenes: expected an index below {}, got {index}", index - rest)
    }

    /// Height and width.
    pub(crate) fn size(&self) -> usize {
        self.config.size
    }

    /// Scene `index` of a part: the image, and its digits with tight boxes in whole pixels.
    ///
    /// # Errors
    /// None for settings that were checked.
    pub(crate) fn scene(&self, part: Part, index: u64) -> Result<(Image, Objects)> {
        let layout = self.layout(part, index)?;
        let pieces: Vec<Piece> = layout.clutter.into_iter().chain(layout.digits).collect();
        let (size, channels, noise) = (self.config.size, self.config.channels, self.config.noise);
        let name = format!("scenes.{}.paint", part.name());
        let mut rng = stream(self.config.seed, &name, index, 0);
        Ok((paint([size, channels], &pieces, noise, &mut rng)?, layout.objects))
    }

    /// The objects of a scene alone, at a fifth of the cost.
    ///
    /// # Errors
    /// None for settings that were checked.
    pub(crate) fn objects(&self, part: Part, index: u64) -> Result<Objects> {
        Ok(self.layout(part, index)?.objects)
    }

    fn layout(&self, part: Part, index: u64) -> Result<Layout> {
        let c = &self.config;
        let name = format!("scenes.{}", part.name());
        let rng = &mut stream(c.seed, &name, index, 0);
        let pool = &self.digits[part as usize];
        let clutter = (0..rng.random_range(0..=c.clutter)).map(|_| self.fragment(pool, rng));
        let clutter = clutter.collect::<Result<_>>()?;
        let (mut digits, mut boxes, mut classes) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rng.random_range(c.objects[0]..=c.objects[1]) {
            let (digit, class) = &pool[rng.random_range(0..pool.len())];
            let height = self.side(rng);
            let width = height * rng.random_range(-STRETCH..=STRETCH).exp();
            let ink = enlarged(digit, [width, height])?;
            let Some(tight) = tight(&ink) else { continue };
            if let Some([left, top]) = self.place(tight, &boxes, rng) {
                boxes.push(moved(tight, left, top));
                classes.push(*class);
                digits.push(Piece::new(ink, [left, top], rng));
            }
        }
        Ok(Layout { clutter, digits, objects: Objects::new(boxes, classes, 10)? })
    }

    /// A digit's height.
    fn side(&self, rng: &mut impl Rng) -> f64 {
        let [least, largest] = self.config.scales;
        rng.random_range(least.ln()..=largest.ln()).exp()
    }

    /// A quarter of a digit's square or less, with strokes as thick as those of a whole one (after the cluttered digits of
    /// arXiv:1406.6247).
    fn fragment(&self, pool: &[(Image, u32)], rng: &mut impl Rng) -> Result<Piece> {
        let (width, _, values) = grey(&pool[rng.random_range(0..pool.len())].0);
        let side = rng.random_range(3..=width / 2);
        let (left, top) = (rng.random_range(0..=width - side), rng.random_range(0..=width - side));
        let rows = values.chunks_exact(width).skip(top).take(side);
        let cut = rows.flat_map(|row| &row[left..left + side]).copied().collect();
        let shown = self.side(rng) * side as f64 / width as f64;
        let ink = enlarged(&Image::new(side, side, 1, cut)?, [shown, shown])?;
        let (half, size) = ((shown / 2.) as i64, self.config.size as i64);
        let at = std::array::from_fn(|_| rng.random_range(-half..=size - half));
        Ok(Piece::new(ink, at, rng))
    }

    /// A place where the whole ink lies in the scene and covers no box too far, nor is covered so.
    fn place(&self, tight: [i64; 4], boxes: &[[f32; 4]], rng: &mut impl Rng) -> Option<[i64; 2]> {
        let [x0, y0, x1, y1] = tight;
        let size = self.config.size as i64;
        if x1 - x0 > size || y1 - y0 > size {
            return None;
        }
        (0..ATTEMPTS).find_map(|_| {
            let left = rng.random_range(-x0..=size - x1);
            let top = rng.random_range(-y0..=size - y1);
            let at = moved(tight, left, top);
            let free = |other: &[f32; 4]| covered(&at, other) <= self.config.overlap;
            boxes.iter().all(free).then_some([left, top])
        })
    }
}

/// The image id of scene `index` of all, in files as in memory.
pub(crate) fn image_id(index: usize) -> u64 {
    index as u64 + 1
}

/// The annotation ids of scene `index` of all: apart for all scenes, and never 0, which evaluators take for no match.
pub(crate) fn annotation_ids(index: usize) -> std::ops::RangeFrom<u64> {
    index as u64 * 1_000_000 + 1..
}

/// Width, height and bytes of a grey image.
fn grey(image: &Image) -> (usize, usize, &[u8]) {
    (image.width, image.height, &image.pixels)
}

/// Ink whose own pixels take `to` (width, height), with a pixel of paper around it, so that it isn't cut off where it ends.
fn enlarged(ink: &Image, to: [f64; 2]) -> Result<Image> {
    let (width, height, values) = grey(ink);
    let (wide, high) = (width + 2, height + 2);
    let mut framed = vec![0; wide * high];
    for (to, from) in framed.chunks_exact_mut(wide).skip(1).zip(values.chunks_exact(width)) {
        to[1..=width].copy_from_slice(from);
    }
    let pixels = |to: f64, own: usize, all: usize| (to * all as f64 / own as f64).round() as usize;
    let (across, down) = (pixels(to[0], width, wide), pixels(to[1], height, high));
    resize(&Image::new(wide, high, 1, framed)?, across.max(1), down.max(1))
}

/// The smallest box around the ink, in pixels.
fn tight(ink: &Image) -> Option<[i64; 4]> {
    let (width, _, values) = grey(ink);
    let mut found: Option<[i64; 4]> = None;
    for (at, _) in values.iter().enumerate().filter(|(_, value)| **value >= INK) {
        let (x, y) = ((at % width) as i64, (at / width) as i64);
        let [x0, y0, x1, y1] = found.unwrap_or([x, y, x + 1, y + 1]);
        found = Some([x0.min(x), y0.min(y), x1.max(x + 1), y1.max(y + 1)]);
    }
    found
}

fn moved([x0, y0, x1, y1]: [i64; 4], left: i64, top: i64) -> [f32; 4] {
    [x0 + left, y0 + top, x1 + left, y1 + top].map(|v| v as f32)
}

/// The share of the smaller of two boxes that the other covers.
fn covered(a: &[f32; 4], b: &[f32; 4]) -> f64 {
    let side = |i: usize| f64::from((a[i + 2].min(b[i + 2]) - a[i].max(b[i])).max(0.));
    let area = |c: &[f32; 4]| f64::from((c[2] - c[0]) * (c[3] - c[1]));
    side(0) * side(1) / area(a).min(area(b))
}

#[cfg(test)]
mod tests;
