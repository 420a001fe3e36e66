//! Mirror images.

use crate::data::Image;

/// Left and right exchanged.
pub(super) fn flip(mut image: Image) -> Image {
    let (length, channels) = (image.width * image.channels, image.channels);
    for row in image.pixels.chunks_exact_mut(length) {
        // Reversing the bytes turns each pixel's channels round as well; the second loop turns them back.
        row.reverse();
        if channels > 1 {
            row.chunks_exact_mut(channels).for_each(<[u8]>::reverse);
        }
    }
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_flips_are_none_and_one_mirrors_pixels() {
        for channels in [1, 3] {
            let pixels = (0..4 * 5 * channels).map(|i| i as u8).collect();
            let image = Image { width: 5, height: 4, channels, pixels };
            let once = flip(image.clone());
            for (x, pixel) in once.row(2).chunks_exact(channels).enumerate() {
                assert_eq!(pixel, &image.row(2)[(4 - x) * channels..][..channels]);
            }
            assert_eq!(flip(once), image);
        }
    }
}
