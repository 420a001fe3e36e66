//! The works and their floors, read from `shapes.toml` and, for a GPU, from `device.toml`.

use crate::product::{Dtype, Product};
use candle_core::{Error, Result, bail};
use serde::Deserialize;
use std::path::PathBuf;

/// Says where the scripts of the peers are, for a program that runs far from its sources.
const PEERS: &str = "VKD_BENCH_PEERS";
const TEXT: &str = include_str!("../shapes.toml");
const DEVICE: &str = include_str!("../device.toml");

/// Where the scripts of the peers are.
pub(crate) fn peers() -> PathBuf {
    let own = || concat!(env!("CARGO_MANIFEST_DIR"), "/peers").into();
    std::env::var_os(PEERS).unwrap_or_else(own).into()
}

/// All works.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shapes {
    work: Vec<Work>,
}

/// One work: its name, its sizes, and what any implementation must at least compute and move.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Work {
    /// `crate/work/shape/pass`, or `crate/work/pass` where the work's own name says the shape.
    pub name: String,
    /// The sizes that the bench builds its input from.
    pub shape: Vec<usize>,
    /// Where the floor comes from.
    pub reason: String,
    /// Products of matrices.
    #[serde(default)]
    pub matmuls: Vec<Product>,
    /// Bytes of plain copies, each read once and written once.
    #[serde(default)]
    pub copies: Vec<usize>,
    /// Standard deviation of the input, where the bench draws it.
    #[serde(default = "scale")]
    pub scale: f64,
    /// What the work computes in, and each product that does not say otherwise; f32 where it is not given.
    #[serde(default)]
    pub dtype: Dtype,
    /// Threads that the work is measured with, where not all: in a process of its own.
    #[serde(default)]
    pub threads: Option<usize>,
    /// What another library measures beside the work.
    #[serde(default)]
    pub peer: Option<PeerWork>,
}

/// The same work in another library: who measures it, and what that is asked.
#[derive(Clone, Debug, Deserialize)]
pub struct PeerWork {
    /// The script in `benches/peers`.
    #[serde(default = "script")]
    pub script: String,
    /// Keys of the request beside the sizes: the script says which it knows, and refuses others' values.
    #[serde(flatten)]
    pub request: serde_json::Map<String, serde_json::Value>,
}

/// The one whose requests stand in most lines.
fn script() -> String {
    "torch_ortho.py".to_owned()
}

fn scale() -> f64 {
    0.1
}

impl Shapes {
    /// Reads the list that was compiled in, and checks it.
    ///
    /// # Errors
    /// Broken TOML, a name that is malformed or stands twice, or a work without a floor.
    pub fn read() -> Result<Self> {
        Self::parse("shapes.toml", TEXT)
    }

    /// Reads the list of works on a GPU that was compiled in, and checks it.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn of_devices() -> Result<Self> {
        Self::parse("device.toml", DEVICE)
    }

    /// All works, in the file's order.
    pub fn all(&self) -> &[Work] {
        &self.work
    }

    fn parse(file: &str, text: &str) -> Result<Self> {
        let shapes: Self =
            toml::from_str(text).map_err(|e| Error::Msg(format!("{file}: {e}")).bt())?;
        for (index, work) in shapes.work.iter().enumerate() {
            let name = &work.name;
            let parts: Vec<&str> = name.split('/').collect();
            if !matches!(parts.len(), 3 | 4) || parts.contains(&"") {
                bail!("{file}: expected crate/work[/shape]/pass, got {name}")
            }
            if shapes.work[..index].iter().any(|other| other.name == *name) {
                bail!("{file}: {name} stands twice")
            }
            if let Some(peer) = &work.peer
                && peers().is_dir()
                && !peers().join(&peer.script).is_file()
            {
                bail!("{file}: {name}: no script {} in benches/peers", peer.script)
            }
            if work.matmuls.is_empty() && work.copies.is_empty() {
                bail!("{file}: {name} has no floor")
            }
        }
        Ok(shapes)
    }

    /// The works whose name starts with `crate/work`, in the file's order.
    pub fn of(&self, start: &str) -> Vec<Work> {
        let same =
            |work: &&Work| work.name.strip_prefix(start).is_some_and(|rest| rest.starts_with('/'));
        self.work.iter().filter(same).cloned().collect()
    }
}

impl Work {
    /// What a product of its floor is computed in.
    pub fn dtype_of(&self, product: &Product) -> Dtype {
        product.dtype.unwrap_or(self.dtype)
    }

