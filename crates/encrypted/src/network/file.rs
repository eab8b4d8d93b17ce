//! A network as one safetensors file.
//!
//! | tensor | type, shape |
//! | --- | --- |
//! | `{i}.weight` | I8, I16 or I32, whichever holds all, `[outputs, inputs]` or `[channels, channels_in, kernel, kernel]` |
//! | `{i}.bias` | F64, `[outputs]` or `[channels]` |
//! | `input.offset`, `input.factor` | F64, `[width]`, or `[1]` if all are the same |
//!
//! `i` is the layer's position from 0, squares included. Everything else is JSON in the file's metadata, under
//! `spnn.network`.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use spnn_nn::Loss;

use super::{
    Convolution, Input, LAYERS_MAX, Layer, Linear, Network, NetworkError, Shape, WIDTH_MAX, in_layer, misfit, product,
};

const METADATA_KEY: &str = "spnn.network";

/// The only format so far.
const FORMAT: u32 = 1;

/// Beyond it nothing is read: [`super::WIDTH_MAX`] and [`super::WEIGHT_MAX`] allow larger networks than any encryption
/// answers from, and a file must not fill the memory.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// What weights are stored as.
const INTEGERS: [Dtype; 3] = [Dtype::I8, Dtype::I16, Dtype::I32];

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Description {
    format: u32,
    name: String,
    loss: Loss,
    classes: Vec<String>,
    input: InputDescription,
    layers: Vec<LayerDescription>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct InputDescription {
    width: usize,
    image: Option<[usize; 3]>,
    columns: Vec<String>,
    max: f64,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum LayerDescription {
    Square {},
    Linear { inputs: usize, outputs: usize, fraction_bits: u32, output_max: f64 },
    Conv2d { conv: Convolution, fraction_bits: u32, output_max: f64 },
}

impl Network {
    /// Writes the network as one file, whole or not at all.
    ///
    /// # Errors
    /// [`NetworkError::Storage`]; what [`Network::new`] finds, if fields were changed since.
    pub fn save(&self, file: &Path) -> Result<(), NetworkError> {
        let bytes = self.to_bytes()?;
        let mut beside = file.as_os_str().to_owned();
        beside.push(".new");
        let write = || {
            let mut new = File::create(&beside)?;
            new.write_all(&bytes)?;
            new.sync_all()?;
            fs::rename(&beside, file)
        };
        write().map_err(|source| NetworkError::Storage { file: file.to_path_buf(), source })
    }

    /// Reads a network that [`Network::save`] wrote.
    ///
    /// # Errors
    /// [`NetworkError::Storage`], or [`NetworkError::File`] with the file, the layer, what was expected and what is there.
    pub fn load(file: &Path) -> Result<Self, NetworkError> {
        let bytes = read(file).map_err(|source| NetworkError::Storage { file: file.to_path_buf(), source })?;
        Self::from_bytes(&bytes)
            .map_err(|source| NetworkError::File { file: file.to_path_buf(), source: Box::new(source) })
    }

    /// The file's bytes; the same for the same network.
    ///
    /// # Errors
    /// What [`Network::new`] finds, if fields were changed since.
    pub fn to_bytes(&self) -> Result<Vec<u8>, NetworkError> {
        self.check()?;
        let mut tensors = Vec::new();
        for (what, values) in [("input.offset", &self.input.offset), ("input.factor", &self.input.factor)] {
            let all_the_same = values.windows(2).all(|pair| pair[0].to_bits() == pair[1].to_bits());
            let stored = if all_the_same { &values[..1] } else { values };
            tensors.push((what.to_owned(), Dtype::F64, vec![stored.len()], bytes_of_f64(stored)));
        }
        for (position, layer) in self.layers.iter().enumerate() {
            let Layer::Linear(linear) = layer else { continue };
            let (dtype, weights) = stored(&linear.kernel);
            let bias = linear.stored_bias();
            tensors.push((format!("{position}.weight"), dtype, weight_shape(linear), weights));
            tensors.push((format!("{position}.bias"), Dtype::F64, vec![bias.len()], bytes_of_f64(&bias)));
        }
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| Ok((name, TensorView::new(*dtype, shape.clone(), bytes)?)))
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>();
        let description = serde_json::to_string(&self.description()).map_err(format_error)?;
        let metadata = HashMap::from([(METADATA_KEY.to_owned(), description)]);
        safetensors::serialize(views.map_err(format_error)?, Some(metadata)).map_err(format_error)
    }

    /// Reads the bytes of a file. Any bytes at all are a network or an error.
    ///
    /// # Errors
    /// [`NetworkError::Format`], [`NetworkError::Network`], [`NetworkError::Layer`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NetworkError> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(format_error)?;
        let text = header.metadata().as_ref().and_then(|metadata| metadata.get(METADATA_KEY)).ok_or_else(|| {
            let reason = format!("a safetensors file without {METADATA_KEY} in its metadata; import it first");
            NetworkError::Format { reason }
        })?;
        let format = serde_json::from_str::<Format>(text).map_err(format_error)?.format;
        if format != FORMAT {
            return Err(misfit("the file's format", FORMAT, format));
        }
        let description: Description = serde_json::from_str(text).map_err(format_error)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(format_error)?;
        let mut tensors = Tensors { by_name: tensors.iter().collect() };
        let input = tensors.input(description.input)?;
        if description.layers.len() > LAYERS_MAX {
            return Err(misfit("the number of layers", format!("at most {LAYERS_MAX}"), description.layers.len()));
        }
        let layers = description.layers.into_iter().enumerate();
        let layers = layers.map(|(at, layer)| tensors.layer(at, layer)).collect::<Result<_, _>>()?;
        if let Some(name) = tensors.by_name.keys().next() {
            return Err(misfit("every tensor", "of a layer", format!("{name:?}")));
        }
        Self::new(description.name, input, layers, description.classes, description.loss)
    }

    fn description(&self) -> Description {
        let Input { width, image, columns, max, .. } = self.input.clone();
        let layers = self.layers.iter().map(|layer| match layer {
            Layer::Square => LayerDescription::Square {},
            Layer::Linear(linear) => {
                let &Linear { inputs, outputs, fraction_bits, output_max, .. } = linear;
                match linear.shape {
                    Shape::Dense => LayerDescription::Linear { inputs, outputs, fraction_bits, output_max },
                    Shape::Conv(conv) => LayerDescription::Conv2d { conv, fraction_bits, output_max },
                }
            }
        });
        Description {
            format: FORMAT,
            name: self.name.clone(),
            loss: self.loss,
            classes: self.classes.clone(),
            input: InputDescription { width, image, columns, max },
            layers: layers.collect(),
        }
    }
}

