//! Transforms of images with boxes: a box goes where its pixels go.
//!
//! Draws are keyed by (seed, the transform's name, epoch, sample). Pixels are resampled as [`resize`](super::resize) does it,
//! where DETR and ViDT take the bilinear filter.

use super::flip;
use super::resize::{self, Region, resize_region};
use crate::data::Image;
use crate::data::detection::size;
use crate::recipe::{BoxCropConfig, DetectionDataConfig};
use candle_core::Result;
use rand::Rng;
use vkd_models::Resize;
use vkd_nn::stream;
use vkd_tasks::Objects;

/// An image and what is to be found in it.
pub(crate) type Marked = (Image, Objects);

/// How a training image is shown: flip, crop, scale. Drawn before the image is read, so that its size is known without it.
#[derive(Clone, Copy)]
pub(crate) struct Look {
    flip: bool,
    /// Height and width before the crop, and what is cut out.
    crop: Option<([usize; 2], Region)>,
    least_visible: f64,
    /// Height and width in the end.
    pub(crate) size: [usize; 2],
}

impl Look {
    /// That of epoch `epoch` at image `id` of height and width `from`.
    ///
    /// # Errors
    /// More pixels than a resize makes.
    pub(crate) fn draw(
        from: [usize; 2],
        config: &DetectionDataConfig,
        seed: u64,
        epoch: u64,
        id: u64,
    ) -> Result<Self> {
        let rng = |name: &str| stream(seed, name, epoch, id);
        let augment = &config.augment;
        let flip = augment.flip > 0. && rng("boxes.flip").random_bool(augment.flip);
        let (mut size, mut crop) = (from, None);
        if let Some(ranges) = &augment.crop {
            let mut rng = rng("boxes.crop");
            if rng.random_bool(ranges.probability) {
                if let Some(side) = pick(&ranges.sides, &mut rng) {
                    size = allowed(size, scaled(size, side, None, 1))?;
                }
                let region = draw(size, ranges, &mut rng);
                crop = Some((size, region));
                size = [region.height, region.width];
            }
        }
        if let Some(side) = pick(&config.sides, &mut rng("boxes.side")) {
            size = allowed(size, scaled(size, side, config.longest, config.multiple))?;
        }
        Ok(Self { flip, crop, least_visible: augment.least_visible, size })
    }

    /// The image and its objects, as they are stored, in this look.
    pub(crate) fn show(&self, marked: Marked) -> Result<Marked> {
        let mut marked = if self.flip { flipped(marked) } else { marked };
        if let Some((before, region)) = self.crop {
            marked = cropped(resized(marked, before)?, region, self.least_visible);
        }
        resized(marked, self.size)
    }
}

/// `to`, where an image of `from` can be brought to it.
fn allowed(from: [usize; 2], to: [usize; 2]) -> Result<[usize; 2]> {
    if from != to {
        resize::check(to[1], to[0])?;
    }
    Ok(to)
}

/// An image as evaluation sees it: nothing random.
pub(crate) fn plain(marked: Marked, resize: Option<Resize>) -> Result<Marked> {
    match resize {
        Some(Resize { side, longest, multiple }) => {
            let to = scaled(size(&marked.0), side, longest, multiple);
            resized(marked, to)
        }
        None => Ok(marked),
    }
}

fn pick(sides: &[usize], rng: &mut impl Rng) -> Option<usize> {
    (!sides.is_empty()).then(|| sides[rng.random_range(0..sides.len())])
}

/// Left and right exchanged.
fn flipped((image, objects): Marked) -> Marked {
    let width = size(&image)[1] as f32;
    let objects = placed(objects, |[x0, y0, x1, y1]| [width - x1, y0, width - x0, y1]);
    (flip::flip(image), objects)
}

