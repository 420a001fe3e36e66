//! Rotation, shear and translation with bicubic values, as Pillow's `transform` and `rotate`.

use crate::data::Image;

/// Where an output pixel's value comes from: `x = m[0]·X + m[1]·Y + m[2]` and `y = m[3]·X + m[4]·Y + m[5]` at the pixels'
/// centres.
pub(super) type Matrix = [f64; 6];

/// Rotation about the centre by `degrees`, against the clock.
pub(super) fn rotation(image: &Image, degrees: f64) -> Matrix {
    // To 15 digits: a right angle's cosine is zero then, and the places are whole.
    let round = |value: f64| (value * 1e15).round() / 1e15;
    let (sin, cos) = (-degrees.to_radians()).sin_cos();
    let (sin, cos) = (round(sin), round(cos));
    let (x, y) = (image.width as f64 / 2., image.height as f64 / 2.);
    [cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y]
}

/// The image moved by `matrix`; where nothing comes from, `fill`.
pub(super) fn affine(image: &Image, matrix: &Matrix, fill: [u8; 3]) -> Image {
    let mut pixels = Vec::with_capacity(image.pixels.len());
    let [a, b, c, d, e, f] = *matrix;
    for row in 0..image.height {
        for column in 0..image.width {
            let (x, y) = (column as f64 + 0.5, row as f64 + 0.5);
            let from = (a * x + b * y + c, d * x + e * y + f);
            let inside = (0. ..image.width as f64).contains(&from.0)
                && (0. ..image.height as f64).contains(&from.1);
            match inside {
                true => push_value(&mut pixels, image, from),
                false => pixels.extend(&fill[..image.channels]),
            }
        }
    }
    Image { pixels, ..*image }
}

/// Sixteen neighbours, those beyond the border taken from it; what is behind the point is cut off, as Pillow does.
fn push_value(out: &mut Vec<u8>, image: &Image, (x, y): (f64, f64)) {
    let (columns, right) = neighbours(x, image.width);
    let (rows, below) = neighbours(y, image.height);
    for channel in 0..image.channels {
        let along = rows.map(|row| {
            let row = image.row(row);
            let values = columns.map(|column| f64::from(row[column * image.channels + channel]));
            between(values, right)
        });
        out.push(between(along, below) as u8);
    }
}

/// Four places, and how far the wanted one lies behind the second.
fn neighbours(at: f64, count: usize) -> ([usize; 4], f64) {
    let at = at - 0.5;
    let first = at.floor();
    let place = |i: usize| (first + i as f64 - 1.).clamp(0., count as f64 - 1.) as usize;
    (std::array::from_fn(place), at - first)
}

/// Keys' cubic of slope -1 (Pillow's resize has -1/2) through four values, `t` of the way from the second to the third. Made
/// of differences, so that equal values give themselves exactly and lose nothing when the fraction is cut off.
fn between([a, b, c, d]: [f64; 4], t: f64) -> f64 {
    let (linear, square, cube) = (c - a, 2. * (a - b) + c - d, b - a + d - c);
    b + t * (linear + t * (square + t * cube))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_moves_are_exact() {
        let pixels = (0..25).map(|i| (i * 9) as u8).collect();
        let image = Image { width: 5, height: 5, channels: 1, pixels };
        assert_eq!(affine(&image, &[1., 0., 0., 0., 1., 0.], [0; 3]), image);
        let moved = affine(&image, &[1., 0., 2., 0., 1., 0.], [7; 3]);
        assert_eq!(moved.row(1), [&image.row(1)[2..], &[7, 7]].concat());
        let flat = Image { pixels: vec![124; 25], ..image.clone() };
        assert_eq!(affine(&flat, &rotation(&flat, 13.), [124; 3]), flat);
        let turned = affine(&image, &rotation(&image, 180.), [0; 3]);
        assert!((0..25).all(|i| turned.pixels[i] == image.pixels[24 - i]));
    }
}
