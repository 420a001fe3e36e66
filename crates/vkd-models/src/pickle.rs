//! `.pth` and `.pt` of `torch.save`: a zip of one pickle, which says what lies where, and one file a storage.
//!
//! candle reads the pickle; where its own reader passes over dtypes and refuses strides, this one names or copies them.

use crate::{TensorEntry, plain};
use candle_core::pickle::{Object, Stack};
use candle_core::{Error, Result, bail};
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use zip::ZipArchive;

/// How the form from before PyTorch 1.6 begins: a pickle whose first value is a long magic number.
const LEGACY: [u8; 4] = [0x80, 2, 0x8a, 10];
/// Dicts inside dicts that are looked into.
const DEPTH: usize = 4;
/// Held while a pickle is read: the panic hook is the process's.
static HOOK: Mutex<()> = Mutex::new(());

type Dict = [(Object, Object)];

/// The tensors of a file, of the dict that `key` names.
pub(crate) fn read(path: &Path, key: Option<&str>) -> Result<BTreeMap<String, TensorEntry>> {
    let named = |e: Error| Error::Msg(format!("{}: {}", path.display(), plain(&e)));
    let open = || -> Result<_> {
        let mut head = [0; 4];
        let length = File::open(path)?.read(&mut head)?;
        if head[..length] == LEGACY {
            bail!(
                "expected a zip of torch.save, got its form from before PyTorch 1.6: load it with torch.load and save it \
                 again with torch.save, or as .safetensors"
            )
        }
        tensors(File::open(path)?, key)
    };
    open().map_err(named)
}

fn tensors(file: File, key: Option<&str>) -> Result<BTreeMap<String, TensorEntry>> {
    let got = |e: &dyn std::fmt::Display| {
        Error::Msg(format!("expected a zip of torch.save with a dict of tensors, got: {e}"))
    };
    let mut zip = ZipArchive::new(BufReader::new(file)).map_err(|e| got(&e))?;
    let names: Vec<String> = zip.file_names().flatten().map(|n| n.into_owned()).collect();
    let Some(root) = names.iter().find_map(|n| n.strip_suffix("/data.pkl")) else {
        return Err(got(&"a zip without data.pkl"));
    };
    if names.iter().any(|n| n.starts_with(&format!("{root}/code/"))) {
        return Err(got(&"a TorchScript archive: save its state_dict() with torch.save"));
    }
    if names.contains(&format!("{root}/byteorder"))
        && member(&mut zip, &format!("{root}/byteorder"))? == b"big"
    {
        return Err(got(&"values in big-endian order"));
    }
    let pickle = member(&mut zip, &format!("{root}/data.pkl"))?;
    let object = unpickle(&pickle).map_err(|e| got(&plain(&e)))?;
    let dict = choose(&object, key)?;
    let mut found = Vec::new();
    for (name, value) in dict {
        let Object::Unicode(name) = name else { continue };
        let named = |e: Error| Error::Msg(format!("{name}: {}", plain(&e)));
        if let Some(stored) = Stored::of(value).map_err(named)? {
            found.push((name, stored));
        }
    }
    // Views of one storage follow one another, so that it is read once and never held beside another.
    found.sort_by(|a, b| a.1.storage.cmp(&b.1.storage));
    let (mut at, mut bytes) = ("", Vec::new());
    let mut entries = BTreeMap::new();
    for (name, stored) in &found {
        let named = |e: Error| Error::Msg(format!("{name}: {}", plain(&e)));
        if at != stored.storage || bytes.is_empty() {
            bytes = member(&mut zip, &format!("{root}/data/{}", stored.storage)).map_err(named)?;
            at = &stored.storage;
        }
        let (dtype, shape) = (stored.dtype, stored.shape.clone());
        let entry = TensorEntry { dtype, shape, bytes: stored.values(&bytes).map_err(named)? };
        entries.insert((*name).clone(), entry);
    }
    Ok(entries)
}

fn member(zip: &mut ZipArchive<impl Read + Seek>, name: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = zip.by_name(name).map_err(Error::wrap).and_then(|mut file| {
        file.read_to_end(&mut bytes)?;
        Ok(())
    });
    match read {
        Ok(()) => Ok(bytes),
        Err(e) => bail!("expected the whole of {name} in the zip, got: {}", plain(&e)),
    }
}

fn unpickle(bytes: &[u8]) -> Result<Object> {
    let read = || {
        let mut stack = Stack::empty();
        stack.read_loop(&mut &bytes[..])?;
        stack.finalize()
    };
    // Without optimisation candle panics on numbers of 64 bits and more; the hook that reports panics as ours must not speak.
    let lock = HOOK.lock().unwrap_or_else(PoisonError::into_inner);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let read = std::panic::catch_unwind(read);
    std::panic::set_hook(hook);
    drop(lock);
    read.unwrap_or_else(|_| bail!("a pickle that can't be read"))
}

