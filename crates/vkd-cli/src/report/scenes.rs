//! Images with the boxes that are there and those that were found, as SVG: complete in itself, the image inside as PNG.

use super::html::escape;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{ExtendedColorType, ImageEncoder};
use vkd_train::Image;

/// Boxes that are less sure are not drawn.
pub(crate) const SURE: f64 = 0.5;
/// Height and width of an image on the page.
const SIDE: f64 = 176.;
/// Between two images.
const GAP: f64 = 12.;
/// Images of a row.
const ROW: usize = 4;

/// `[x, y, width, height]` in pixels.
type Bbox = [f64; 4];

/// One image.
pub(crate) struct Scene {
    pub(crate) image: Image,
    /// What is there, with its class.
    pub(crate) truth: Vec<(Bbox, String)>,
    /// What was found, with its class and score.
    pub(crate) found: Vec<(Bbox, String, f64)>,
}

/// All of them in rows, as a file.
pub(crate) fn picture(scenes: &[Scene]) -> String {
    let rows = scenes.len().div_ceil(ROW).max(1);
    let (width, height) = (GAP + ROW as f64 * (SIDE + GAP), GAP + rows as f64 * (SIDE + GAP));
    let all: String = scenes
        .iter()
        .enumerate()
        .map(|(i, scene)| {
            let at = |n: usize| GAP + n as f64 * (SIDE + GAP);
            placed(scene, at(i % ROW), at(i / ROW))
        })
        .collect();
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n{all}</svg>\n"
    )
}

/// A grid of samples as an image of a page, its pixels enlarged.
pub(crate) fn samples(grid: &Image) -> String {
    format!(
        "<img alt=\"samples\" style=\"image-rendering:pixelated;width:100%;max-width:480px\" src=\"data:image/png;base64,{}\">\n",
        png(grid)
    )
}

/// All of them in one row, to stand in a page.
pub(crate) fn row(scenes: &[Scene]) -> String {
    let width = scenes.len() as f64 * (SIDE + GAP) - GAP;
    let all: String = scenes
        .iter()
        .enumerate()
        .map(|(i, scene)| placed(scene, i as f64 * (SIDE + GAP), 0.))
        .collect();
    format!(
        "<svg width=\"{width}\" height=\"{SIDE}\" viewBox=\"0 0 {width} {SIDE}\" font-family=\"sans-serif\">\n{all}</svg>\n"
    )
}

/// One image of [`SIDE`] at a place. Lines and letters keep their size whatever the image's.
fn placed(scene: &Scene, x: f64, y: f64) -> String {
    let (w, h) = (scene.image.width() as f64, scene.image.height() as f64);
    let scale = SIDE / w.max(h);
    let rect = |b: &Bbox, style: &str| {
        format!(
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"none\" {style}/>\n",
            x + b[0] * scale,
            y + b[1] * scale,
            b[2] * scale,
            b[3] * scale
        )
    };
    let mut text = format!(
        "<image x=\"{x}\" y=\"{y}\" width=\"{:.1}\" height=\"{:.1}\" href=\"data:image/png;base64,{}\" \
         style=\"image-rendering:pixelated\"/>\n",
        w * scale,
        h * scale,
        png(&scene.image)
    );
    for (bbox, _) in &scene.truth {
        text += &rect(bbox, "stroke=\"#2ca25f\" stroke-width=\"1.5\" stroke-dasharray=\"4 3\"");
    }
    // The surest come first and are drawn last, over what is less sure.
    for (bbox, class, score) in scene.found.iter().rev().filter(|(.., score)| *score >= SURE) {
        text += &rect(bbox, "stroke=\"#e6550d\" stroke-width=\"1.5\"");
        let (left, top) = (x + bbox[0] * scale + 2., y + (bbox[1] * scale).max(0.) + 11.);
        text += &format!(
            "<text x=\"{left:.1}\" y=\"{top:.1}\" font-size=\"11\" fill=\"#ff8c42\" stroke=\"#000\" stroke-width=\"2.5\" \
             paint-order=\"stroke\">{} {score:.2}</text>\n",
            escape(class)
        );
    }
    text
}

/// The image as PNG in base64; nothing where it can't be written, which its sizes rule out.
fn png(image: &Image) -> String {
    let mut bytes = Vec::new();
    let color = match image.channels() {
        1 => ExtendedColorType::L8,
        _ => ExtendedColorType::Rgb8,
    };
    let encoder = image::codecs::png::PngEncoder::new(&mut bytes);
    let (width, height) = (image.width() as u32, image.height() as u32);
    match encoder.write_image(image.pixels(), width, height, color) {
        Ok(()) => STANDARD.encode(bytes),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::closed;

    fn scene() -> Scene {
        Scene {
            image: Image::new(4, 2, 1, vec![0, 60, 120, 255, 1, 2, 3, 4]).unwrap(),
            truth: vec![([0., 0., 2., 2.], "cat".to_owned())],
            found: vec![
                ([1., 0., 2., 1.], "<dog>".to_owned(), 0.875),
                ([1., 0., 2., 1.], "unsure".to_owned(), 0.1),
            ],
        }
    }

    #[test]
    fn boxes_are_drawn_where_they_are() {
        let svg = picture(&[scene(), scene()]);
        closed(&svg, Vec::new());
        assert_eq!(svg.matches("<image ").count(), 2);
        assert!(svg.contains("&lt;dog&gt; 0.88") && !svg.contains("unsure"), "{svg}");
        // Four pixels on 176: one is 44 wide.
        assert!(svg.contains("<rect x=\"12.0\" y=\"12.0\" width=\"88.0\" height=\"88.0\" fill=\"none\" stroke=\"#2ca25f\""));
        assert!(
            svg.contains("<rect x=\"56.0\" y=\"12.0\" width=\"88.0\" height=\"44.0\""),
            "{svg}"
        );
        closed(&row(&[scene()]), Vec::new());
    }

    #[test]
    fn the_image_inside_is_the_image() {
        let svg = row(&[scene()]);
        let (_, rest) = svg.split_once("base64,").unwrap();
        let bytes = STANDARD.decode(rest.split_once('"').unwrap().0).unwrap();
        let image = image::load_from_memory(&bytes).unwrap().into_luma8();
        assert_eq!(
            (image.dimensions(), image.into_raw()),
            ((4, 2), vec![0, 60, 120, 255, 1, 2, 3, 4])
        );
    }
}
