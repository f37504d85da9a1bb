//! Applications that a Pod declares in its annotation: as its sidecar's node has it, or in the file that Kubernetes' downward
//! API makes of `metadata.annotations`, one `key="value"` a line with the value quoted as Go does it.

use api::mosn::extensions::bootstrap::mesh_registry::v1::MeshRegistry;
use serde_json::Value;

/// The annotation: a list of applications, in YAML or JSON.
pub(super) const ANNOTATION: &str = "mesh.sofastack.io/applications";

/// Reads the annotation: a list, or an object that has it as its only field `applications`.
pub(super) fn parse(text: &str) -> Result<MeshRegistry, String> {
    let document = match api::yaml::to_value(text).map_err(|error| error.to_string())? {
        Value::Array(list) => serde_json::json!({ "applications": list }),
        other => other,
    };
    document_of_applications(&document)
}

/// Reads a document whose only field is `applications`.
pub(super) fn document_of_applications(document: &Value) -> Result<MeshRegistry, String> {
    let keys = document.as_object().map(|object| {
        let mut keys = object.keys().map(String::as_str);
        keys.all(|key| key == "applications")
    });
    if keys != Some(true) {
        return Err("must be an object with the field applications and no other".to_owned());
    }
    api::json::from_value(document).map_err(|error| error.to_string())
}

/// The annotation in a file of the downward API; `None`: it is no such file. A Pod without the annotation declares nothing.
pub(super) fn of_file(text: &str) -> Option<Result<MeshRegistry, String>> {
    let mut found = None;
    let mut lines = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .peekable();
    lines.peek()?;
    for line in lines {
        let (key, quoted) = line.split_once('=')?;
        let is_key = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if key.is_empty() || !key.chars().all(is_key) {
            return None;
        }
        let quoted = quoted.strip_prefix('"')?.strip_suffix('"')?;
        if key == ANNOTATION {
            found = Some(unquote(quoted));
        }
    }
    Some(match found {
        None => Ok(MeshRegistry::default()),
        Some(None) => Err(format!("{ANNOTATION} is not quoted well")),
        Some(Some(text)) => parse(&text).map_err(|error| format!("{ANNOTATION}: {error}")),
    })
}

/// What stands between Go's quotation marks.
fn unquote(quoted: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(quoted.len());
    let mut rest = quoted.chars();
    let push = |bytes: &mut Vec<u8>, c: char| {
        bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    };
    while let Some(c) = rest.next() {
        if c != '\\' {
            push(&mut bytes, c);
            continue;
        }
        match rest.next()? {
            'n' => bytes.push(b'\n'),
            't' => bytes.push(b'\t'),
            'r' => bytes.push(b'\r'),
            'a' => bytes.push(7),
            'b' => bytes.push(8),
            'f' => bytes.push(12),
            'v' => bytes.push(11),
            'x' => bytes.push(u8::try_from(hex(&mut rest, 2)?).ok()?),
            'u' => push(&mut bytes, char::from_u32(hex(&mut rest, 4)?)?),
            'U' => push(&mut bytes, char::from_u32(hex(&mut rest, 8)?)?),
            c @ ('"' | '\\' | '\'') => push(&mut bytes, c),
            _ => return None,
        }
    }
    String::from_utf8(bytes).ok()
}

fn hex(rest: &mut std::str::Chars<'_>, digits: usize) -> Option<u32> {
    let text: String = rest.by_ref().take(digits).collect();
    let is_whole = text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    u32::from_str_radix(&text, 16).ok().filter(|_| is_whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(registry: &MeshRegistry) -> Vec<&str> {
        let services = registry.applications.iter().flat_map(|a| &a.services);
        services.map(|service| service.name.as_str()).collect()
    }

    #[test]
    fn reads_the_file_of_the_downward_api() -> Result<(), String> {
        let file = "kubernetes.io/config.seen=\"2026-01-01T00:00:00Z\"\n\
            mesh.sofastack.io/applications=\"- protocol: bolt\\n  endpoint: \\\"127.0.0.1:12199\\\"\\n  services:\\n  - name: com.foo.\\u0041\\n\"\n";
        let read = of_file(file).ok_or("no such file")??;
        assert_eq!(names(&read), ["com.foo.A"]);
        let without = of_file("a=\"b\"\n").ok_or("no such file")??;
        assert!(without.applications.is_empty());
        for other in ["", "applications: []", "{\"applications\": []}", "a=b"] {
            assert!(of_file(other).is_none(), "{other}");
        }
        for wrong in [r#"\q"#, r#"\x4"#, r#"\"#, "a: 1", "- {nonsense: 1}"] {
            let file = format!("{ANNOTATION}=\"{wrong}\"");
            assert!(of_file(&file).is_some_and(|read| read.is_err()), "{wrong}");
        }
        Ok(())
    }

    proptest::proptest! {
        #[test]
        fn takes_any_text(text in "\\PC*") {
            // Whatever it is, it is read or refused.
            let _ = (parse(&text), of_file(&text), of_file(&format!("{ANNOTATION}=\"{text}\"")));
        }
    }
}