/// Objects at other corners, without those whose area is lost in rounding.
fn placed(objects: Objects, to: impl Fn([f32; 4]) -> [f32; 4]) -> Objects {
    let all = objects.boxes.into_iter().map(to).zip(objects.classes);
    let (boxes, classes): (Vec<_>, Vec<_>) =
        all.filter(|([x0, y0, x1, y1], _)| x1 > x0 && y1 > y0).unzip();
    Objects { boxes, classes }
}

/// Height and width at which the shorter side is `side`, the longer at most `longest`, and both are multiples of `multiple`.
fn scaled(
    [height, width]: [usize; 2],
    side: usize,
    longest: Option<usize>,
    multiple: usize,
) -> [usize; 2] {
    let (short, long) = (height.min(width) as f64, height.max(width) as f64);
    let mut side = side as f64;
    if let Some(longest) = longest.map(|l| l as f64)
        && long / short * side > longest
    {
        side = (longest * short / long).round().max(1.);
    }
    // The shorter side as it is; the other rounded down, as DETR does, but not beyond `longest`, where a shorter side that was
    // rounded up would take it.
    [height, width].map(|length| {
        let length = (side * length as f64 / short) as usize;
        let length = longest.map_or(length, |longest| length.min(longest));
        (length / multiple * multiple).max(multiple)
    })
}

/// An image and its boxes at another height and width.
fn resized((image, objects): Marked, to: [usize; 2]) -> Result<Marked> {
    let from = size(&image);
    if from == to {
        return Ok((image, objects));
    }
    let [down, across] = [0, 1].map(|i| to[i] as f32 / from[i] as f32);
    let objects =
        placed(objects, |[x0, y0, x1, y1]| [x0 * across, y0 * down, x1 * across, y1 * down]);
    Ok((resize::resize(&image, to[1], to[0])?, objects))
}

/// Both sides uniform between `least` and `most` or what the image has, then the place.
fn draw([height, width]: [usize; 2], crop: &BoxCropConfig, rng: &mut impl Rng) -> Region {
    let mut side = |length: usize| {
        rng.random_range(crop.least.min(length)..=crop.most.min(length).max(crop.least.min(length)))
    };
    let (w, h) = (side(width), side(height));
    let (top, left) = (rng.random_range(0..=height - h), rng.random_range(0..=width - w));
    Region { left, top, width: w, height: h }
}