/// The dict of tensors that is meant: `key`'s, or the outermost unless one inside it has more tensors.
fn choose<'a>(object: &'a Object, key: Option<&str>) -> Result<&'a Dict> {
    let Object::Dict(top) = object else {
        bail!("expected a dict of tensors, got {}", describe(object))
    };
    let mut inner = Vec::new();
    holders(top, "", DEPTH, &mut inner);
    inner.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    let hint = match inner.first() {
        Some((best, _)) => {
            let all: Vec<_> = inner.iter().map(|(name, n)| format!("{name} ({n})")).collect();
            format!("; it has tensors under {}: name the key, as in --key {best}", all.join(", "))
        }
        None => String::new(),
    };
    let Some(key) = key else {
        let most = inner.first().map_or(0, |(_, count)| *count);
        let own = count(top);
        if own == 0 || own < most {
            bail!("expected a dict of tensors, got {own} at its top{hint}")
        }
        return Ok(top);
    };
    match find(top, key) {
        Some(Object::Dict(dict)) if count(dict) > 0 => Ok(dict),
        Some(other) => {
            bail!("key {key}: expected a dict of tensors, got {}{hint}", describe(other))
        }
        None => bail!("key {key}: expected it in the file, got none such{hint}"),
    }
}

/// The value at `key`, `ema.model` for one in a dict within.
fn find<'a>(dict: &'a Dict, key: &str) -> Option<&'a Object> {
    dict.iter().find_map(|(name, value)| {
        let Object::Unicode(name) = name else { return None };
        match (key.strip_prefix(name.as_str())?, value) {
            ("", value) => Some(value),
            (rest, Object::Dict(inner)) => find(inner, rest.strip_prefix('.')?),
            _ => None,
        }
    })
}

/// How many tensors are in this dict itself.
fn count(dict: &Dict) -> usize {
    let tensor = |(name, value): &&(Object, Object)| {
        matches!(name, Object::Unicode(_)) && !matches!(Stored::of(value), Ok(None))
    };
    dict.iter().filter(tensor).count()
}

/// The dicts inside that hold tensors, with their number.
fn holders(dict: &Dict, under: &str, depth: usize, found: &mut Vec<(String, usize)>) {
    for (name, value) in dict {
        let (Object::Unicode(name), Object::Dict(inner)) = (name, value) else { continue };
        let path = format!("{under}{name}");
        match count(inner) {
            0 => {}
            count => found.push((path.clone(), count)),
        }
        if depth > 1 {
            holders(inner, &format!("{path}."), depth - 1, found);
        }
    }
}

fn describe(object: &Object) -> String {
    match object {
        Object::Dict(_) => "a dict of none".to_owned(),
        Object::List(_) | Object::Tuple(_) => "a list".to_owned(),
        Object::Build { callable: class, .. } | Object::Reduce { callable: class, .. } => {
            match &**class {
                Object::Class { module_name, class_name } => format!(
                    "an object of class {module_name}.{class_name}: save its state_dict() instead"
                ),
                inner => describe(inner),
            }
        }
        _ => "another value".to_owned(),
    }
}

/// Whether what PyTorch notes beside a tensor says that its values have another sign or imaginary part than what is stored.
fn is_lazy(note: &Object) -> bool {
    match note {
        Object::Dict(entries) => entries.iter().any(|(_, value)| *value == Object::Bool(true)),
        _ => false,
    }
}

/// Where a tensor's values lie; offset and strides count values.
struct Stored {
    dtype: Dtype,
    storage: String,
    offset: usize,
    shape: Vec<usize>,
    stride: Vec<usize>,
}

impl Stored {
    /// The tensor that a value of a dict is, if it is one.
    fn of(value: &Object) -> Result<Option<Self>> {
        match value {
            Object::Reduce { callable, args } => match (&**callable, &**args) {
                (function @ Object::Class { .. }, Object::Tuple(args)) => {
                    Self::made(function, args)
                }
                _ => Ok(None),
            },
            _ => Ok(None),
        }
    }

    /// The tensor that PyTorch makes with `function`; other functions make other things.
    fn made(function: &Object, args: &[Object]) -> Result<Option<Self>> {
        let lazy = |from: usize| match args.get(from..).is_some_and(|rest| rest.iter().any(is_lazy))
        {
            true => bail!(
                "expected plain values, got a lazily negated or conjugated tensor: save it after resolve_neg() or resolve_conj()"
            ),
            false => Ok(()),
        };
        let Object::Class { module_name, class_name } = function else { return Ok(None) };
        match (module_name.as_str(), class_name.as_str(), args) {
            ("torch._utils", "_rebuild_tensor_v2", [storage, offset, shape, stride, ..]) => {
                lazy(6)?;
                Self::dense(storage, None, [offset, shape, stride]).map(Some)
            }
            (
                "torch._utils",
                "_rebuild_tensor_v3",
                [storage, offset, shape, stride, _, _, dtype, ..],
            ) => {
                lazy(7)?;
                Self::dense(storage, Some(dtype), [offset, shape, stride]).map(Some)
            }
            (
                "torch._utils",
                "_rebuild_parameter" | "_rebuild_parameter_with_state",
                [tensor, ..],
            ) => Self::of(tensor),
            ("torch._tensor", "_rebuild_from_type_v2", [inner, _, Object::Tuple(args), ..]) => {
                Self::made(inner, args)
            }
            ("torch._utils" | "torch._tensor", name, _) if name.starts_with("_rebuild") => {
                bail!("expected a dense tensor, got what {name} makes")
            }
            _ => Ok(None),
        }
    }

