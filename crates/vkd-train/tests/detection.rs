//! The compact detector learns eight scenes by heart, from batches as training gets them.

use candle_core::{DType, Device, Result, Tensor};
use vkd_models::{DenseLevel, DenseOutput, Fcos, FcosConfig};
use vkd_nn::{AdamW, AdamWConfig, VarStore, cosine};
use vkd_tasks::{DetectionBatch, Objects};
use vkd_train::{
    DetectionBatches, DetectionDataConfig, DetectionDataset, DetectionSource, ScenesConfig,
};

const STEPS: u64 = 250;

/// Strides to the farthest side of a box that a level learns.
const REACH: f32 = 4.;

fn pixel(at: usize, stride: usize) -> f32 {
    (at as f32 + 0.5) * stride as f32
}

/// The smallest object around a pixel whose farthest side is in the level's reach, and the distances to its sides.
fn learnt(objects: &Objects, [x, y]: [f32; 2], reach: [f32; 2]) -> Option<(u32, [f32; 4])> {
    let found =
        objects.boxes.iter().zip(&objects.classes).filter_map(|([x0, y0, x1, y1], class)| {
            let sides = [x - x0, y - y0, x1 - x, y1 - y];
            let far = sides.into_iter().fold(0., f32::max);
            let inside = sides.iter().all(|side| *side > 0.) && far > reach[0] && far <= reach[1];
            inside.then_some(((x1 - x0) * (y1 - y0), *class, sides))
        });
    let smallest = found.min_by(|a, b| a.0.total_cmp(&b.0));
    smallest.map(|(_, class, sides)| (class, sides))
}

/// Targets of a level: classes `(B, K, h, w)`, distances `(B, 4, h, w)` (1 without an object) and where there is one `(B, 1, h, w)`.
fn targets(batch: &DetectionBatch, level: &DenseLevel, last: bool) -> Result<[Tensor; 3]> {
    let (b, k, h, w) = level.logits.dims4()?;
    let stride = level.stride as f32;
    let low = if level.stride == 4 { 0. } else { REACH * stride / 2. };
    let reach = [low, if last { f32::INFINITY } else { REACH * stride }];
    let (mut classes, mut sides, mut some) =
        (vec![0f32; b * k * h * w], vec![1f32; b * 4 * h * w], vec![0f32; b * h * w]);
    for (i, objects) in batch.objects.iter().enumerate() {
        for (y, x) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
            let at = [pixel(x, level.stride), pixel(y, level.stride)];
            let Some((class, distances)) = learnt(objects, at, reach) else { continue };
            let place = |map: usize| (map * h + y) * w + x;
            classes[place(i * k + class as usize)] = 1.;
            some[place(i)] = 1.;
            for (side, distance) in distances.into_iter().enumerate() {
                sides[place(i * 4 + side)] = distance;
            }
        }
    }
    let map = |values, maps| Tensor::from_vec(values, (b, maps, h, w), &Device::Cpu);
    Ok([map(classes, k)?, map(sides, 4)?, map(some, 1)?])
}

/// Focal loss of the classes and the distance of the logarithms of the sides, both over the number of places with an object.
fn loss(batch: &DetectionBatch, output: &DenseOutput) -> Result<Tensor> {
    let (mut sum, mut count) = (Tensor::new(0f32, &Device::Cpu)?, 0f32);
    for (i, level) in output.levels.iter().enumerate() {
        let [classes, sides, some] = targets(batch, level, i + 1 == output.levels.len())?;
        count += some.sum_all()?.to_scalar::<f32>()?;
        let x = &level.logits;
        let entropy = ((x.relu()? - (x * &classes)?)? + (x.abs()?.neg()?.exp()? + 1.)?.log()?)?;
        let missed = (candle_nn::ops::sigmoid(&x.detach())? - &classes)?.sqr()?;
        let off = (level.distances.log()? - sides.log()?)?.abs()?.broadcast_mul(&some)?;
        sum = ((sum + (entropy * missed)?.sum_all()?)? + off.sum_all()?)?;
    }
    sum / f64::from(count.max(1.))
}

fn overlap(a: [f32; 4], b: [f32; 4]) -> f32 {
    let side = |i: usize| (a[i + 2].min(b[i + 2]) - a[i].max(b[i])).max(0.);
    let area = |c: [f32; 4]| (c[2] - c[0]) * (c[3] - c[1]);
    let shared = side(0) * side(1);
    shared / (area(a) + area(b) - shared)
}

/// What image `image` shows where the detector is surest within a box: the class, and how much the boxes overlap.
fn surest(output: &DenseOutput, image: usize, corners: [f32; 4]) -> Result<(u32, f32)> {
    let mut best = (f32::NEG_INFINITY, 0, 0.);
    for level in &output.levels {
        let logits = level.logits.get(image)?.to_vec3::<f32>()?;
        let distances = level.distances.get(image)?.to_vec3::<f32>()?;
        for (class, map) in logits.iter().enumerate() {
            for (y, row) in map.iter().enumerate() {
                for (x, logit) in row.iter().enumerate() {
                    let [px, py] = [pixel(x, level.stride), pixel(y, level.stride)];
                    let [x0, y0, x1, y1] = corners;
                    let inside = px > x0 && px < x1 && py > y0 && py < y1;
                    if inside && *logit > best.0 {
                        let side = |i: usize| distances[i][y][x];
                        let found = [px - side(0), py - side(1), px + side(2), py + side(3)];
                        best = (*logit, class as u32, overlap(found, corners));
                    }
                }
            }
        }
    }
    Ok((best.1, best.2))
}

#[test]
fn a_student_learns_eight_scenes_by_heart() -> Result<()> {
    let scenes = ScenesConfig {
        train: 8,
        size: 48,
        objects: [1, 3],
        scales: [14., 32.],
        overlap: 0.,
        ..ScenesConfig::default()
    };
    let config = DetectionDataConfig::plain(DetectionSource::Scenes(scenes));
    let data = DetectionDataset::open(&config)?;
    let mut batches = DetectionBatches::new(&data, &config, 8, 0)?;
    let store = VarStore::new(0, DType::F32, &Device::Cpu);
    let student = Fcos::new(&FcosConfig::student(), 1, 10, store.builder())?;
    let mut adamw =
        AdamW::new(store.parameters(), AdamWConfig::default(), |_, var| var.rank() > 1)?;
    let mut losses = Vec::new();
    for step in 0..STEPS {
        let batch = batches.get(step)?;
        let loss = loss(&batch, &student.forward(&batch.images)?)?;
        losses.push(loss.to_scalar::<f32>()?);
        adamw.step(&loss.backward()?, cosine(step, STEPS, 20, 3e-3, 0.))?;
    }
    let last = losses[losses.len() - 1];
    assert!(last < 0.1 * losses[0], "loss from {} to {last}", losses[0]);
    let batch = vkd_train::plain_detection(&data, &config, &data.train)?;
    let output = student.forward(&batch.images)?;
    let (mut right, mut overlaps) = (0, Vec::new());
    for (image, objects) in batch.objects.iter().enumerate() {
        for (corners, class) in objects.boxes.iter().zip(&objects.classes) {
            let (found, overlap) = surest(&output, image, *corners)?;
            right += usize::from(found == *class);
            overlaps.push(overlap);
        }
    }
    let (count, least) = (batch.object_count(), overlaps.iter().copied().fold(1., f32::min));
    assert!(count > 8 && right == count, "{right} of {count} classes, overlaps {overlaps:?}");
    assert!(least > 0.6, "{overlaps:?}");
    Ok(())
}
