//! What is to be found in one image.

use candle_core::{Result, bail};

/// Height and width of an image, without padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageSize {
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
}

/// The objects of one image that a detector learns from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    /// Corners `[x0, y0, x1, y1]` in pixels of the image as the network sees it, origin at the upper left corner of the first
    /// pixel.
    pub boxes: Vec<[f32; 4]>,
    /// Class of each box.
    pub classes: Vec<u32>,
}

impl Objects {
    /// Objects in an image with `classes` known classes.
    ///
    /// # Errors
    /// Counts that differ, a box that isn't finite or has no area, or a class that isn't below `known`; the box is named.
    pub fn new(boxes: Vec<[f32; 4]>, classes: Vec<u32>, known: usize) -> Result<Self> {
        let objects = Self { boxes, classes };
        objects.check(known)?;
        Ok(objects)
    }

    /// Refuses what no criterion can learn from: the fields may hold anything.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn check(&self, known: usize) -> Result<()> {
        let Self { boxes, classes } = self;
        if boxes.len() != classes.len() {
            bail!("objects: expected {} classes, one a box, got {}", boxes.len(), classes.len())
        }
        for (i, [x0, y0, x1, y1]) in boxes.iter().copied().enumerate() {
            if ![x0, y0, x1, y1].iter().all(|v| v.is_finite()) || x1 <= x0 || y1 <= y0 {
                bail!(
                    "objects: box {i}: expected finite corners with x0 < x1 and y0 < y1, got [{x0}, {y0}, {x1}, {y1}]"
                )
            }
        }
        match classes.iter().enumerate().find(|(_, class)| **class as usize >= known) {
            Some((i, class)) => {
                bail!("objects: box {i}: expected a class below {known}, got {class}")
            }
            None => Ok(()),
        }
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.boxes.len()
    }

    /// Whether there is nothing to be found.
    pub fn is_empty(&self) -> bool {
        self.boxes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_box_is_refused_by_name() {
        let message = |b, c| Objects::new(b, c, 3).err().map(|e| e.to_string()).unwrap_or_default();
        let good = [0., 0., 1., 1.];
        assert!(message(vec![good, [2., 0., 2., 1.]], vec![0, 0]).contains("box 1"));
        assert!(message(vec![[f32::NAN, 0., 2., 1.]], vec![0]).contains("box 0"));
        assert!(message(vec![good], vec![3]).contains("below 3, got 3"));
        assert!(message(vec![good], vec![]).contains("expected 1 classes"));
        assert_eq!(message(vec![good, good], vec![0, 2]), "");
    }
}
