//! Where images of several sizes in one batch are padding, and the sine encoding of what is not.

use candle_core::{DType, Device, Result, Tensor, bail};

/// Base of the encoding's wavelengths.
const TEMPERATURE: f32 = 10000.;

/// Which cells of a batch of maps show no part of an image.
#[derive(Clone, Debug)]
pub(super) struct Padding {
    batch: usize,
    rows: usize,
    cols: usize,
    padded: Vec<bool>,
}

impl Padding {
    /// From a mask `(B, H, W)` that is 0 where the image is, or of images without padding.
    pub(super) fn new(images: [usize; 3], mask: Option<&Tensor>) -> Result<Self> {
        let [batch, rows, cols] = images;
        let padded = match mask {
            None => vec![false; batch * rows * cols],
            Some(mask) if mask.dims() == images => {
                let values = mask.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
                values.into_iter().map(|v| v != 0.).collect()
            }
            Some(mask) => bail!("vidt: expected a mask {images:?}, got {:?}", mask.dims()),
        };
        Ok(Self { batch, rows, cols, padded })
    }

    /// The same at another size: cell `i` of `n` is cell `⌊i · N / n⌋` of `N`.
    pub(super) fn at(&self, rows: usize, cols: usize) -> Self {
        let mut padded = Vec::with_capacity(self.batch * rows * cols);
        for sample in 0..self.batch {
            for row in 0..rows {
                let line = (sample * self.rows + row * self.rows / rows) * self.cols;
                padded.extend((0..cols).map(|col| self.padded[line + col * self.cols / cols]));
            }
        }
        Self { batch: self.batch, rows, cols, padded }
    }

    /// Whether there is any.
    pub(super) fn any(&self) -> bool {
        self.padded.contains(&true)
    }

    /// `(B, rows, cols)` of u8, 1 at padding.
    pub(super) fn mask(&self, device: &Device) -> Result<Tensor> {
        let values: Vec<u8> = self.padded.iter().map(|&p| u8::from(p)).collect();
        Tensor::from_vec(values, (self.batch, self.rows, self.cols), device)
    }

    /// `(B, rows · cols)`, `padded` at padding and `image` elsewhere, with dtype and device of another tensor.
    pub(super) fn values(&self, padded: f64, image: f64, like: &Tensor) -> Result<Tensor> {
        let values: Vec<f64> =
            self.padded.iter().map(|&p| if p { padded } else { image }).collect();
        Tensor::from_vec(values, (self.batch, self.rows * self.cols), like.device())?
            .to_dtype(like.dtype())
    }

    /// For each sample the part of the width and of the height that is image, by the first row and the first column.
    pub(super) fn valid_ratios(&self) -> Vec<[f64; 2]> {
        let image = |sample: usize, row: usize, col: usize| {
            !self.padded[(sample * self.rows + row) * self.cols + col]
        };
        let ratios = |sample| {
            let width = (0..self.cols).filter(|&col| image(sample, 0, col)).count();
            let height = (0..self.rows).filter(|&row| image(sample, row, 0)).count();
            [width as f64 / self.cols as f64, height as f64 / self.rows as f64]
        };
        (0..self.batch).map(ratios).collect()
    }

    /// Encoding `(B, rows · cols, width)` with dtype and device of another tensor: the first half of the channels says the
    /// row, the second the column, sine and cosine in turn.
    ///
    /// A position is the number of image cells up to this one in its column or row, of all there times 2π. Computed in f32
    /// whatever the dtype, as in the published code.
    pub(super) fn encoding(&self, width: usize, like: &Tensor) -> Result<Tensor> {
        let Self { batch, rows, cols, .. } = *self;
        let half = width / 2;
        let exponent = |i: usize| (2 * (i / 2)) as f32 / half as f32;
        let wavelengths: Vec<f32> = (0..half).map(|i| TEMPERATURE.powf(exponent(i))).collect();
        let mut values = vec![0f32; batch * rows * cols * width];
        let mut write = |cell: usize, first: usize, (count, all): (usize, usize)| {
            let position = count as f32 / (all as f32 + 1e-6) * std::f32::consts::TAU;
            let target = &mut values[cell * width + first..][..half];
            for (i, (value, wavelength)) in target.iter_mut().zip(&wavelengths).enumerate() {
                let angle = position / wavelength;
                *value = if i % 2 == 0 { angle.sin() } else { angle.cos() };
            }
        };
        // Cells of one column, then of one row, of each sample.
        let lines =
            (0..batch * cols).map(|at| (at / cols * rows * cols + at % cols, cols, rows, 0));
        let lines = lines.chain((0..batch * rows).map(|at| (at * cols, 1, cols, half)));
        for (start, step, length, first) in lines {
            let image = |i: &usize| !self.padded[start + i * step];
            let all = (0..length).filter(image).count();
            let mut count = 0;
            for i in 0..length {
                count += usize::from(image(&i));
                write(start + i * step, first, (count, all));
            }
        }
        Tensor::from_vec(values, (batch, rows * cols, width), like.device())?.to_dtype(like.dtype())
    }
}
