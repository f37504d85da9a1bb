//! The API server of Kubernetes, built by `make peers`, with an etcd of its own. No controller runs beside it: objects are what
//! tests make them.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

use crate::certificates::Authority;
use crate::http::{self, Answer};
use crate::netns::Site;
use crate::process::Process;
use crate::registries::Etcd;
use crate::registries::place::Place;
use crate::wait;

const START_LIMIT: Duration = Duration::from_secs(120);
const PORT: u16 = 6443;

/// One API server; its objects outlive [`Kubernetes::kill`].
#[derive(Debug)]
pub struct Kubernetes {
    place: Place,
    folder: PathBuf,
    authority: Authority,
    tls: Arc<ClientConfig>,
    process: Process,
    etcd: Etcd,
}

impl Kubernetes {
    /// Of the user `admin`, who may do everything.
    pub const ADMIN: &str = "admin-token";
    /// Of the user `pilot`, who may do what tests allow.
    pub const PILOT: &str = "pilot-token";

    /// Starts a server with its data and its log in `folder`, and waits until it is ready.
    pub fn start(folder: &Path) -> Result<Kubernetes> {
        let folder = folder.join("kubernetes");
        let etcd = Etcd::start(&folder)?;
        Kubernetes::start_at(Place::loopback()?, folder, etcd)
    }

    /// The same in a network namespace.
    pub fn start_in(site: &Arc<Site>, folder: &Path) -> Result<Kubernetes> {
        let folder = folder.join("kubernetes");
        let etcd = Etcd::start_in(site, &folder)?;
        Kubernetes::start_at(Place::Site(site.clone()), folder, etcd)
    }

    fn start_at(place: Place, folder: PathBuf, etcd: Etcd) -> Result<Kubernetes> {
        let authority = Authority::new(&folder, "authority")?;
        let ip = place.ip().to_string();
        authority.issue(&folder, "server", &[&ip], None)?;
        authority.issue(&folder, "accounts", &[], None)?;
        let tokens = format!(
            "{},admin,1,\"system:masters\"\n{},pilot,2\n",
            Kubernetes::ADMIN,
            Kubernetes::PILOT
        );
        fs::write(folder.join("tokens.csv"), tokens)?;
        let process = run(&place, &folder, &etcd)?;
        let mut server = Kubernetes {
            tls: trusting(&authority)?,
            place,
            folder,
            authority,
            process,
            etcd,
        };
        server.wait_ready()?;
        Ok(server)
    }

    /// Where clients connect with TLS.
    pub fn address(&self) -> SocketAddr {
        self.place.address(PORT)
    }

    /// Where its objects are kept.
    pub fn etcd(&mut self) -> &mut Etcd {
        &mut self.etcd
    }

    /// Kills it (SIGKILL); its etcd goes on.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it again on the same address with the same objects.
    pub fn restart(&mut self) -> Result<()> {
        self.process = run(&self.place, &self.folder, &self.etcd)?;
        self.wait_ready()
    }

    /// Sends it a signal by its name without `SIG`, for example `STOP`.
    pub fn signal(&self, name: &str) -> Result<()> {
        self.process.signal(name)
    }

