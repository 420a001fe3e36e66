//! Shifts by whole pixels.

use crate::data::Image;

/// The image moved down and to the right, negative for up and left; what comes in is zero.
pub(super) fn shift(image: &Image, down: i32, right: i32) -> Image {
    let (length, channels) = (image.width * image.channels, image.channels);
    let mut pixels = vec![0; image.pixels.len()];
    let by = (right.unsigned_abs() as usize).min(image.width) * channels;
    for (y, out) in pixels.chunks_exact_mut(length).enumerate() {
        let Some(from) = y.checked_add_signed(-down as isize).filter(|y| *y < image.height) else {
            continue;
        };
        let row = image.row(from);
        if right >= 0 {
            out[by..].copy_from_slice(&row[..length - by]);
        } else {
            out[..length - by].copy_from_slice(&row[by..]);
        }
    }
    Image { pixels, ..*image }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shifts_move_pixels_and_fill_with_zero() {
        let image = Image { width: 2, height: 2, channels: 1, pixels: vec![1, 2, 3, 4] };
        assert_eq!(shift(&image, 1, 0).pixels, [0, 0, 1, 2]);
        assert_eq!(shift(&image, 0, -1).pixels, [2, 0, 4, 0]);
        assert_eq!(shift(&image, -1, 1).pixels, [0, 3, 0, 0]);
        assert_eq!(shift(&image, 0, 5).pixels, [0; 4]);
        assert_eq!(shift(&image, 0, 0), image);
    }
}
