//! Gaussian blur as three box blurs with fractional ends, as Pillow makes it (Gwosdek et al., SSVM 2011).

use crate::data::Image;

const PASSES: usize = 3;

/// Blur with the standard deviation `radius` in pixels; the border's pixels repeat beyond it.
pub(super) fn gaussian_blur(mut image: Image, radius: f64) -> Image {
    let half = half_width(radius);
    let (width, height, channels) = (image.width, image.height, image.channels);
    for channel in 0..channels {
        for y in 0..height {
            blur_line(&mut image.pixels[y * width * channels + channel..], channels, width, half);
        }
        for x in 0..width {
            blur_line(&mut image.pixels[x * channels + channel..], width * channels, height, half);
        }
    }
    image
}

/// Half the width of a box of which three make the variance; the fraction weighs the pixels at both ends.
fn half_width(radius: f64) -> f64 {
    let variance = radius * radius / PASSES as f64;
    let whole = (((12. * variance + 1.).sqrt() - 1.) / 2.).floor();
    let ends = (2. * whole + 1.) * (whole * (whole + 1.) - 3. * variance)
        / (6. * (variance - (whole + 1.) * (whole + 1.)));
    whole + ends
}

/// All passes over one line of `count` values, `step` bytes apart.
fn blur_line(values: &mut [u8], step: usize, count: usize, half: f64) {
    let whole = half as usize;
    // Weights over 2^24, so that ties round as Pillow's do: pass after pass they would add up.
    let one = 1u32 << 24;
    let inner = (one as f32 / (half as f32 * 2. + 1.)) as u32;
    let outer = (one - (2 * whole as u32 + 1) * inner) / 2;
    // As many repeats on both sides as the window reaches beyond the border.
    let reach = whole + 1;
    let mut line = vec![0u8; count + 2 * reach];
    for (i, value) in line.iter_mut().enumerate() {
        *value = values[i.saturating_sub(reach).min(count - 1) * step];
    }
    for _ in 0..PASSES {
        let before = line.clone();
        let mut sum: u32 = before[1..2 * reach].iter().map(|v| u32::from(*v)).sum();
        for i in 0..count {
            // The window's middle is at i + reach; its whole part is before[i + 1..i + 2 * reach].
            let both = u32::from(before[i]) + u32::from(before[i + 2 * reach]);
            line[i + reach] = ((sum * inner + both * outer + one / 2) >> 24) as u8;
            sum += u32::from(before[i + 2 * reach]);
            sum -= u32::from(before[i + 1]);
        }
        let (first, last) = (line[reach], line[reach + count - 1]);
        line[..reach].fill(first);
        line[reach + count..].fill(last);
    }
    for i in 0..count {
        values[i * step] = line[i + reach];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_stays_and_a_point_keeps_its_mass() {
        let flat = Image { width: 4, height: 3, channels: 3, pixels: vec![77; 36] };
        assert_eq!(gaussian_blur(flat.clone(), 1.7), flat);
        let mut point = Image { width: 21, height: 21, channels: 1, pixels: vec![0; 441] };
        point.pixels[220] = 255;
        let out = gaussian_blur(point, 1.);
        let sum: u32 = out.pixels.iter().map(|v| u32::from(*v)).sum();
        // Each of six passes rounds each of some fifty values by half a level at most; they go both ways.
        assert!((sum as i32 - 255).abs() <= 50, "{sum}");
        assert!((0..441).all(|i| out.pixels[i] == out.pixels[440 - i]));
    }

    #[test]
    fn boxes_have_the_variance() {
        for radius in [0.1f64, 0.5, 1., 2., 7.3] {
            let half = half_width(radius);
            let whole = half.floor();
            let squares: f64 = (1..=whole as usize).map(|d| 2. * (d * d) as f64).sum();
            let ends = 2. * (half - whole) * (whole + 1.) * (whole + 1.);
            let variance = 3. * (squares + ends) / (2. * half + 1.);
            assert!((variance - radius * radius).abs() < 1e-9 * radius.max(1.), "{radius}");
        }
    }
}
