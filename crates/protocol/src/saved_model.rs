//! A role's own part of a trained model, on disk: `model.safetensors` and `model.json` beside it.

use crate::durable::write_private;
use crate::{ProtocolError, Role, SessionConfig};
use base16ct::lower::encode_string as hex;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use spnn_nn::Parameter;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One named tensor.
#[derive(Clone, PartialEq)]
pub struct Tensor {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, row by row.
    pub values: Vec<f32>,
}

/// A role's part: its tensors, and what it must know to use them (`extra`: a party's scaling).
pub struct SavedModel<Extra> {
    /// The role's tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// What else the role needs.
    pub extra: Extra,
}

#[derive(Serialize, Deserialize)]
struct Manifest<Extra> {
    spnn: String,
    role: Role,
    session: SessionConfig,
    /// SHA-256 of `model.safetensors`, so that the two files cannot be mixed up or damaged unnoticed.
    tensors_sha256: String,
    /// SHA-256 of version, role, `tensors_sha256` and `extra` as compact JSON: a scaling with one digit changed would still
    /// look like one. The session is compared with the role's own.
    content_sha256: String,
    extra: Extra,
}

impl<Extra: Serialize> Manifest<Extra> {
    fn digest(&self) -> serde_json::Result<String> {
        let content = (&self.spnn, self.role, &self.tensors_sha256, &self.extra);
        Ok(hex(&Sha256::digest(serde_json::to_string(&content)?)))
    }
}

const TENSORS: &str = "model.safetensors";
const MANIFEST: &str = "model.json";

impl<Extra: Serialize + DeserializeOwned> SavedModel<Extra> {
    /// The current values of `parameters`.
    #[must_use]
    pub fn of(parameters: &[Parameter<'_>], extra: Extra) -> Self {
        let tensors = parameters
            .iter()
            .map(|p| (p.name.to_string(), Tensor { shape: p.shape.clone(), values: p.value.to_vec() }))
            .collect();
        Self { tensors, extra }
    }

    /// Writes both files, each whole or not at all.
    ///
    /// # Errors
    /// [`ProtocolError::Storage`] naming the file.
    pub fn save(&self, directory: &Path, role: Role, session: &SessionConfig) -> Result<(), ProtocolError> {
        let file = directory.join(TENSORS);
        let storage = |e: &dyn std::fmt::Display| ProtocolError::Storage {
            file: file.clone(),
            source: std::io::Error::other(e.to_string()),
        };
        let views = self
            .tensors
            .iter()
            .map(|(name, t)| {
                let bytes = bytemuck::cast_slice(&t.values);
                Ok((name.as_str(), TensorView::new(Dtype::F32, t.shape.clone(), bytes).map_err(|e| storage(&e))?))
            })
            .collect::<Result<Vec<_>, ProtocolError>>()?;
        let bytes = safetensors::serialize(views, None).map_err(|e| storage(&e))?;
        let mut manifest = Manifest {
            spnn: env!("CARGO_PKG_VERSION").to_owned(),
            role,
            session: session.clone(),
            tensors_sha256: hex(&Sha256::digest(&bytes)),
            content_sha256: String::new(),
            extra: &self.extra,
        };
        manifest.content_sha256 = manifest.digest().map_err(|e| storage(&e))?;
        let text = serde_json::to_string_pretty(&manifest).map_err(|e| storage(&e))?;
        write_private(&file, &[&bytes])?;
        write_private(&directory.join(MANIFEST), &[text.as_bytes()])
    }

    /// Reads both files back and checks that they are this role's part of this session's model.
    ///
    /// # Errors
    /// [`ProtocolError::SavedModel`] naming the file and what does not fit.
    pub fn load(directory: &Path, role: Role, session: &SessionConfig) -> Result<Self, ProtocolError> {
        let (tensors_file, manifest_file) = (directory.join(TENSORS), directory.join(MANIFEST));
        let text = std::fs::read_to_string(&manifest_file).map_err(|e| misfit(&manifest_file, &e))?;
        let manifest: Manifest<Extra> = serde_json::from_str(&text).map_err(|e| misfit(&manifest_file, &e))?;
        if manifest.role != role {
            let reason = format!("is the part of {}, not of {role}", manifest.role);
            return Err(misfit(&manifest_file, &reason));
        }
        if let Some(difference) = session.difference(&manifest.session.canonical()) {
            let reason = format!("belongs to another session: {difference}");
            return Err(misfit(&manifest_file, &reason));
        }
        if manifest.digest().map_err(|e| misfit(&manifest_file, &e))? != manifest.content_sha256 {
            return Err(misfit(&manifest_file, &"its content is not what was saved: damaged or edited"));
        }
        let bytes = std::fs::read(&tensors_file).map_err(|e| misfit(&tensors_file, &e))?;
        if hex(&Sha256::digest(&bytes)) != manifest.tensors_sha256 {
            return Err(misfit(&tensors_file, &"its SHA-256 is not the one in model.json: damaged or mixed up"));
        }
        let parsed = SafeTensors::deserialize(&bytes).map_err(|e| misfit(&tensors_file, &e))?;
        let tensors = parsed
            .iter()
            .map(|(name, view)| {
                if view.dtype() != Dtype::F32 {
                    return Err(misfit(&tensors_file, &format!("tensor {name} is not F32")));
                }
                let values = view.data().chunks_exact(4).map(bytemuck::pod_read_unaligned).collect();
                Ok((name.to_owned(), Tensor { shape: view.shape().to_vec(), values }))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { tensors, extra: manifest.extra })
    }

    /// Puts the saved values into `parameters`.
    ///
    /// # Errors
    /// [`ProtocolError::SavedModel`] naming the tensor that is missing or of another shape.
    pub fn restore(&self, directory: &Path, parameters: &mut [Parameter<'_>]) -> Result<(), ProtocolError> {
        let file = directory.join(TENSORS);
        for parameter in parameters {
            let name = parameter.name.as_ref();
            let tensor = self.tensors.get(name).ok_or_else(|| misfit(&file, &format!("lacks tensor {name}")))?;
            if tensor.shape != parameter.shape {
                let reason = format!("tensor {name} has shape {:?}, expected {:?}", tensor.shape, parameter.shape);
                return Err(misfit(&file, &reason));
            }
            parameter.value.copy_from_slice(&tensor.values);
        }
        Ok(())
    }
}

fn misfit(file: &Path, reason: &dyn std::fmt::Display) -> ProtocolError {
    ProtocolError::SavedModel { file: PathBuf::from(file), reason: reason.to_string() }
}
