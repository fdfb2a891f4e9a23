//! Reads manifests: YAML or JSON, one or more documents, to [`WorkloadSpec`]s; and writes them back.
//!
//! It opens nothing and looks nothing up. Invariant: what it returns has passed `check_workload`.

use crate::check::check_workload;
use crate::fault::{ManifestError, ManifestFault};
use crate::locate::line_of;
use crate::manifest::PodSpec;
use crate::record::{WorkloadId, WorkloadKind, WorkloadSpec};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Largest input that is read, in bytes.
pub const MAX_SIZE: usize = 1 << 20;
/// Most documents in one input.
pub const MAX_DOCUMENTS: usize = 256;

/// One document of the supported subset, as it is written.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Manifest {
    /// `v1` Pod.
    Pod(PodManifest),
    /// `apps/v1` Deployment.
    Deployment(DeploymentManifest),
}

/// A Kubernetes `v1` Pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodManifest {
    /// `v1`.
    pub api_version: String,
    /// `Pod`.
    pub kind: String,
    /// Name, namespace, labels.
    pub metadata: Metadata,
    /// What runs.
    pub spec: PodSpec,
}

/// A Kubernetes `apps/v1` Deployment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeploymentManifest {
    /// `apps/v1`.
    pub api_version: String,
    /// `Deployment`.
    pub kind: String,
    /// Name, namespace, labels.
    pub metadata: Metadata,
    /// Replicas and template.
    pub spec: DeploymentSpec,
}

/// `metadata` of a Pod or a Deployment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Name, a DNS label.
    pub name: String,
    /// Namespace, a DNS label.
    #[serde(default = "default_namespace")]
    pub namespace: String,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Accepted and not kept.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

fn default_namespace() -> String {
    "default".to_owned()
}

/// `spec` of a Deployment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeploymentSpec {
    /// Pods wanted; 1 where absent.
    #[serde(default = "default_replicas")]
    pub replicas: u32,
    /// Must select the template's labels.
    pub selector: Selector,
    /// How a new specification is rolled out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// The pods.
    pub template: Template,
}

fn default_replicas() -> u32 {
    1
}

/// `strategy`: only the type, and only the one that there is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Strategy {
    /// `RollingUpdate`: one ordinal at a time.
    #[serde(rename = "type")]
    pub kind: String,
}

/// `selector` of a Deployment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// Labels that the template must carry; not empty.
    pub match_labels: BTreeMap<String, String>,
}

/// `template` of a Deployment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Template {
    /// Labels of the pods.
    #[serde(default)]
    pub metadata: TemplateMetadata,
    /// What each pod runs.
    pub spec: PodSpec,
}

/// `template.metadata`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TemplateMetadata {
    /// Labels of the pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Accepted and not kept.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// The workload that it asks for, defaults filled in.
    ///
    /// # Errors
    /// [`ManifestError`] where a value is not allowed; its path is as in the manifest.
    pub fn into_workload(self) -> Result<WorkloadSpec, ManifestError> {
        let spec = match self {
            Self::Pod(manifest) => WorkloadSpec {
                id: WorkloadId {
                    namespace: manifest.metadata.namespace,
                    kind: WorkloadKind::Pod,
                    name: manifest.metadata.name,
                },
                replicas: 1,
                labels: manifest.metadata.labels,
                pod: manifest.spec,
            },
            Self::Deployment(manifest) => {
                check_selector(&manifest.spec)?;
                WorkloadSpec {
                    id: WorkloadId {
                        namespace: manifest.metadata.namespace,
                        kind: WorkloadKind::Deployment,
                        name: manifest.metadata.name,
                    },
                    replicas: manifest.spec.replicas,
                    labels: manifest.spec.template.metadata.labels,
                    pod: manifest.spec.template.spec,
                }
            }
        };
        check_workload(&spec)?;
        Ok(spec)
    }
}

fn check_selector(spec: &DeploymentSpec) -> Result<(), ManifestError> {
    let invalid = |path: &str, what: String, hint: &str| {
        Err(ManifestError::at(path, ManifestFault::Invalid(what), hint))
    };
    if let Some(Strategy { kind }) = spec
        .strategy
        .as_ref()
        .filter(|strategy| strategy.kind != "RollingUpdate")
    {
        let what = format!("`{kind}` is not supported");
        return invalid(
            "spec.strategy.type",
            what,
            "leave `strategy` out: ordinals are replaced one at a time",
        );
    }
    if spec.selector.match_labels.is_empty() {
        return invalid(
            "spec.selector.matchLabels",
            "empty".into(),
            "repeat labels of `spec.template.metadata.labels` here",
        );
    }
    for (key, value) in &spec.selector.match_labels {
        if spec.template.metadata.labels.get(key) != Some(value) {
            let what = format!("`{key}: {value}` is not among the labels of the template");
            return invalid(
                "spec.selector.matchLabels",
                what,
                "add it to `spec.template.metadata.labels`",
            );
        }
    }
    Ok(())
}