/// Read before everything else, so that another format is called that.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// The tensors of a file that no layer has taken yet.
struct Tensors<'a> {
    by_name: BTreeMap<&'a str, TensorView<'a>>,
}

impl<'a> Tensors<'a> {
    fn input(&mut self, description: InputDescription) -> Result<Input, NetworkError> {
        let InputDescription { width, image, columns, max } = description;
        if width > WIDTH_MAX {
            return Err(misfit("the input's width", format!("1 to {WIDTH_MAX}"), width));
        }
        let mut scale = |name: &str| {
            let found = self.by_name.remove(name);
            let values = found.filter(|view| view.dtype() == Dtype::F64).map(|view| f64_of(view.data()));
            match values {
                Some(values) if values.len() == 1 => Ok(vec![values[0]; width]),
                Some(values) => Ok(values),
                None => Err(misfit("the input's scale", format!("an F64 tensor {name}"), "none")),
            }
        };
        Ok(Input { width, image, columns, offset: scale("input.offset")?, factor: scale("input.factor")?, max })
    }

    fn layer(&mut self, at: usize, layer: LayerDescription) -> Result<Layer, NetworkError> {
        let made = match layer {
            LayerDescription::Square {} => return Ok(Layer::Square),
            LayerDescription::Linear { inputs, outputs, fraction_bits, output_max } => {
                let weights = self.take(at, "weight", &INTEGERS, &[outputs, inputs])?;
                let bias = self.take(at, "bias", &[Dtype::F64], &[outputs])?;
                Linear::dense(inputs, fraction_bits, integers(&weights), f64_of(bias.data()), output_max)
            }
            LayerDescription::Conv2d { conv, fraction_bits, output_max } => {
                let shape = [conv.channels, conv.image[0], conv.kernel, conv.kernel];
                let weights = self.take(at, "weight", &INTEGERS, &shape)?;
                let bias = self.take(at, "bias", &[Dtype::F64], &[conv.channels])?;
                Linear::conv(conv, fraction_bits, integers(&weights), &f64_of(bias.data()), output_max)
            }
        };
        made.map(Layer::Linear).map_err(|error| match error {
            NetworkError::Network { what, expected, found } => NetworkError::Layer { layer: at, what, expected, found },
            other => other,
        })
    }