/// A region of an image, with the parts of its boxes that lie in it, where as much as `least_visible` of their area is left.
fn cropped((image, objects): Marked, region: Region, least_visible: f64) -> Marked {
    let (left, top) = (region.left as f32, region.top as f32);
    let (width, height) = (region.width as f32, region.height as f32);
    let mut kept = Objects::default();
    for (corners, class) in objects.boxes.into_iter().zip(objects.classes) {
        let [x0, y0, x1, y1] = corners;
        let cut = [
            (x0 - left).clamp(0., width),
            (y0 - top).clamp(0., height),
            (x1 - left).clamp(0., width),
            (y1 - top).clamp(0., height),
        ];
        let area = |[x0, y0, x1, y1]: [f32; 4]| f64::from(x1 - x0) * f64::from(y1 - y0);
        let some = cut[2] > cut[0] && cut[3] > cut[1];
        if some && area(cut) >= least_visible * area(corners) {
            kept.boxes.push(cut);
            kept.classes.push(class);
        }
    }
    (resize_region(&image, region, region.width, region.height), kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::detection::bytes;
    use crate::recipe::{BoxAugmentConfig, DetectionSource, ScenesConfig};

    /// A bright rectangle on dark ground and the box around it, another box beside.
    fn painted(width: usize, height: usize, at: [usize; 4]) -> Result<Marked> {
        let lit = |i: usize| {
            let (x, y) = (i % width, i / width);
            (at[0]..at[2]).contains(&x) && (at[1]..at[3]).contains(&y)
        };
        let pixels = (0..width * height).map(|i| if lit(i) { 255 } else { 0 }).collect();
        let objects =
            Objects { boxes: vec![at.map(|v| v as f32), [0., 0., 1.25, 1.5]], classes: vec![4, 2] };
        Ok((Image::new(width, height, 1, pixels)?, objects))
    }

    /// The box around the bright pixels, at half of the brightness.
    fn seen(image: &Image) -> Option<[f32; 4]> {
        let width = size(image)[1];
        let lit = bytes(image).iter().enumerate().filter(|(_, v)| **v >= 128);
        lit.map(|(i, _)| [i % width, i / width]).fold(None, |found, [x, y]| {
            let (x, y) = (x as f32, y as f32);
            let [x0, y0, x1, y1] = found.unwrap_or([x, y, x + 1., y + 1.]);
            Some([x0.min(x), y0.min(y), x1.max(x + 1.), y1.max(y + 1.)])
        })
    }

    fn close(got: [f32; 4], want: [f32; 4], by: f32) -> bool {
        got.iter().zip(want).all(|(g, w)| (g - w).abs() <= by)
    }

    fn config() -> DetectionDataConfig {
        DetectionDataConfig::plain(DetectionSource::Scenes(ScenesConfig::default()))
    }

    fn at_random(
        marked: Marked,
        config: &DetectionDataConfig,
        seed: u64,
        epoch: u64,
        id: u64,
    ) -> Result<Marked> {
        let look = Look::draw(size(&marked.0), config, seed, epoch, id)?;
        let shown = look.show(marked)?;
        assert_eq!(size(&shown.0), look.size);
        Ok(shown)
    }

    #[test]
    fn two_flips_are_none_and_one_takes_the_box_along() -> Result<()> {
        let marked = painted(23, 17, [3, 5, 9, 16])?;
        let once = flipped(marked.clone());
        assert_eq!(once.1.boxes, [[14., 5., 20., 16.], [21.75, 0., 23., 1.5]]);
        assert_eq!(seen(&once.0), Some(once.1.boxes[0]));
        assert_eq!(flipped(once), marked);
        Ok(())
    }

    #[test]
    fn a_resize_takes_the_box_along() -> Result<()> {
        let marked = painted(40, 30, [8, 6, 28, 21])?;
        for to in [[60, 80], [15, 20], [45, 33], [30, 40]] {
            let (image, objects) = resized(marked.clone(), to)?;
            assert_eq!(size(&image), to);
            // A pixel is lit or not: half of one is what an edge may be off.
            let lit = seen(&image).unwrap_or_default();
            assert!(close(lit, objects.boxes[0], 0.51), "{to:?}: {lit:?} {:?}", objects.boxes[0]);
            assert_eq!(objects.classes, [4, 2]);
        }
        Ok(())
    }

    #[test]
    fn a_crop_takes_the_box_along_and_drops_what_is_left_out() -> Result<()> {
        let marked = painted(40, 30, [8, 6, 28, 21])?;
        let region = |left, top, width, height| Region { left, top, width, height };
        let (image, objects) = cropped(marked.clone(), region(5, 2, 30, 25), 0.);
        assert_eq!((objects.boxes.as_slice(), size(&image)), (&[[3., 4., 23., 19.]][..], [25, 30]));
        assert_eq!(seen(&image), Some(objects.boxes[0]));
        let (image, objects) = cropped(marked.clone(), region(20, 10, 20, 20), 0.);
        assert_eq!(seen(&image), Some([0., 0., 8., 11.]));
        assert_eq!((objects.boxes, objects.classes), (vec![[0., 0., 8., 11.]], vec![4]));
        // 88 of 300 square pixels are left.
        assert!(cropped(marked.clone(), region(20, 10, 20, 20), 0.3).1.is_empty());
        assert_eq!(cropped(marked.clone(), region(20, 10, 20, 20), 0.29).1.len(), 1);
        assert_eq!(cropped(marked.clone(), region(0, 0, 40, 30), 1.), marked);
        Ok(())
    }

    #[test]
    fn whatever_is_drawn_boxes_lie_on_their_pixels() -> Result<()> {
        let mut config = config();
        config.sides = vec![24, 30, 40];
        config.augment = BoxAugmentConfig {
            flip: 0.5,
            crop: Some(BoxCropConfig {
                probability: 0.5,
                sides: vec![28, 32],
                least: 20,
                most: 26,
            }),
            least_visible: 0.2,
        };
        let marked = painted(40, 30, [8, 6, 28, 21])?;
        let (mut sizes, mut partial) = (std::collections::HashSet::new(), 0);
        for (epoch, id) in (0..20).flat_map(|e| (0..5).map(move |i| (e, i))) {
            let (image, objects) = at_random(marked.clone(), &config, 3, epoch, id)?;
            let again = at_random(marked.clone(), &config, 3, epoch, id)?;
            assert_eq!((&image, &objects), (&again.0, &again.1));
            sizes.insert(size(&image));
            let Some(at) = objects.classes.iter().position(|class| *class == 4) else { continue };
            partial += usize::from(objects.len() == 1);
            let lit = seen(&image).unwrap_or_default();
            // Two resizes and a crop between them.
            let by = 1.6;
            assert!(close(lit, objects.boxes[at], by), "{epoch} {id}: {lit:?} {objects:?}");
        }
        assert!(sizes.len() > 20 && partial > 20, "{} {partial}", sizes.len());
        Ok(())
    }

    #[test]
    fn sides_are_those_of_detr() {
        // Its get_size_with_aspect_ratio by hand, then multiples.
        assert_eq!(scaled([480, 640], 800, Some(1333), 1), [800, 1066]);
        assert_eq!(scaled([640, 480], 800, Some(1333), 1), [1066, 800]);
        assert_eq!(scaled([300, 1000], 800, Some(1333), 1), [400, 1333]);
        assert_eq!(scaled([480, 640], 500, Some(1333), 16), [496, 656]);
        assert_eq!(scaled([8, 8], 4, None, 16), [16, 16]);
        // Where DETR's own sides are 1335 and 0.
        assert_eq!(scaled([310, 2000], 800, Some(1333), 1), [207, 1333]);
        assert_eq!(scaled([1, 3000], 800, Some(1333), 1), [1, 1333]);
        assert_eq!(scaled([3000, 1], 800, Some(1333), 32), [1312, 32]);
    }

    #[test]
    fn an_image_too_large_is_refused_and_a_box_too_thin_left_out() -> Result<()> {
        let thin = (Image::new(3000, 1, 1, vec![0; 3000])?, Objects::default());
        let message = resized(thin, scaled([1, 3000], 800, None, 1)).err().map(|e| e.to_string());
        assert!(message.is_some_and(|m| m.contains("268435456 pixels, got 2400000x800")));
        let objects =
            Objects { boxes: vec![[0., 0., 1e-6, 1.], [0., 0., 1., 1.]], classes: vec![4, 2] };
        let (_, objects) = flipped((Image::new(640, 1, 1, vec![0; 640])?, objects));
        assert_eq!((objects.boxes, objects.classes), (vec![[639., 0., 640., 1.]], vec![2]));
        Ok(())
    }

    #[test]
    fn epochs_and_samples_differ_and_nothing_changes_by_default() -> Result<()> {
        let marked = painted(40, 30, [8, 6, 28, 21])?;
        assert_eq!(at_random(marked.clone(), &config(), 1, 2, 3)?, marked);
        assert_eq!(plain(marked.clone(), config().resize())?, marked);
        let mut config = config();
        config.augment.flip = 0.5;
        let draws = |epoch| {
            (0..16)
                .map(|id| Ok(at_random(marked.clone(), &config, 1, epoch, id)?.1.boxes[0][0] == 8.))
                .collect::<Result<Vec<bool>>>()
        };
        assert_ne!(draws(0)?, draws(1)?);
        assert!(draws(0)?.contains(&true) && draws(0)?.contains(&false));
        Ok(())
    }
}