impl From<&WorkloadSpec> for Manifest {
    /// The manifest that gives `spec` again. A Deployment without labels gets the selector `app: <name>`.
    fn from(spec: &WorkloadSpec) -> Self {
        let metadata = |labels| Metadata {
            name: spec.id.name.clone(),
            namespace: spec.id.namespace.clone(),
            labels,
            annotations: BTreeMap::new(),
        };
        match spec.id.kind {
            WorkloadKind::Pod => Self::Pod(PodManifest {
                api_version: "v1".into(),
                kind: "Pod".into(),
                metadata: metadata(spec.labels.clone()),
                spec: spec.pod.clone(),
            }),
            WorkloadKind::Deployment => Self::Deployment(DeploymentManifest {
                api_version: "apps/v1".into(),
                kind: "Deployment".into(),
                metadata: metadata(BTreeMap::new()),
                spec: DeploymentSpec {
                    replicas: spec.replicas,
                    selector: Selector {
                        match_labels: spec.labels.clone(),
                    },
                    strategy: None,
                    template: Template {
                        metadata: TemplateMetadata {
                            labels: spec.labels.clone(),
                            annotations: BTreeMap::new(),
                        },
                        spec: spec.pod.clone(),
                    },
                },
            }),
        }
    }
}

/// `spec` as a YAML manifest.
///
/// # Errors
/// [`serde_saphyr::SerializeError`] where it cannot be written.
pub fn to_yaml(spec: &WorkloadSpec) -> Result<String, serde_saphyr::SerializeError> {
    serde_saphyr::to_string(&Manifest::from(spec))
}

/// The workloads of a YAML or JSON text of one or more documents (`---` between them), in their order.
///
/// # Errors
/// The first [`ManifestError`]: too large, not YAML, an unsupported kind or field, a value that is not allowed, or two
/// documents for one workload. It is all or nothing.
pub fn parse_manifests(input: &str) -> Result<Vec<WorkloadSpec>, ManifestError> {
    if input.len() > MAX_SIZE {
        let what = ManifestFault::TooLarge {
            size: input.len(),
            max: MAX_SIZE,
        };
        return Err(ManifestError::at("", what, "split it into several files"));
    }
    let options = serde_saphyr::options! { with_snippet: false };
    let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple_with_options(input, options)
        .map_err(|error| {
            let line = error
                .location()
                .map(|location| location.line())
                .filter(|line| *line > 0);
            let what = ManifestFault::Syntax(error.to_string());
            ManifestError {
                line,
                ..ManifestError::at("", what, "")
            }
        })?;
    if documents.is_empty() || documents.len() > MAX_DOCUMENTS {
        let what = ManifestFault::Documents {
            found: documents.len(),
            max: MAX_DOCUMENTS,
        };
        return Err(ManifestError::at("", what, ""));
    }
    let mut seen = BTreeSet::new();
    let mut specs = Vec::with_capacity(documents.len());
    for (index, value) in documents.into_iter().enumerate() {
        let spec = read_document(value)
            .and_then(Manifest::into_workload)
            .and_then(|spec| {
                if seen.insert(spec.id.clone()) {
                    return Ok(spec);
                }
                let what = ManifestFault::Duplicate(spec.id.to_string());
                Err(ManifestError::at(
                    "metadata.name",
                    what,
                    "a workload is described once",
                ))
            });
        specs.push(spec.map_err(|mut error| {
            error.document = index + 1;
            error.line = line_of(input, index + 1, &error.path);
            error
        })?);
    }
    Ok(specs)
}

fn read_document(value: serde_json::Value) -> Result<Manifest, ManifestError> {
    let text = |field: &str| match value.get(field) {
        Some(serde_json::Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(ManifestError::at(
            field,
            ManifestFault::Invalid("expected a text".into()),
            "",
        )),
        None => Err(ManifestError::at(
            field,
            ManifestFault::Missing,
            "a manifest has `apiVersion` and `kind`",
        )),
    };
    if !value.is_object() {
        let what = ManifestFault::Invalid(
            "expected a mapping with `apiVersion`, `kind`, `metadata` and `spec`".into(),
        );
        return Err(ManifestError::at("", what, ""));
    }
    let (version, kind) = (text("apiVersion")?, text("kind")?);
    match (version.as_str(), kind.as_str()) {
        ("v1", "Pod") => read_typed(value).map(Manifest::Pod),
        ("apps/v1", "Deployment") => read_typed(value).map(Manifest::Deployment),
        (version, "Pod" | "Deployment") => {
            let what = ManifestFault::Kind(version.chars().take(80).collect());
            Err(ManifestError::at(
                "apiVersion",
                what,
                "`v1` Pod and `apps/v1` Deployment are supported",
            ))
        }
        (_, kind) => {
            let what = ManifestFault::Kind(kind.chars().take(80).collect());
            Err(ManifestError::at(
                "kind",
                what,
                "`v1` Pod and `apps/v1` Deployment are supported",
            ))
        }
    }
}

fn read_typed<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> Result<T, ManifestError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let path = if path == "." { String::new() } else { path };
        let message = error.inner().to_string();
        let field = |prefix: &str| {
            let name = message.strip_prefix(prefix)?.split('`').next()?;
            let last = path.rsplit('.').next().unwrap_or("");
            Some(match (last == name, path.is_empty()) {
                (true, _) => path.clone(),
                (false, true) => name.to_owned(),
                (false, false) => format!("{path}.{name}"),
            })
        };
        if let Some(path) = field("unknown field `") {
            let allowed = message.split_once("expected ").map_or("", |(_, allowed)| allowed);
            return ManifestError::at(
                path,
                ManifestFault::Unsupported,
                format!("supported here: {allowed}"),
            );
        }
        if let Some(path) = field("missing field `") {
            return ManifestError::at(path, ManifestFault::Missing, "");
        }
        ManifestError::at(path, ManifestFault::Invalid(message), "")
    })
}
