//! Transforms beside what Pillow made of the same images (`vkd-testkit/golden/make_images.py`): the same bytes.

use super::{affine, blur, color, resize};
use crate::data::Image;
use candle_core::{Device, Result, Tensor, bail};
use std::collections::HashMap;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../vkd-testkit/golden/images.safetensors");

fn read() -> Result<HashMap<String, Tensor>> {
    candle_core::safetensors::load(FILE, &Device::Cpu)
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
    let all = read()?;
    let (source, small) = (image(&all["color"])?, image(&all["grey"])?);
    let fill = [124, 116, 104];
    let mut count = 0;
    for (key, wanted) in &all {
        let Some(name) = key.strip_suffix(".y") else { continue };
        let wanted = image(wanted)?;
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
        assert_eq!((got.width, got.height), (wanted.width, wanted.height), "{name}");
        let worst = got.pixels.iter().zip(&wanted.pixels).map(|(a, b)| a.abs_diff(*b)).max();
        assert_eq!(worst, Some(0), "{name}");
        count += 1;
    }
    assert_eq!(count, 47);
    Ok(())
}
