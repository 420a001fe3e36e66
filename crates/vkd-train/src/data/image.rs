//! An image in memory.

use candle_core::{Error, Result, bail};
use image::codecs::png::PngEncoder;
use image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageReader};
use std::io::Cursor;

/// Weights of red, green and blue in a grey value (ITU-R 601), over 2^16; they sum to it.
const LUMA: [u32; 3] = [19_595, 38_470, 7_471];

/// Rows from the top, the channels of a pixel side by side: one byte a channel, one channel (grey) or three (RGB).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) channels: usize,
    /// `height * width * channels` bytes: transforms change them and never their number.
    pub(crate) pixels: Vec<u8>,
}

impl Image {
    /// An image of the given bytes.
    ///
    /// # Errors
    /// No pixels, channels other than 1 and 3, or another number of bytes.
    pub fn new(width: usize, height: usize, channels: usize, pixels: Vec<u8>) -> Result<Self> {
        if !matches!(channels, 1 | 3) || pixels.is_empty() {
            bail!("image: expected pixels of 1 or 3 channels, got {width}x{height} of {channels}")
        }
        // Sizes whose product overflows would wrap to a small one.
        let count = width.checked_mul(height).and_then(|n| n.checked_mul(channels));
        if count != Some(pixels.len()) {
            bail!(
                "image: expected {width}·{height}·{channels} bytes for {width}x{height}, got {}",
                pixels.len()
            )
        }
        Ok(Self { width, height, channels, pixels })
    }

    /// Pixels in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// 1 or 3.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// `height * width * channels` bytes.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// Decodes a JPEG, PNG or WebP file's bytes; the kind is told by the bytes, not by a name. Transparency is dropped,
    /// and the camera's orientation is not applied: the networks that are published were trained so.
    ///
    /// # Errors
    /// Bytes that are no such image or a broken one, and images too large to decode.
    pub fn decode(bytes: &[u8], channels: usize) -> Result<Self> {
        let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
        let decoded = match reader.decode() {
            Ok(decoded) => decoded,
            Err(e) => bail!("expected a JPEG, PNG or WebP image, got {} bytes: {e}", bytes.len()),
        };
        let (width, height) = (decoded.width() as usize, decoded.height() as usize);
        match (channels, decoded) {
            (1, DynamicImage::ImageLuma8(grey)) => Self::new(width, height, 1, grey.into_raw()),
            // `image` weighs the colours by another standard, so grey is made here.
            (1, other) => {
                Ok(Self::new(width, height, 3, other.into_rgb8().into_raw())?.into_grey())
            }
            (_, other) => Self::new(width, height, channels, other.into_rgb8().into_raw()),
        }
    }

    /// The bytes of a PNG file.
    ///
    /// # Errors
    /// Sizes beyond what a PNG can have.
    pub fn to_png(&self) -> Result<Vec<u8>> {
        let kind = if self.channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
        let mut bytes = Vec::new();
        let (width, height) = (self.width as u32, self.height as u32);
        PngEncoder::new(&mut bytes)
            .write_image(&self.pixels, width, height, kind)
            .map_err(Error::wrap)?;
        Ok(bytes)
    }

    /// One grey value a pixel; a grey image as it is.
    pub fn into_grey(self) -> Self {
        if self.channels == 1 {
            return self;
        }
        Self { channels: 1, pixels: self.luma().collect(), ..self }
    }

    /// The grey value of each pixel.
    pub(crate) fn luma(&self) -> impl Iterator<Item = u8> + '_ {
        self.pixels.chunks_exact(self.channels).map(luma)
    }

    /// The bytes of row `y`.
    pub(crate) fn row(&self, y: usize) -> &[u8] {
        let length = self.width * self.channels;
        &self.pixels[y * length..][..length]
    }
}

/// The grey value of one pixel.
pub(crate) fn luma(pixel: &[u8]) -> u8 {
    match pixel {
        [r, g, b] => {
            let sum = LUMA[0] * u32::from(*r) + LUMA[1] * u32::from(*g) + LUMA[2] * u32::from(*b);
            ((sum + (1 << 15)) >> 16) as u8
        }
        other => other[0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_must_fit_and_grey_stays_grey() -> Result<()> {
        assert!(Image::new(2, 2, 3, vec![0; 11]).is_err());
        assert!(Image::new(2, 2, 2, vec![0; 8]).is_err());
        assert!(Image::new(0, 2, 1, vec![]).is_err());
        assert!(Image::new((1 << 62) + 1, 4, 1, vec![0; 4]).is_err());
        let grey = Image::new(2, 1, 3, vec![9, 9, 9, 255, 255, 255])?.into_grey();
        assert_eq!(grey, Image::new(2, 1, 1, vec![9, 255])?);
        assert_eq!(grey.clone().into_grey(), grey);
        Ok(())
    }
}
