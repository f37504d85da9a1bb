//! From the text of a file to objects: documents are split first, so that a broken one does not
//! hide its neighbours.

use base::FieldError;
use registry::{RegistrySource, RegistrySync, Secret, SecretKey};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use super::{Kind, Labels, Object, ObjectId, Spec, validate};

/// Kinds of Istio that pilot does not act on yet.
const NOT_IMPLEMENTED: &[&str] = &[
    "Gateway",
    "EnvoyFilter",
    "WorkloadGroup",
    "ProxyConfig",
    "AuthorizationPolicy",
    "PeerAuthentication",
    "RequestAuthentication",
    "Telemetry",
    "WasmPlugin",
    "TrafficExtension",
];

/// One document of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Its number in the file, from 1.
    pub number: usize,
    /// The line it starts at, from 1.
    pub line: usize,
    /// What it names, when that much can be read.
    pub id: Option<ObjectId>,
    /// The object, or what is wrong with it.
    pub result: Result<Object, FieldError>,
}

/// Parses all documents of a file. Empty ones are left out.
pub fn parse(text: &str) -> Vec<Document> {
    split(text)
        .filter(|(_, _, text)| !is_blank(text))
        .map(|(number, line, text)| document(number, line, text))
        .collect()
}

/// Splits at `---` lines: (number, first line, text).
fn split(text: &str) -> impl Iterator<Item = (usize, usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let end = offset;
        offset += line.len();
        let bare = line.trim_end();
        if bare == "---" || bare.starts_with("--- ") || bare == "..." {
            documents.push((start_line, &text[start..end]));
            start = if bare.starts_with("--- ") {
                end + 3
            } else {
                offset
            };
            start_line = index + 2;
        }
    }
    documents.push((start_line, &text[start..]));
    // A file that begins with `---` has no document before it.
    if documents.len() > 1 && documents.first().is_some_and(|(_, text)| is_blank(text)) {
        documents.remove(0);
    }
    documents
        .into_iter()
        .enumerate()
        .map(|(index, (line, text))| (index + 1, line, text))
}

fn is_blank(text: &str) -> bool {
    text.lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
}

fn document(number: usize, line: usize, text: &str) -> Document {
    let failed = |id, error| Document {
        number,
        line,
        id,
        result: Err(error),
    };
    let value: Value = match serde_saphyr::from_str(text) {
        Ok(value) => value,
        Err(error) => return failed(None, FieldError::new(error.to_string())),
    };
    let id = identify(&value);
    match object(value) {
        Ok(object) => Document {
            number,
            line,
            id: Some(object.id.clone()),
            result: Ok(object),
        },
        Err(error) => failed(id, error),
    }
}

