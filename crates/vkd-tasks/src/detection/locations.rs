//! The places of a dense detector, and which object each learns.

use super::Objects;

/// One level of a pyramid of maps.
#[derive(Clone, Copy, Debug)]
pub(super) struct LevelShape {
    pub(super) stride: usize,
    pub(super) height: usize,
    pub(super) width: usize,
}

impl LevelShape {
    pub(super) fn len(self) -> usize {
        self.height * self.width
    }

    /// Pixel that the map's entry `at`, row by row, stands for: the middle of its stride.
    pub(super) fn pixel(self, at: usize) -> [f32; 2] {
        let middle = |index: usize| (index as f32 + 0.5) * self.stride as f32;
        [middle(at % self.width), middle(at / self.width)]
    }
}

/// Distances of a point to the four sides of a box, in the order left, top, right, bottom; negative outside.
pub(super) fn sides([x, y]: [f32; 2], [x0, y0, x1, y1]: [f32; 4]) -> [f32; 4] {
    [x - x0, y - y0, x1 - x, y1 - y]
}

/// How near a point lies to the middle of the box whose sides are so far away: 1 in the middle, 0 on a side.
pub(super) fn centerness([left, top, right, bottom]: [f32; 4]) -> f32 {
    let share = |a: f32, b: f32| a.min(b) / a.max(b);
    (share(left, right) * share(top, bottom)).sqrt()
}

/// The object that every location of all levels learns, level after level, row by row; `None` is background.
///
/// Among several the smallest wins, of equal ones the first.
pub(super) fn assign(
    levels: &[LevelShape],
    objects: &Objects,
    reach: f32,
    radius: f32,
) -> Vec<Option<usize>> {
    let mut chosen = vec![None; levels.iter().map(|l| l.len()).sum()];
    let mut smallest = vec![f32::INFINITY; chosen.len()];
    let mut start = 0;
    for (i, level) in levels.iter().enumerate() {
        let stride = level.stride as f32;
        // The finest level has no lower bound, the coarsest no upper one.
        let low = if i == 0 { 0. } else { reach * levels[i - 1].stride as f32 };
        let high = if i + 1 == levels.len() { f32::INFINITY } else { reach * stride };
        for (object, &corners) in objects.boxes.iter().enumerate() {
            let [x0, y0, x1, y1] = corners;
            let area = (x1 - x0) * (y1 - y0);
            let near = |low: f32, high: f32, count: usize| {
                let (middle, around) = ((low + high) / 2., radius * stride);
                let (low, high) = (low.max(middle - around), high.min(middle + around));
                // Indices whose pixel can lie inside; the test below is exact.
                let index = |at: f32| (at / stride - 0.5).clamp(0., count as f32);
                (
                    low,
                    high,
                    index(low).floor() as usize..(index(high).ceil() as usize + 1).min(count),
                )
            };
            let (left, right, columns) = near(x0, x1, level.width);
            let (top, bottom, rows) = near(y0, y1, level.height);
            for at in rows.flat_map(|r| columns.clone().map(move |c| r * level.width + c)) {
                let pixel = level.pixel(at);
                let inside = sides(pixel, [left, top, right, bottom]).iter().all(|d| *d > 0.);
                let farthest = sides(pixel, corners).into_iter().fold(0f32, f32::max);
                if inside && (low..=high).contains(&farthest) && area < smallest[start + at] {
                    smallest[start + at] = area;
                    chosen[start + at] = Some(object);
                }
            }
        }
        start += level.len();
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(strides: &[usize], side: usize) -> Vec<LevelShape> {
        let level = |s: &usize| LevelShape { stride: *s, height: side / s, width: side / s };
        strides.iter().map(level).collect()
    }

    fn objects(boxes: &[[f32; 4]]) -> Objects {
        Objects { boxes: boxes.to_vec(), classes: vec![0; boxes.len()] }
    }

    /// The rules again, by trying every object at every location.
    fn slow(
        levels: &[LevelShape],
        objects: &Objects,
        reach: f32,
        radius: f32,
    ) -> Vec<Option<usize>> {
        let mut chosen = Vec::new();
        for (i, level) in levels.iter().enumerate() {
            let s = level.stride as f32;
            for y in 0..level.height {
                for x in 0..level.width {
                    let (px, py) = ((x as f32 + 0.5) * s, (y as f32 + 0.5) * s);
                    let fits = |b: &[f32; 4]| {
                        let far = [px - b[0], py - b[1], b[2] - px, b[3] - py];
                        let most = far.iter().copied().fold(f32::MIN, f32::max);
                        let (cx, cy) = ((b[0] + b[2]) / 2., (b[1] + b[3]) / 2.);
                        far.iter().all(|d| *d > 0.)
                            && (px - cx).abs() < radius * s
                            && (py - cy).abs() < radius * s
                            && (i == 0 || most >= reach * levels[i - 1].stride as f32)
                            && (i + 1 == levels.len() || most <= reach * s)
                    };
                    let area = |b: &[f32; 4]| (b[2] - b[0]) * (b[3] - b[1]);
                    let all = objects.boxes.iter().enumerate().filter(|(_, b)| fits(b));
                    let best = all.min_by(|a, b| area(a.1).total_cmp(&area(b.1)));
                    chosen.push(best.map(|(i, _)| i));
                }
            }
        }
        chosen
    }

    #[test]
    fn as_by_trying_all() {
        let levels = levels(&[8, 16, 32], 128);
        // A fixed spread of boxes of many sizes, some across the border of the image.
        let boxes: Vec<[f32; 4]> = (0..40)
            .map(|i| {
                let at = |k: usize, n: usize| (i * k % n) as f32 * 1.25;
                let (x, y) = (at(37, 101) - 4., at(53, 97) - 4.);
                [x, y, x + 3. + at(29, 71), y + 3. + at(41, 83)]
            })
            .collect();
        let objects = objects(&boxes);
        for (reach, radius) in [(8., 1.5), (4., 0.7), (2., 100.), (2., 3.)] {
            let got = assign(&levels, &objects, reach, radius);
            assert_eq!(got, slow(&levels, &objects, reach, radius));
            assert!(got.iter().flatten().count() > 20, "{reach} {radius}");
        }
    }

    #[test]
    fn the_smaller_wins_and_size_picks_the_level() {
        let levels = levels(&[8, 16], 64);
        // Around the same middle (36, 36); the larger one reaches farther than the 8 strides of the first level.
        let around = |half: f32| [36. - half, 36. - half, 36. + half, 36. + half];
        let got = assign(&levels, &objects(&[around(30.), around(12.)]), 4., 1.5);
        let at = |level: usize, x: usize, y: usize| {
            if level == 0 { got[y * 8 + x] } else { got[64 + y * 4 + x] }
        };
        assert_eq!((at(0, 4, 4), at(0, 3, 4), at(0, 2, 4)), (Some(1), Some(1), None));
        // (40, 40) in the second level: 34 to the farthest side of the larger box.
        assert_eq!((at(1, 2, 2), at(1, 0, 0)), (Some(0), None));
        // No object: background everywhere.
        assert!(assign(&levels, &objects(&[]), 8., 1.5).iter().all(Option::is_none));
    }

    #[test]
    fn the_middle_counts_most() {
        assert_eq!(centerness([3., 3., 3., 3.]), 1.);
        assert_eq!(centerness([1., 2., 4., 2.]), 0.5);
        assert_eq!(centerness(sides([2., 2.], [0., 0., 4., 2.])), 0.);
    }
}
