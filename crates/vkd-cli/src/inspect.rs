//! `vkd inspect`: what a tensor file holds, and how orthonormal it is.

use crate::tensor_file::Parametrised;
use candle_core::{DType, Result, Tensor};
use std::path::PathBuf;
use vkd_models::TensorFile;
use vkd_ortho::stiefel_residual;

/// A matrix nearer to orthonormal than this is taken for one that is meant to be.
const MEANT: f64 = 1e-2;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// File to read: .safetensors, or .pth and .pt of torch.save
    file: PathBuf,
    /// Key of the state dict inside a .pth or .pt file, `model` for one
    #[arg(long)]
    key: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let file = TensorFile::read(&args.file, args.key.as_deref())?;
    let mut text = String::new();
    let mut metadata: Vec<&String> = file.metadata.iter().flatten().map(|(k, _)| k).collect();
    metadata.sort();
    for key in metadata {
        text.push_str(&format!("metadata: {key}\n"));
    }
    for (key, entry) in &file.entries {
        let shape = format!("{:?}", entry.shape);
        let mut line = format!(
            "{key:<40} {shape:<14} {:<4} {:>9} bytes",
            entry.dtype.to_string(),
            entry.bytes.len()
        );
        let base = key == "base" || key.ends_with(".base");
        if entry.shape.len() == 2
            && (base || key == "weight" || key.ends_with(".weight"))
            && let Ok(tensor) = entry.float(key)
            && (base || of_unit_length(&tensor)?)
        {
            let residual = stiefel_residual(&tensor)?;
            if base || residual < MEANT {
                line.push_str(&format!("  residual {residual:.1e}"));
            }
        }
        text.push_str(&line);
        text.push('\n');
    }
    let found = match Parametrised::find(&file.entries) {
        Ok(found) => found,
        // The list is worth having all the same.
        Err(e) => {
            crate::note(&format!("warning: {}", vkd_train::plain(&e)));
            Vec::new()
        }
    };
    for weight in found {
        if weight.needs_map() {
            text.push_str(&format!("{}: of raw and base; the map is not stored\n", weight.name));
            continue;
        }
        let built = match weight.build(&file.entries, None) {
            Ok(built) => built,
            Err(e) => {
                crate::note(&format!("warning: {}", vkd_train::plain(&e)));
                continue;
            }
        };
        text.push_str(&format!(
            "{}: built with {} (PyTorch's default), residual {:.1e}\n",
            weight.name, built.map, built.residual
        ));
        if let Some(fault) = built.fault {
            crate::note(&format!("warning: {}: not orthonormal: {fault}", weight.name));
        }
    }
    crate::print(&text)
}

/// Whether the columns of a tall matrix, or the rows of a wide one, have about unit length: cheap to ask of an embedding
/// whose products all with all would take minutes.
fn of_unit_length(matrix: &Tensor) -> Result<bool> {
    let (n, k) = matrix.dims2()?;
    let squares = matrix.to_dtype(DType::F64)?.sqr()?.sum(usize::from(n < k))?.to_vec1::<f64>()?;
    Ok(squares.iter().all(|square| (square - 1.).abs() < MEANT))
}