/// The name of an object whose rest may be wrong.
fn identify(value: &Value) -> Option<ObjectId> {
    let metadata = value.get("metadata")?;
    Some(ObjectId {
        kind: Kind::from_name(value.get("kind")?.as_str()?)?,
        namespace: metadata
            .get("namespace")
            .and_then(Value::as_str)
            .unwrap_or("default")
            .to_owned(),
        name: metadata.get("name")?.as_str()?.to_owned(),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Envelope {
    api_version: String,
    kind: String,
    metadata: Metadata,
    #[serde(default)]
    spec: Value,
    #[serde(default)]
    #[allow(dead_code, reason = "known, so that it is not an unknown field")]
    status: IgnoredAny,
}

/// Kubernetes' ObjectMeta: what pilot reads, and the names of the rest.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(dead_code, reason = "known, so that they are not unknown fields")]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    labels: Option<Labels>,
    #[serde(default)]
    annotations: Option<Labels>,
    #[serde(default)]
    creation_timestamp: IgnoredAny,
    #[serde(default)]
    deletion_timestamp: IgnoredAny,
    #[serde(default)]
    deletion_grace_period_seconds: IgnoredAny,
    #[serde(default)]
    finalizers: IgnoredAny,
    #[serde(default)]
    generate_name: IgnoredAny,
    #[serde(default)]
    generation: IgnoredAny,
    #[serde(default)]
    managed_fields: IgnoredAny,
    #[serde(default)]
    owner_references: IgnoredAny,
    #[serde(default)]
    resource_version: IgnoredAny,
    #[serde(default)]
    self_link: IgnoredAny,
    #[serde(default)]
    uid: IgnoredAny,
}

/// Gives the words of Secrets that objects name, or says why not.
pub type Words<'a> = dyn Fn(&SecretKey) -> Result<Secret, String> + 'a;

/// Parses and validates one object, which can name no Secrets.
pub fn object(value: Value) -> Result<Object, FieldError> {
    object_with(value, &|_| {
        Err("only an object in Kubernetes can name a Secret".to_owned())
    })
}

/// Parses and validates one object.
pub fn object_with(value: Value, words: &Words<'_>) -> Result<Object, FieldError> {
    let envelope: Envelope = typed(value)?;
    let Some(kind) = Kind::from_name(&envelope.kind) else {
        let message = if NOT_IMPLEMENTED.contains(&envelope.kind.as_str()) {
            format!("{} is not implemented", envelope.kind)
        } else {
            format!("{} is no kind of Istio's or of this mesh", envelope.kind)
        };
        return Err(FieldError::at("kind", message));
    };
    if !kind.is_of(&envelope.api_version) {
        let message = format!(
            "`{}` has no {kind}: it is {}",
            envelope.api_version,
            kind.api_version()
        );
        return Err(FieldError::at("apiVersion", message));
    }
    let metadata = envelope.metadata;
    let namespace = metadata
        .namespace
        .filter(|namespace| !namespace.is_empty())
        .unwrap_or_else(|| "default".to_owned());
    validate::object_name(&metadata.name).map_err(|e| e.in_field("name").in_field("metadata"))?;
    validate::label(&namespace).map_err(|e| e.in_field("namespace").in_field("metadata"))?;

    let mut warnings = Vec::new();
    let spec = spec(kind, envelope.spec, words, &mut warnings).map_err(|e| e.in_field("spec"))?;
    Ok(Object {
        id: ObjectId {
            kind,
            namespace,
            name: metadata.name,
        },
        labels: metadata.labels.unwrap_or_default(),
        annotations: metadata.annotations.unwrap_or_default(),
        spec,
        warnings,
    })
}

fn spec(
    kind: Kind,
    value: Value,
    words: &Words<'_>,
    warnings: &mut Vec<String>,
) -> Result<Spec, FieldError> {
    let value = if value.is_null() {
        Value::Object(serde_json::Map::new())
    } else {
        value
    };
    Ok(match kind {
        Kind::ServiceEntry => {
            let spec = typed(value)?;
            validate::service_entry(&spec, warnings)?;
            Spec::ServiceEntry(spec.into())
        }
        Kind::WorkloadEntry => {
            let spec = typed(value)?;
            validate::workload_entry(&spec)?;
            Spec::WorkloadEntry(spec.into())
        }
        Kind::VirtualService => {
            let spec = typed(value)?;
            validate::virtual_service(&spec, warnings)?;
            Spec::VirtualService(spec.into())
        }
        Kind::DestinationRule => {
            let spec = typed(value)?;
            validate::destination_rule(&spec, warnings)?;
            Spec::DestinationRule(spec.into())
        }
        Kind::Sidecar => {
            let spec = typed(value)?;
            validate::sidecar(&spec, warnings)?;
            Spec::Sidecar(spec.into())
        }
        Kind::RegistrySource => {
            let mut spec: RegistrySource = typed(value)?;
            spec.resolve(words)?;
            spec.compile("")?;
            Spec::RegistrySource(spec.into())
        }
        Kind::RegistrySync => {
            let spec: RegistrySync = typed(value)?;
            spec.compile("")?;
            Spec::RegistrySync(spec.into())
        }
    })
}

/// Deserialises with the path of the field that is wrong.
pub fn typed<T: DeserializeOwned>(value: Value) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let message = error.inner().to_string();
        let mut path = error.path().to_string();
        if path == "." {
            path.clear();
        }
        // An unknown field is an error of the struct that holds it: say which field it was.
        if let Some(field) = message
            .strip_prefix("unknown field `")
            .and_then(|rest| rest.split('`').next())
        {
            if path.rsplit('.').next() != Some(field) {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(field);
            }
            return FieldError {
                path,
                message: "unknown field".to_owned(),
            };
        }
        FieldError { path, message }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: a\nspec:\n  hosts: [a.example]\n  ports: [{number: 80, name: http, protocol: HTTP}]\n  resolution: DNS\n";

    #[test]
    fn a_broken_document_leaves_the_others() {
        let text = format!(
            "---\n{GOOD}---\nkind: [\n---\n# nothing\n---\n{}",
            GOOD.replace("name: a", "name: b")
                .replace("resolution", "resolutoin")
        );
        let documents = parse(&text);
        assert_eq!(documents.len(), 3);
        assert!(documents[0].result.is_ok(), "{:?}", documents[0].result);
        assert_eq!(documents[0].line, 2);
        assert!(documents[1].result.is_err());
        assert_eq!(documents[1].id, None);
        assert_eq!(documents[2].number, 4);
        let error = documents[2].result.as_ref().expect_err("a misspelt field");
        assert_eq!(error.path, "spec.resolutoin");
        assert_eq!(
            documents[2].id.as_ref().map(ToString::to_string).as_deref(),
            Some("ServiceEntry default/b")
        );
    }

    #[test]
    fn errors_have_the_path_of_the_field() {
        for (change, to, path) in [
            ("number: 80", "number: eighty", "spec.ports[0].number"),
            ("number: 80", "nummer: 80", "spec.ports[0].nummer"),
            ("kind: ServiceEntry", "kind: Gateway", "kind"),
            ("kind: ServiceEntry", "kind: Deployment", "kind"),
            ("networking.istio.io/v1", "apps/v1", "apiVersion"),
            ("  name: a", "  name: a\n  colour: red", "metadata.colour"),
            ("resolution: DNS", "resolution: LUCK", "spec.resolution"),
        ] {
            let documents = parse(&GOOD.replace(change, to));
            let error = documents[0].result.as_ref().expect_err(to);
            assert_eq!(error.path, path, "{to}: {error}");
        }
    }
}