    /// `dtype` where the storage has none of its own.
    fn dense(
        storage: &Object,
        dtype: Option<&Object>,
        [offset, shape, stride]: [&Object; 3],
    ) -> Result<Self> {
        let wrong = || Error::msg("expected the parts of a tensor as torch.save writes them");
        let Object::PersistentLoad(id) = storage else { return Err(wrong()) };
        let Object::Tuple(id) = &**id else { return Err(wrong()) };
        let [_, class, Object::Unicode(storage), ..] = &id[..] else { return Err(wrong()) };
        let Object::Class { class_name, .. } = dtype.unwrap_or(class) else { return Err(wrong()) };
        let sizes = |tuple: &Object| match tuple {
            Object::Tuple(values) => values.iter().map(size).collect::<Option<Vec<_>>>(),
            _ => None,
        };
        let (Some(offset), Some(shape), Some(stride)) = (size(offset), sizes(shape), sizes(stride))
        else {
            return Err(wrong());
        };
        if shape.len() != stride.len() {
            return Err(wrong());
        }
        Ok(Self { dtype: dtype_of(class_name)?, storage: storage.clone(), offset, shape, stride })
    }

    /// The values in row-major order.
    fn values(&self, storage: &[u8]) -> Result<Vec<u8>> {
        let unit = self.dtype.bitsize() / 8;
        let held = storage.len() / unit;
        let large =
            || Error::msg(format!("expected a size that fits in memory, got {:?}", self.shape));
        let count =
            self.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).ok_or_else(large)?;
        if count == 0 {
            return Ok(Vec::new());
        }
        let last = self.shape.iter().zip(&self.stride).try_fold(self.offset, |at, (size, step)| {
            at.checked_add((size - 1).checked_mul(*step)?)
        });
        if last.is_none_or(|last| last >= held) {
            bail!(
                "expected shape {:?} with strides {:?} from value {} on, got a storage of {held}",
                self.shape,
                self.stride,
                self.offset
            )
        }
        let mut values = Vec::new();
        // An expanded tensor shows more than is stored.
        let bytes = count.checked_mul(unit).ok_or_else(large)?;
        values.try_reserve_exact(bytes).map_err(|_| large())?;
        // The trailing dimensions that lie side by side are one block.
        let (mut block, mut outer) = (1, self.shape.len());
        while let Some(d) = outer.checked_sub(1)
            && (self.shape[d] == 1 || self.stride[d] == block)
        {
            (block, outer) = (block * self.shape[d], d);
        }
        let mut at = vec![0; outer];
        for _ in 0..count / block {
            let start =
                self.offset + at.iter().zip(&self.stride).map(|(i, s)| i * s).sum::<usize>();
            values.extend_from_slice(&storage[start * unit..][..block * unit]);
            for d in (0..outer).rev() {
                at[d] += 1;
                if at[d] < self.shape[d] {
                    break;
                }
                at[d] = 0;
            }
        }
        Ok(values)
    }
}

fn size(value: &Object) -> Option<usize> {
    match value {
        Object::Int(value) => usize::try_from(*value).ok(),
        Object::Long(value) => usize::try_from(*value).ok(),
        _ => None,
    }
}

/// Of a storage's class, or of a dtype that has none.
fn dtype_of(name: &str) -> Result<Dtype> {
    Ok(match name {
        "FloatStorage" => Dtype::F32,
        "DoubleStorage" => Dtype::F64,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "BoolStorage" => Dtype::BOOL,
        "ByteStorage" => Dtype::U8,
        "CharStorage" => Dtype::I8,
        "ShortStorage" => Dtype::I16,
        "IntStorage" => Dtype::I32,
        "LongStorage" => Dtype::I64,
        "ComplexFloatStorage" => Dtype::C64,
        "uint16" => Dtype::U16,
        "uint32" => Dtype::U32,
        "uint64" => Dtype::U64,
        "float8_e4m3fn" => Dtype::F8_E4M3,
        "float8_e5m2" => Dtype::F8_E5M2,
        other => bail!("expected a dtype that safetensors has too, got {other}"),
    })
}