    /// The two sizes of a matrix.
    ///
    /// # Errors
    /// A shape of another rank.
    pub fn matrix(&self) -> Result<(usize, usize)> {
        match self.shape[..] {
            [rows, columns] => Ok((rows, columns)),
            _ => bail!("{}: expected two sizes, got {:?}", self.name, self.shape),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Dtype, Product, Shapes};

    /// Floating point operations of the products of a floor.
    fn operations(name: &str) -> usize {
        let (work, _) = name.rsplit_once('/').and_then(|(rest, _)| rest.rsplit_once('/')).unwrap();
        let works = Shapes::read().unwrap().of(work);
        let work = works.into_iter().find(|work| work.name == name).unwrap();
        work.matmuls.iter().map(|p| 2 * p.m * p.k * p.n * p.count).sum()
    }

    #[test]
    fn the_stated_formulas_are_what_stands_in_the_file() {
        for (shape, n, k) in [
            ("3024x192/fwd_bwd", 3024, 192),
            ("3024x192/fwd_bwd_1e3", 3024, 192),
            ("3024x384/fwd_bwd", 3024, 384),
            ("256x256/fwd_bwd", 256, 256),
            ("1024x64/fwd_bwd", 1024, 64),
            ("4096x64/fwd_bwd", 4096, 64),
            ("16384x64/fwd_bwd", 16384, 64),
            ("65536x64/fwd_bwd", 65536, 64),
        ] {
            let floor = |work: &str| operations(&format!("ortho/{work}/{shape}"));
            assert_eq!(floor("cayley"), 10 * n * k * k);
            assert_eq!(floor("householder_product"), 12 * n * k * k);
            // Tall: 10nk² around 12 products of a 2k x 2k exponential. Square: the 12 alone.
            let side = n.min(2 * k);
            let around = if n > k { 10 * n * k * k } else { 0 };
            assert_eq!(floor("matrix_exp"), around + 12 * 2 * side.pow(3));
        }
    }

    #[test]
    fn works_of_devices_are_those_of_the_cpu() {
        let (device, cpu) = (Shapes::of_devices().unwrap(), Shapes::read().unwrap());
        let mut same = 0;
        for work in device.all() {
            let found = cpu.all().iter().find(|other| other.name == work.name);
            if let Some(other) = found {
                assert_eq!(
                    (&work.matmuls, &work.copies),
                    (&other.matmuls, &other.copies),
                    "{}",
                    work.name
                );
                same += 1;
            }
        }
        assert!(same > 8, "{same}");
    }

    #[test]
    fn products_of_the_projector_are_f32_in_a_step_of_bf16() {
        let works = Shapes::of_devices().unwrap();
        let half = works.all().iter().filter(|work| work.dtype == Dtype::Bf16);
        let products: Vec<_> =
            half.flat_map(|work| work.matmuls.iter().map(|p| (p, work.dtype_of(p)))).collect();
        // The width of the teacher's features occurs nowhere else.
        let wide = |p: &Product| [p.m, p.k, p.n].contains(&3024);
        for (product, dtype) in &products {
            let want = if wide(product) { Dtype::F32 } else { Dtype::Bf16 };
            assert_eq!(*dtype, want, "{product:?}");
        }
        assert_eq!(products.iter().filter(|(p, _)| wide(p)).count(), 5);
        assert_eq!(products.len(), 7);
    }

    #[test]
    fn a_row_with_one_thread_is_the_same_work() {
        let shapes = Shapes::read().unwrap();
        for (alone, all) in [
            ("nn/vit4_one_thread", "nn/vit4_b32_t50_d192"),
            ("nn/deit_ti_one_thread", "nn/deit_ti_b8_t198"),
            ("nn/cnn_one_thread", "nn/cnn_b64_mnist"),
        ] {
            let [alone, all] = [alone, all].map(|start| shapes.of(start).remove(0));
            assert_eq!((alone.threads, all.threads), (Some(1), None));
            assert_eq!((&alone.shape, &alone.matmuls), (&all.shape, &all.matmuls));
            assert_eq!(alone.copies, all.copies);
        }
    }

    #[test]
    fn a_list_with_a_fault_is_refused() {
        let work = "[[work]]\nname = \"a/b/c/d\"\nshape = [1]\nreason = \"r\"\ncopies = [8]\n";
        assert!(Shapes::parse("f.toml", work).is_ok());
        let with_peer = format!("{work}peer = {{ script = \"torch_norm.py\", op = \"x\" }}\n");
        let peer = Shapes::parse("f.toml", &with_peer).unwrap().work[0].peer.clone().unwrap();
        assert_eq!(
            (peer.script.as_str(), peer.request["op"].as_str()),
            ("torch_norm.py", Some("x"))
        );
        for fault in [
            work.replace("a/b/c/d", "a/b"),
            work.replace("a/b/c/d", "a//c/d"),
            work.replace("copies = [8]", ""),
            work.replace("reason", "because"),
            format!("{work}matmuls = [[1, 2, 3]]\n"),
            format!("{work}peer = {{ script = \"none.py\", op = \"x\" }}\n"),
            format!("{work}{work}"),
        ] {
            let message = Shapes::parse("f.toml", &fault).unwrap_err().to_string();
            assert!(message.starts_with("f.toml: "), "{fault}: {message}");
        }
    }
}
