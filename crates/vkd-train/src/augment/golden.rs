//! Transforms beside what Pillow, timm and torchvision made of the same images (`make_images.py` and `make_augment.py` in
//! `vkd-testkit/golden`): the same bytes.

use super::{affine, blur, color, erase, rand_augment, resize};
use crate::data::Image;
use candle_core::{Device, Result, Tensor, bail};
use std::collections::{HashMap, HashSet};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../vkd-testkit/golden");

fn read(name: &str) -> Result<HashMap<String, Tensor>> {
    candle_core::safetensors::load(format!("{FOLDER}/{name}.safetensors"), &Device::Cpu)
}

fn same(name: &str, got: &Image, wanted: &Tensor) -> Result<()> {
    let wanted = image(wanted)?;
    assert_eq!((got.width, got.height), (wanted.width, wanted.height), "{name}");
    let worst = got.pixels.iter().zip(&wanted.pixels).map(|(a, b)| a.abs_diff(*b)).max();
    assert_eq!(worst, Some(0), "{name}");
    Ok(())
}

fn image(tensor: &Tensor) -> Result<Image> {
    let (height, width, channels) = match tensor.dims()[..] {
        [h, w] => (h, w, 1),
        [h, w, c] => (h, w, c),
        _ => bail!("golden: expected an image, got {:?}", tensor.dims()),
    };
    Image::new(width, height, channels, tensor.flatten_all()?.to_vec1()?)
}

#[test]
fn every_case_equals_pillows() -> Result<()> {
    let all = read("images")?;
    let (source, small) = (image(&all["color"])?, image(&all["grey"])?);
    let fill = [124, 116, 104];
    let mut count = 0;
    for (key, wanted) in &all {
        let Some(name) = key.strip_suffix(".y") else { continue };
        let parts: Vec<&str> = name.split('.').collect();
        let number = |i: usize| parts[i].parse::<f64>().unwrap();
        let color = source.clone();
        let got = match parts[0] {
            "resize" => {
                let from = if parts[1] == "grey" { &small } else { &source };
                resize::resize(from, number(2) as usize, number(3) as usize)?
            }
            "crop" => {
                let [left, top, width, height] = [1, 2, 3, 4].map(|i| number(i) as usize);
                let region = resize::Region { left, top, width, height };
                resize::resize_region(&source, region, 16, 16)
            }
            "blur" => blur::gaussian_blur(color, number(1) / 10.),
            "luma" => color.into_grey(),
            "solarize" => color::solarize(color, number(1) as u16),
            "autocontrast" => color::autocontrast(color::map(color, |v| 40 + v / 3)),
            "equalize" => color::equalize(color),
            "brightness" => color::brightness(color, number(1) as f32 / 100.),
            "contrast" => color::contrast(color, number(1) as f32 / 100.),
            "saturation" => color::saturation(color, number(1) as f32 / 100.),
            "sharpness" => color::sharpness(color, number(1) as f32 / 100.),
            "rotate" => affine::affine(&source, &affine::rotation(&source, number(1)), fill),
            "shear_x" => affine::affine(&source, &[1., 0.27, 0., 0., 1., 0.], fill),
            "shear_y" => affine::affine(&source, &[1., 0., 0., -0.27, 1., 0.], fill),
            "translate_x" => affine::affine(&source, &[1., 0., -7.42, 0., 1., 0.], fill),
            "translate_y" => affine::affine(&source, &[1., 0., 0., 0., 1., 11.1], fill),
            other => bail!("golden: no such case {other}"),
        };
        same(name, &got, wanted)?;
        count += 1;
    }
    assert_eq!(count, 47);
    Ok(())
}

/// Name, magnitude, sign and whether strengths grow, as the script names them, to RandAugment's transform.
#[test]
fn rand_augment_turns_magnitudes_into_timms_transforms() -> Result<()> {
    let all = read("augment")?;
    let source = image(&all["color"])?;
    let (fill, mut seen) = ([124, 116, 104], HashSet::new());
    let mut count = 0;
    for (key, wanted) in &all {
        let Some(name) = key.strip_prefix("rand_augment.") else { continue };
        let parts: Vec<&str> = name.split('.').collect();
        let [transform, hundredths, sign, mode, "y"] = parts[..] else {
            bail!("golden: no such case {name}")
        };
        let found = rand_augment::ALL.into_iter().find(|t| format!("{t:?}") == transform);
        let Some(found) = found else { bail!("golden: no such transform {transform}") };
        let level = hundredths.parse::<f64>().unwrap() / 100. / 10.;
        let (negative, increasing) = (sign == "neg", mode == "inc");
        let got = rand_augment::apply(source.clone(), found, level, negative, increasing, fill);
        same(name, &got, wanted)?;
        seen.insert(transform);
        count += 1;
    }
    assert_eq!((seen.len(), count), (rand_augment::ALL.len(), 135));
    Ok(())
}

#[test]
fn colour_jitter_equals_torchvisions_in_every_order() -> Result<()> {
    let all = read("augment")?;
    let source = image(&all["color"])?;
    let factors = all["jitter.factors"].to_vec1::<f64>()?;
    let mut count = 0;
    for (key, wanted) in &all {
        let Some(order) = key.strip_prefix("jitter.").and_then(|k| k.strip_suffix(".y")) else {
            continue;
        };
        let got = order.chars().fold(source.clone(), |image, change| match change {
            'b' => color::brightness(image, factors[0] as f32),
            'c' => color::contrast(image, factors[1] as f32),
            _ => color::saturation(image, factors[2] as f32),
        });
        same(key, &got, wanted)?;
        count += 1;
    }
    assert_eq!(count, 6);
    Ok(())
}

#[test]
fn erased_rectangles_are_timms() -> Result<()> {
    let rows = read("augment")?["erase"].to_vec2::<f64>()?;
    let mut missed = 0;
    for row in &rows {
        let [size, share, ratio, height, width, top, left] = row[..] else {
            bail!("golden: expected seven numbers, got {}", row.len())
        };
        let got = erase::sides(size as usize, share, ratio);
        let wanted = (height > 0.).then_some((height as usize, width as usize));
        assert_eq!(got, wanted, "{row:?}");
        match got {
            // What the place is drawn from.
            Some((h, w)) => assert_eq!((size - h as f64, size - w as f64), (top, left)),
            None => missed += 1,
        }
    }
    assert_eq!((rows.len(), missed), (66, 2));
    Ok(())
}
