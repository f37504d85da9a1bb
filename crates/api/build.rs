//! Generates Rust types for Envoy's API and our own `.proto` files, and the tables that `api::json` and
//! `api::validate` read.
//!
//! The sources of Envoy's files are the `proto/` folder of the crate `envoy-types`, which is fetched by cargo but never
//! compiled: it holds all of Envoy's API, this crate only what the mesh serves.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use prost_types::{DescriptorProto, FileDescriptorSet};

#[path = "build/rules.rs"]
mod rules;
#[path = "build/tables.rs"]
mod tables;

/// Files asked for by name; what they import comes along.
const ENVOY_FILES: &[&str] = &[
    "envoy/admin/v3/clusters.proto",
    "envoy/admin/v3/config_dump.proto",
    "envoy/admin/v3/config_dump_shared.proto",
    "envoy/admin/v3/listeners.proto",
    "envoy/admin/v3/memory.proto",
    "envoy/admin/v3/server_info.proto",
    "envoy/config/accesslog/v3/accesslog.proto",
    "envoy/config/bootstrap/v3/bootstrap.proto",
    "envoy/config/cluster/v3/cluster.proto",
    "envoy/config/endpoint/v3/endpoint.proto",
    "envoy/config/listener/v3/listener.proto",
    "envoy/config/route/v3/route.proto",
    "envoy/extensions/access_loggers/file/v3/file.proto",
    "envoy/extensions/access_loggers/stream/v3/stream.proto",
    "envoy/extensions/filters/http/fault/v3/fault.proto",
    "envoy/extensions/filters/http/header_mutation/v3/header_mutation.proto",
    "envoy/extensions/filters/http/router/v3/router.proto",
    "envoy/extensions/filters/listener/http_inspector/v3/http_inspector.proto",
    "envoy/extensions/filters/listener/original_dst/v3/original_dst.proto",
    "envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector.proto",
    "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto",
    "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto",
    "envoy/extensions/load_balancing_policies/least_request/v3/least_request.proto",
    "envoy/extensions/load_balancing_policies/random/v3/random.proto",
    "envoy/extensions/load_balancing_policies/round_robin/v3/round_robin.proto",
    "envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.proto",
    "envoy/extensions/transport_sockets/raw_buffer/v3/raw_buffer.proto",
    "envoy/extensions/upstreams/http/v3/http_protocol_options.proto",
    "envoy/service/discovery/v3/ads.proto",
    "envoy/service/discovery/v3/discovery.proto",
    "google/rpc/status.proto",
];

/// Packages whose services get clients and servers; services of imported files are dropped.
const SERVICES: &[&str] = &[UNNAMED, "envoy.service.discovery.v3", "mesh.registry.v1"];

/// The package of files that name none, which are Nacos'; and the module for what they hold.
const UNNAMED: &str = "";
const UNNAMED_MODULE: &str = "nacos";

/// Packages that only declare options for other files.
const ANNOTATIONS: &[&str] = &[
    "envoy.annotations",
    "udpa.annotations",
    "validate",
    "xds.annotations.v3",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=Cargo.toml");

    let manifest_dir = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    let own = manifest_dir.join("proto");
    let envoy = envoy_proto_dir(&manifest_dir)?;

    let mut includes = vec![own.clone()];
    for folder in [
        "data-plane-api",
        "googleapis",
        "protoc-gen-validate",
        "xds",
        "opentelemetry-proto",
        "client_model",
        "cel-spec/proto",
    ] {
        includes.push(envoy.join(folder));
    }
    let mut files: Vec<PathBuf> = ENVOY_FILES.iter().map(PathBuf::from).collect();
    own_files(&own, &own, &mut files)?;

    let mut compiler = protox::Compiler::new(includes)?;
    compiler.include_imports(true).open_files(files)?;
    let options = rules::Options::new(compiler.descriptor_pool());
    let mut fds = compiler.file_descriptor_set();
    prune(&mut fds);

    let packages: BTreeSet<String> = fds
        .file
        .iter()
        .map(|file| file.package().to_owned())
        .filter(|package| package != "google.protobuf")
        .collect();
    fs::write(out_dir.join("tables.rs"), tables::generate(&fds, &options))?;

    let mut config = prost_build::Config::new();
    config.out_dir(&out_dir);
    // Maps in key order: the same message always has the same bytes, so bytes can be compared and hashed.
    config.btree_map(["."]);
    config.enable_type_names();
    config.type_name_domain(["."], "type.googleapis.com");
    tonic_prost_build::configure()
        .out_dir(&out_dir)
        .compile_fds_with_config(fds, config)?;

    fs::write(out_dir.join("include.rs"), module_tree(&packages))?;
    Ok(())
}

