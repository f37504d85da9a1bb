//! The configuration that the documentation shows is valid.

use std::fs;
use std::path::Path;
use std::process::Command;

/// The YAML of the fenced blocks of a page.
fn yaml_blocks(page: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs")
        .join(page);
    let text = fs::read_to_string(path).expect(page);
    let mut blocks = Vec::new();
    let mut open: Option<String> = None;
    for line in text.lines() {
        match (&mut open, line) {
            (None, "```yaml") => open = Some(String::new()),
            (None, _) => {}
            (Some(_), "```") => blocks.extend(open.take()),
            (Some(block), line) => {
                block.push_str(line);
                block.push('\n');
            }
        }
    }
    blocks
}

fn check(what: &str, arguments: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_meshctl"))
        .args(arguments)
        .output()
        .expect("meshctl starts");
    assert!(
        output.status.success(),
        "{}{}\n{what}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The pages that show configuration.
fn pages() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/registries");
    let mut pages: Vec<String> = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name())
        .map(|name| format!("registries/{}", name.to_string_lossy()))
        .collect();
    pages.sort();
    pages.extend(["configuration.md", "registries.md"].map(ToOwned::to_owned));
    pages
}

#[test]
fn documented_configuration_is_valid() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut resources, mut bootstraps) = (0, 0);
    let pages = pages();
    for block in pages.iter().flat_map(|page| yaml_blocks(page)) {
        if block.contains("apiVersion: mesh.sofastack.io")
            || block.contains("apiVersion: networking.istio.io")
        {
            resources += 1;
            let path = folder.path().join(format!("resources-{resources}"));
            fs::create_dir(&path).expect("a folder");
            fs::write(path.join("block.yaml"), &block).expect("written");
            check(
                &block,
                &["pilot", "validate", "--configDir", &path.to_string_lossy()],
            );
        } else if block.contains("static_resources:") || block.contains("dynamic_resources:") {
            bootstraps += 1;
            let path = folder.path().join("bootstrap.yaml");
            fs::write(&path, &block).expect("written");
            check(
                &block,
                &["mosn", "--mode", "validate", "-c", &path.to_string_lossy()],
            );
        }
    }
    assert!(
        resources >= 8 && bootstraps >= 1,
        "{resources} {bootstraps}"
    );
}