    fn take(
        &mut self,
        layer: usize,
        what: &'static str,
        dtypes: &[Dtype],
        shape: &[usize],
    ) -> Result<TensorView<'a>, NetworkError> {
        let expected = format!("{dtypes:?} of {shape:?}");
        match self.by_name.remove(format!("{layer}.{what}").as_str()) {
            None => Err(in_layer(layer, what, expected, "no such tensor")),
            Some(view) if dtypes.contains(&view.dtype()) && view.shape() == shape && product(shape).is_some() => {
                Ok(view)
            }
            Some(view) => Err(in_layer(layer, what, expected, format!("{:?} of {:?}", view.dtype(), view.shape()))),
        }
    }
}

fn weight_shape(linear: &Linear) -> Vec<usize> {
    match linear.shape {
        Shape::Dense => vec![linear.outputs, linear.inputs],
        Shape::Conv(conv) => vec![conv.channels, conv.image[0], conv.kernel, conv.kernel],
    }
}

/// At most [`FILE_BYTES_MAX`] of them.
fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

fn bytes_of_f64(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn f64_of(bytes: &[u8]) -> Vec<f64> {
    bytes.as_chunks().0.iter().map(|&chunk| f64::from_le_bytes(chunk)).collect()
}

/// The smallest type that holds all weights, and their bytes.
fn stored(weights: &[i32]) -> (Dtype, Vec<u8>) {
    if let Ok(small) = weights.iter().map(|&weight| i8::try_from(weight)).collect::<Result<Vec<_>, _>>() {
        return (Dtype::I8, small.into_iter().flat_map(i8::to_le_bytes).collect());
    }
    if let Ok(small) = weights.iter().map(|&weight| i16::try_from(weight)).collect::<Result<Vec<_>, _>>() {
        return (Dtype::I16, small.into_iter().flat_map(i16::to_le_bytes).collect());
    }
    (Dtype::I32, weights.iter().flat_map(|weight| weight.to_le_bytes()).collect())
}

/// The weights of a tensor of one of [`INTEGERS`].
fn integers(view: &TensorView<'_>) -> Vec<i32> {
    let bytes = view.data();
    match view.dtype() {
        Dtype::I8 => bytes.iter().map(|&byte| i32::from(byte.cast_signed())).collect(),
        Dtype::I16 => bytes.as_chunks().0.iter().map(|&chunk| i32::from(i16::from_le_bytes(chunk))).collect(),
        _ => bytes.as_chunks().0.iter().map(|&chunk| i32::from_le_bytes(chunk)).collect(),
    }
}

fn format_error(error: impl std::fmt::Display) -> NetworkError {
    // The message may quote the file.
    NetworkError::Format { reason: error.to_string().replace(char::is_control, "?") }
}
