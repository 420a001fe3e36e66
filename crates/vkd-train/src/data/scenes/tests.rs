//! Laws of scenes: functions of their seed, of digits of their own part, with tight boxes.

use super::*;
use std::collections::HashSet;

fn scenes(config: ScenesConfig) -> Result<Scenes> {
    Scenes::new(&config)
}

/// One digit and nothing else that differs from paper.
fn clean(size: usize, channels: usize) -> ScenesConfig {
    ScenesConfig {
        size,
        channels,
        objects: [1, 1],
        clutter: 0,
        noise: 0.,
        ..ScenesConfig::default()
    }
}

#[test]
fn a_scene_is_a_function_of_seed_part_and_index() -> Result<()> {
    let (a, b) = (scenes(ScenesConfig::default())?, scenes(ScenesConfig::default())?);
    let other = scenes(ScenesConfig { seed: 1, ..ScenesConfig::default() })?;
    b.scene(Part::Test, 3)?;
    let (image, objects) = a.scene(Part::Train, 7)?;
    assert_eq!((image.clone(), objects.clone()), b.scene(Part::Train, 7)?);
    assert_eq!(a.objects(Part::Train, 7)?, objects);
    for another in [a.scene(Part::Train, 8)?, a.scene(Part::Test, 7)?, other.scene(Part::Train, 7)?]
    {
        assert_ne!(another.0, image);
    }
    Ok(())
}

#[test]
fn no_digit_is_in_two_parts() -> Result<()> {
    let scenes = scenes(ScenesConfig::default())?;
    let sets = scenes
        .digits
        .each_ref()
        .map(|part| part.iter().map(|(digit, _)| grey(digit).2.to_vec()).collect::<HashSet<_>>());
    assert_eq!(scenes.digits.each_ref().map(Vec::len), [1197, 200, 400]);
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        assert!(sets[a].is_disjoint(&sets[b]), "parts {a} and {b}");
    }
    for part in &scenes.digits {
        assert_eq!(part.iter().map(|(_, class)| *class).collect::<HashSet<_>>().len(), 10);
    }
    Ok(())
}

/// Seen from the pixels alone: where the scene differs from its paper by a part of the largest difference.
#[test]
fn boxes_are_tight_around_the_ink() -> Result<()> {
    for channels in [1, 3] {
        let scenes = scenes(clean(64, channels))?;
        for index in 0..40 {
            let (image, objects) = scenes.scene(Part::Validation, index)?;
            let mut rng = stream(0, "scenes.val.paint", index, 0);
            let paper = paint([64, channels], &[], 0., &mut rng)?;
            let (with, without) = (crate::data::detection::bytes(&image), paper);
            let without = crate::data::detection::bytes(&without);
            let ink = |x: usize, y: usize| {
                let at = (y * 64 + x) * channels;
                f32::from(with[at]) - f32::from(without[at])
            };
            let most = (0..64 * 64).map(|i| ink(i % 64, i / 64)).fold(0., f32::max);
            let [x0, y0, x1, y1] = objects.boxes[0].map(|v| v as usize);
            for (x, y) in (0..64 * 64).map(|i| (i % 64, i / 64)) {
                let inside = (x0..x1).contains(&x) && (y0..y1).contains(&y);
                assert!(inside || ink(x, y) < 0.32 * most, "{index}: ink at {x}, {y}");
            }
            let row = |y: usize| (x0..x1).any(|x| ink(x, y) > 0.18 * most);
            let column = |x: usize| (y0..y1).any(|y| ink(x, y) > 0.18 * most);
            assert!(row(y0) && row(y1 - 1) && column(x0) && column(x1 - 1), "{index}");
        }
    }
    Ok(())
}

#[test]
fn counts_scales_and_overlap_are_kept() -> Result<()> {
    let config =
        ScenesConfig { size: 96, objects: [0, 6], scales: [12., 48.], ..ScenesConfig::default() };
    let scenes = scenes(config)?;
    let (mut heights, mut counts, mut classes) = (Vec::new(), HashSet::new(), HashSet::new());
    let mut overlapping = 0;
    for index in 0..200 {
        let Objects { boxes, classes: of } = scenes.objects(Part::Train, index)?;
        counts.insert(boxes.len());
        classes.extend(of);
        for (i, a) in boxes.iter().enumerate() {
            assert!(a[0] >= 0. && a[1] >= 0. && a[2] <= 96. && a[3] <= 96., "{a:?}");
            heights.push(a[3] - a[1]);
            for b in &boxes[..i] {
                assert!(covered(a, b) <= 0.2, "{a:?} {b:?}");
                overlapping += usize::from(covered(a, b) > 0.);
            }
        }
    }
    assert!(counts.contains(&0) && counts.contains(&6) && counts.len() == 7, "{counts:?}");
    assert!(classes.len() == 10 && overlapping > 20, "{overlapping}");
    // Ink fills the square's height, of 12 to 48 pixels; its quarter reaches into the paper by less than half a pixel of the
    // eight on each side.
    let least = heights.iter().copied().fold(f32::INFINITY, f32::min);
    let most = heights.iter().copied().fold(0., f32::max);
    assert!((9. ..=15.).contains(&least) && (42. ..=54.).contains(&most), "{least} {most}");
    Ok(())
}

#[test]
fn clutter_and_noise_change_pixels_and_no_box() -> Result<()> {
    let plain = scenes(ScenesConfig { noise: 0., ..ScenesConfig::default() })?;
    let noisy = scenes(ScenesConfig { noise: 0.1, ..ScenesConfig::default() })?;
    let (mut sum, mut squares, mut count) = (0f64, 0f64, 0f64);
    for index in 0..20 {
        let ((a, at), (b, same)) =
            (plain.scene(Part::Test, index)?, noisy.scene(Part::Test, index)?);
        assert_eq!(at, same);
        for (a, b) in grey(&a).2.iter().zip(grey(&b).2) {
            // Away from the ends, where noise is cut.
            if (90..166).contains(a) {
                let difference = f64::from(*b) - f64::from(*a);
                (sum, squares, count) =
                    (sum + difference, squares + difference.powi(2), count + 1.);
            }
        }
    }
    let (mean, deviation) = (sum / count, (squares / count).sqrt());
    assert!(count > 1000. && mean.abs() < 2. && (deviation / 25.5 - 1.).abs() < 0.1, "{deviation}");
    Ok(())
}

#[test]
fn indices_run_through_the_parts() -> Result<()> {
    let config = ScenesConfig { train: 3, validation: 2, test: 4, ..ScenesConfig::default() };
    let scenes = scenes(config)?;
    assert_eq!(scenes.locate(2)?, (Part::Train, 2));
    assert_eq!(scenes.locate(3)?, (Part::Validation, 0));
    assert_eq!(scenes.locate(8)?, (Part::Test, 3));
    assert!(scenes.locate(9).is_err_and(|e| e.to_string().contains("below 9, got 9")));
    Ok(())
}