    /// Writes a file as kubectl has it for the owner of a token.
    pub fn kubeconfig(&self, token: &str) -> Result<PathBuf> {
        let name = format!("{token}.kubeconfig");
        let (file, address) = (self.folder.join(name), self.address());
        let authority = self.authority.file().display();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
             clusters: [{{name: here, cluster: {{server: 'https://{address}', certificate-authority: {authority}}}}}]\n\
             users: [{{name: me, user: {{token: {token}}}}}]\n\
             contexts: [{{name: here, context: {{cluster: here, user: me}}}}]\n"
        );
        fs::write(&file, text)?;
        Ok(file)
    }

    /// Writes the folder in which a Pod finds its account: that of the owner of a token.
    pub fn account(&self, token: &str) -> Result<PathBuf> {
        let folder = self.folder.join("account");
        fs::create_dir_all(&folder)?;
        fs::copy(self.authority.file(), folder.join("ca.crt"))?;
        fs::write(folder.join("token"), token)?;
        fs::write(folder.join("namespace"), "default")?;
        Ok(folder)
    }

    /// Any request of the user `admin`.
    pub fn request(&self, method: &str, path: &str, kind: &str, body: &str) -> Result<Answer> {
        let to = self.address();
        let name = ServerName::from(to.ip());
        let connection = ClientConnection::new(self.tls.clone(), name)?;
        let mut stream = StreamOwned::new(connection, http::connect(to)?);
        let token = format!("Bearer {}", Kubernetes::ADMIN);
        let headers = [("authorization", token.as_str()), ("content-type", kind)];
        http::exchange(&mut stream, to, method, path, &headers, body.as_bytes())
    }

    /// Creates or changes an object, as `kubectl apply --server-side` does; `path` is the object's.
    pub fn apply(&self, path: &str, object: &str) -> Result<Value> {
        let query = format!("{path}?fieldManager=test&force=true&fieldValidation=Strict");
        let answer = self.request("PATCH", &query, "application/apply-patch+yaml", object)?;
        let is_done = matches!(answer.status, 200 | 201);
        ensure!(is_done, "{path}: {} {}", answer.status, answer.text());
        answer.json()
    }

    /// Deletes an object at once.
    pub fn delete(&self, path: &str) -> Result<()> {
        let query = format!("{path}?gracePeriodSeconds=0");
        let answer = self.request("DELETE", &query, "application/json", "")?;
        ensure!(answer.status == 200, "{path}: {}", answer.text());
        Ok(())
    }

    /// What is at a path; `None` where there is nothing.
    pub fn read(&self, path: &str) -> Result<Option<Value>> {
        let answer = self.request("GET", path, "application/json", "")?;
        match answer.status {
            200 => Ok(Some(answer.json()?)),
            404 => Ok(None),
            status => anyhow::bail!("{path}: {status} {}", answer.text()),
        }
    }

    /// Gives these roles, documents of YAML without names, to the user `pilot`: in the whole cluster, or in a namespace.
    pub fn permit(&self, roles: &str, namespace: &str) -> Result<()> {
        const GROUP: &str = "rbac.authorization.k8s.io";
        for (index, rules) in roles.split("\n---\n").enumerate() {
            let (kind, at) = match rules.contains("kind: ClusterRole") {
                true => ("ClusterRole", String::new()),
                false => ("Role", format!("namespaces/{namespace}/")),
            };
            let name = format!("pilot-{index}");
            let path = |kind: &str| {
                let plural = kind.to_ascii_lowercase();
                format!("/apis/{GROUP}/v1/{at}{plural}s/{name}")
            };
            let head = format!("apiVersion: {GROUP}/v1\nmetadata: {{name: {name}}}\n");
            self.apply(&path(kind), &(head + rules))?;
            let binding = format!("{kind}Binding");
            let object = json!({
                "apiVersion": format!("{GROUP}/v1"), "kind": binding, "metadata": {"name": name},
                "subjects": [{"kind": "User", "name": "pilot", "apiGroup": GROUP}],
                "roleRef": {"apiGroup": GROUP, "kind": kind, "name": name},
            });
            self.apply(&path(&binding), &object.to_string())?;
        }
        Ok(())
    }

    fn wait_ready(&mut self) -> Result<()> {
        wait::until_ok("Kubernetes", START_LIMIT, || {
            self.process.check()?;
            let answer = self.request("GET", "/readyz", "text/plain", "")?;
            ensure!(
                answer.status == 200,
                "says {}: {}",
                answer.status,
                answer.text()
            );
            // The API server makes it by itself, a moment later.
            self.read("/api/v1/namespaces/default")?
                .context("has no namespace yet")?;
            Ok(())
        })
    }
}

fn trusting(authority: &Authority) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.file())?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn run(place: &Place, folder: &Path, etcd: &Etcd) -> Result<Process> {
    let program = crate::programs::peer("kube-apiserver").context("make peers builds it")?;
    let mut command = Command::new(program);
    command
        .arg(format!("--etcd-servers=http://{}", etcd.address()))
        .arg(format!("--bind-address={}", place.ip()))
        .arg(format!("--secure-port={PORT}"))
        .arg("--advertise-address=192.0.2.1")
        .args([
            "--tls-cert-file=server.crt",
            "--tls-private-key-file=server.key",
        ])
        .args([
            "--client-ca-file=authority.pem",
            "--token-auth-file=tokens.csv",
        ])
        .args(["--service-account-issuer=https://mesh.invalid"])
        .args(["--service-account-key-file=accounts.crt"])
        .args(["--service-account-signing-key-file=accounts.key"])
        .args(["--service-cluster-ip-range=10.96.0.0/16"])
        .args(["--authorization-mode=RBAC"])
        // Nobody makes accounts and endpoints here.
        .args(["--disable-admission-plugins=ServiceAccount"])
        .args(["--endpoint-reconciler-type=none"])
        .current_dir(folder);
    Process::start("kube-apiserver", &mut place.command(command), folder)
}