/// The `proto/` folder of the package `envoy-types`, as this build's lock file pins it.
fn envoy_proto_dir(manifest_dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let output = Command::new(env::var("CARGO")?)
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--features",
            "envoy-types",
            "--filter-platform",
        ])
        .arg(env::var("TARGET")?)
        .arg("--manifest-path")
        .arg(manifest_dir.join("Cargo.toml"))
        .output()?;
    if !output.status.success() {
        return Err(format!(
            "cargo metadata: {}",
            String::from_utf8_lossy(&output.stderr)
        )
        .into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let manifest = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "envoy-types")
        .and_then(|package| package["manifest_path"].as_str())
        .ok_or("package envoy-types is not in the dependency graph")?;
    Ok(Path::new(manifest).with_file_name("proto"))
}

fn own_files(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            own_files(root, &path, files)?;
        } else if path
            .extension()
            .is_some_and(|extension| extension == "proto")
        {
            files.push(path.strip_prefix(root)?.to_owned());
        }
    }
    Ok(())
}

/// Removes what would only cost compile time: comments, option declarations, services nobody calls.
fn prune(fds: &mut FileDescriptorSet) {
    fds.file.retain(|file| {
        !ANNOTATIONS.contains(&file.package()) && file.name() != "google/protobuf/descriptor.proto"
    });
    for file in &mut fds.file {
        file.source_code_info = None;
        file.extension.clear();
        if !SERVICES.contains(&file.package()) {
            file.service.clear();
        }
        file.message_type.iter_mut().for_each(forget_deprecation);
    }
}

/// What Envoy deprecates it still obeys, and so must we: a warning at each use would say nothing.
fn forget_deprecation(message: &mut DescriptorProto) {
    for field in &mut message.field {
        if let Some(options) = &mut field.options {
            options.deprecated = None;
        }
    }
    for value in message
        .enum_type
        .iter_mut()
        .flat_map(|item| &mut item.value)
    {
        if let Some(options) = &mut value.options {
            options.deprecated = None;
        }
    }
    message.nested_type.iter_mut().for_each(forget_deprecation);
}

/// Nested modules, one per part of a package's name, that include the generated files.
fn module_tree(packages: &BTreeSet<String>) -> String {
    #[derive(Default)]
    struct Module {
        children: BTreeMap<String, Module>,
        package: Option<String>,
    }

    fn write(module: &Module, out: &mut String) {
        if let Some(package) = &module.package {
            // prost escapes keywords in the names of its files too.
            let package = match package.as_str() {
                // prost's name for such files.
                UNNAMED => "_".to_owned(),
                package => package.replace(".type.", ".r#type."),
            };
            let _ = writeln!(
                out,
                "include!(concat!(env!(\"OUT_DIR\"), \"/{package}.rs\"));"
            );
        }
        for (name, child) in &module.children {
            let _ = writeln!(
                out,
                "pub mod {}{name} {{",
                if name == "type" { "r#" } else { "" }
            );
            if name == "google" {
                out.push_str(
                    "/// Well-known types.\npub mod protobuf { pub use ::prost_types::*; }\n",
                );
            }
            write(child, out);
            out.push_str("}\n");
        }
    }

    let mut root = Module::default();
    for package in packages {
        let mut module = &mut root;
        let path = match package.as_str() {
            UNNAMED => UNNAMED_MODULE,
            package => package,
        };
        for part in path.split('.') {
            module = module.children.entry(part.to_owned()).or_default();
        }
        module.package = Some(package.clone());
    }
    let mut out = String::new();
    write(&root, &mut out);
    out
}
