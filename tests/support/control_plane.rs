//! A real Kubernetes control plane for one test: etcd and kube-apiserver on free ports of loopback, certificates of its
//! own, everything in a scratch directory. There is no controller manager, scheduler or kubelet: what the API server
//! itself does is real (CRDs, CEL, server-side apply, RBAC, watches), Pods are never run and nothing is collected.
//!
//! Order: certificates → etcd → kube-apiserver → `/readyz` → the namespaces are there. A port can be taken between our
//! choosing it and a program's binding it; then that program is started again on another.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU16, AtomicU64, Ordering::SeqCst},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, sync::OnceCell};

use super::Process;

/// From nothing to ready takes 4 s; with compilers beside it, more.
const READY_DEADLINE: Duration = Duration::from_secs(120);
const STARTS: usize = 3;

/// Who asked for what, of everybody but the server itself.
const AUDIT: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\n\
    rules: [{level: Metadata, users: [admin]}, {level: None}]\n";

/// Dropping it ends both programs and deletes everything.
#[derive(Debug)]
pub struct ControlPlane {
    directory: TempDir,
    port: u16,
    etcd_port: u16,
    /// What the log of requests says before that was another test's.
    requests_from: AtomicU64,
    api_server: std::sync::Mutex<Option<Process>>,
    _etcd: Process,
}

impl ControlPlane {
    /// A new one; 4 s and 400 MB.
    pub async fn start() -> Self {
        let directory = super::scratch("kube");
        write_certificates(directory.path());
        std::fs::write(directory.path().join("audit.yaml"), AUDIT).expect("the scratch directory is ours");
        let (etcd, etcd_port) = start_etcd(directory.path()).await;
        let (requests_from, api_server) = (AtomicU64::new(0), std::sync::Mutex::new(None));
        let mut plane = Self { directory, port: 0, etcd_port, requests_from, api_server, _etcd: etcd };
        for start in 1..=STARTS {
            plane.port = free_port();
            plane.write_kubeconfig();
            plane.launch();
            match plane.ready().await {
                Ok(()) => return plane,
                Err(seen) if start == STARTS || !seen.contains("address already in use") => panic!("{seen}"),
                Err(_) => plane.stop_api_server(),
            }
        }
        unreachable!("the last start returns or panics")
    }

    /// One for all tests of this binary: each must use namespaces or names of its own. It ends with the process.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    /// A client with all rights. Make one per test: connections belong to the test's runtime.
    pub async fn client(&self) -> Client {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig()).expect("the kubeconfig was written by us");
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        Client::try_from(config.expect("the kubeconfig is complete")).expect("the certificates were written by us")
    }

    /// The kubeconfig file of a user with all rights.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    /// What this impersonated user asked for: verb, API group, and resource with its subresource.
    pub fn asked_for(&self, user: &str) -> BTreeSet<(String, String, String)> {
        self.requests_of(user).into_keys().collect()
    }

    /// The same, with how often each was asked.
    pub fn requests_of(&self, user: &str) -> BTreeMap<(String, String, String), u64> {
        let log = std::fs::read_to_string(self.audit_log()).unwrap_or_default();
        let from = usize::try_from(self.requests_from.load(SeqCst)).expect("it was read at once");
        let log = log.get(from..).unwrap_or_default();
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let mut counts = BTreeMap::new();
        for line in log.lines().filter(|line| line.contains(user)) {
            let Ok(line) = serde_json::from_str::<serde_json::Value>(line) else { continue };
            let object = &line["objectRef"];
            if line["impersonatedUser"]["username"] != user || !object.is_object() {
                continue;
            }
            let (resource, part) = (text(&object["resource"]), text(&object["subresource"]));
            let resource = if part.is_empty() { resource } else { format!("{resource}/{part}") };
            *counts.entry((text(&line["verb"]), text(&object["apiGroup"]), resource)).or_default() += 1;
        }
        counts
    }

    /// Until the API server has made all that it makes at its start, roles and priorities: it is a while before that that it
    /// serves.
    pub(super) async fn has_made_its_own(&self) {
        let client = self.client().await;
        super::eventually("kube-apiserver is ready", READY_DEADLINE, || async {
            let asked = http::Request::get("/readyz").body(vec![]).expect("a plain request is valid");
            client.request_text(asked).await.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }

    /// Forgets who asked for what so far.
    pub(super) fn forget_requests(&self) -> std::io::Result<()> {
        self.requests_from.store(std::fs::metadata(self.audit_log())?.len(), SeqCst);
        Ok(())
    }

    fn audit_log(&self) -> PathBuf {
        self.directory.path().join("audit.log")
    }

    pub(super) fn etcd_port(&self) -> u16 {
        self.etcd_port
    }

    pub(super) fn is_running(&self) -> bool {
        let mut api_server = self.api_server.lock().expect("no holder of this lock panics");
        api_server.as_mut().is_some_and(|process| process.ended().is_none())
    }

    /// A kubeconfig of this user, by impersonation; in these groups if any are named.
    pub fn kubeconfig_as(&self, user: &str, groups: &[&str]) -> PathBuf {
        let admin = std::fs::read_to_string(self.kubeconfig()).expect("the kubeconfig was written by us");
        let groups = if groups.is_empty() { String::new() } else { format!("as-groups: {groups:?}, ") };
        let by = format!("user: {{as: '{user}', {groups}client-certificate");
        let path = self.directory.path().join(format!("kubeconfig-{}", user.replace(':', "-")));
        std::fs::write(&path, admin.replace("user: {client-certificate", &by)).expect("the scratch directory is ours");
        path
    }

    /// `kubectl` with these arguments: its stdout. Panics with its stderr if it fails.
    pub async fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments, "").await.unwrap_or_else(|e| panic!("kubectl {}: {e}", arguments.join(" ")))
    }

    /// `kubectl apply -f -` of this YAML. Panics if the API server refuses it.
    pub async fn apply(&self, yaml: &str) -> String {
        let applied = self.try_kubectl(&["apply", "-f", "-"], yaml).await;
        applied.unwrap_or_else(|e| panic!("kubectl apply of\n{yaml}\n{e}"))
    }

    /// `kubectl` with this on its stdin: stdout, or what it wrote to stderr.
    pub async fn try_kubectl(&self, arguments: &[&str], stdin: &str) -> Result<String, String> {
        let mut command = tokio::process::Command::new(super::parts().join("kubectl"));
        command.arg("--kubeconfig").arg(self.kubeconfig()).args(arguments).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("did not start: {e}"))?;
        let mut pipe = child.stdin.take().expect("stdin was piped");
        // It may end without reading all of it; its answer tells why.
        let _ = pipe.write_all(stdin.as_bytes()).await;
        drop(pipe);
        let output = child.wait_with_output().await.map_err(|e| e.to_string())?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }

    /// `kill -9` of the API server: connections are refused until it is started again.
    pub fn stop_api_server(&self) {
        // Dropping it kills and reaps it.
        self.api_server.lock().expect("no holder of this lock panics").take();
    }

    /// The API server again, on the same port and with the same data.
    pub async fn start_api_server(&self) {
        self.launch();
        if let Err(seen) = self.ready().await {
            panic!("{seen}");
        }
    }

    /// What the API server wrote last.
    pub fn tail(&self) -> String {
        let api_server = self.api_server.lock().expect("no holder of this lock panics");
        api_server.as_ref().map_or_else(|| "The API server is stopped".to_owned(), Process::tail)
    }

    fn launch(&self) {
        let at = |name: &str| self.directory.path().join(name).display().to_string();
        let mut command = Command::new(super::parts().join("kube-apiserver"));
        command.args([
            format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            // Loopback is no address for the Service `kubernetes`, and nobody here uses it.
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--secure-port={}", self.port),
            format!("--cert-dir={}", at("")),
            format!("--tls-cert-file={}", at("server.crt")),
            format!("--tls-private-key-file={}", at("server.key")),
            format!("--client-ca-file={}", at("ca.crt")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", at("service-account.pub")),
            format!("--service-account-signing-key-file={}", at("service-account.key")),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            // Without a controller manager no namespace gets its service account.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            "--profiling=false".to_owned(),
            format!("--audit-policy-file={}", at("audit.yaml")),
            format!("--audit-log-path={}", at("audit.log")),
        ]);
        let process = Process::start("kube-apiserver", command, &self.directory.path().join("kube-apiserver.log"));
        *self.api_server.lock().expect("no holder of this lock panics") = Some(process);
    }

    async fn ready(&self) -> Result<(), String> {
        let deadline = Instant::now() + READY_DEADLINE;
        let client = self.client().await;
        let namespaces: Api<Namespace> = Api::all(client);
        loop {
            // `kube-system` is made last, after /readyz would answer; its uid is the cluster's identity.
            let seen = match tokio::time::timeout(Duration::from_secs(5), namespaces.get("kube-system")).await {
                Ok(Ok(_)) if namespaces.get("default").await.is_ok() => return Ok(()),
                Ok(Ok(_)) => "namespace default is missing".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in 5 s".to_owned(),
            };
            if let Some(ended) = self.api_server_ended() {
                return Err(ended);
            }
            if Instant::now() > deadline {
                return Err(format!("kube-apiserver is not ready after {READY_DEADLINE:?}: {seen}\n{}", self.tail()));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn api_server_ended(&self) -> Option<String> {
        let mut slot = self.api_server.lock().expect("no holder of this lock panics");
        let process = slot.as_mut().expect("it was just started");
        process.ended().map(|status| format!("kube-apiserver ended with {status}\n{}", process.tail()))
    }

    fn write_kubeconfig(&self) {
        let at = |name: &str| self.directory.path().join(name).display().to_string();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: tidemark\n\
             clusters: [{{name: tidemark, cluster: {{server: 'https://127.0.0.1:{}', certificate-authority: '{}'}}}}]\n\
             users: [{{name: admin, user: {{client-certificate: '{}', client-key: '{}'}}}}]\n\
             contexts: [{{name: tidemark, context: {{cluster: tidemark, user: admin}}}}]\n",
            self.port,
            at("ca.crt"),
            at("admin.crt"),
            at("admin.key")
        );
        std::fs::write(self.kubeconfig(), text).expect("the scratch directory is ours");
    }
}

async fn start_etcd(directory: &Path) -> (Process, u16) {
    for start in 1..=STARTS {
        let (port, peers) = (free_port(), free_port());
        let mut command = Command::new(super::parts().join("etcd"));
        command.args([
            format!("--data-dir={}", directory.join("etcd").display()),
            format!("--listen-client-urls=http://127.0.0.1:{port}"),
            format!("--advertise-client-urls=http://127.0.0.1:{port}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peers}"),
            format!("--initial-advertise-peer-urls=http://127.0.0.1:{peers}"),
            format!("--initial-cluster=default=http://127.0.0.1:{peers}"),
        ]);
        let mut process = Process::start("etcd", command, &directory.join("etcd.log"));
        let deadline = Instant::now() + READY_DEADLINE;
        while Instant::now() < deadline && process.ended().is_none() {
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return (process, port);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let seen = process.tail();
        assert!(
            start < STARTS && seen.contains("address already in use"),
            "etcd did not listen on port {port}\n{seen}"
        );
    }
    unreachable!("the last start returns or panics")
}

/// A port that was free a moment ago. Not one of those that the kernel gives to whoever connects: a server that is stopped
/// for a while would find its port taken, or a client that tries again and again connected to itself.
pub(super) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let least: u32 = range.split_whitespace().next().and_then(|least| least.parse().ok()).unwrap_or(32768);
    // Where the kernel gives nearly all of them there is none that it does not.
    let least = if least > 20_000 { least } else { 32_768 };
    let (from, span) = (10_000, least - 10_000);
    for _ in 0..span {
        // Programs beside each other begin at different places.
        let offset = std::process::id().wrapping_mul(97) + u32::from(NEXT.fetch_add(1, SeqCst));
        let port = u16::try_from(from + offset % span).expect("below the least");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port of loopback from {from} to {least} is free");
}

/// An authority, the API server, a user of `system:masters`, and the key that signs service account tokens. All ECDSA:
/// an RSA key costs seconds of CPU.
fn write_certificates(directory: &Path) {
    let key = || KeyPair::generate().expect("P-256 keys can be made");
    let write =
        |name: &str, pem: String| std::fs::write(directory.join(name), pem).expect("the scratch directory is ours");
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    authority.distinguished_name.push(DnType::CommonName, "tidemark test authority");
    let authority_key = key();
    write("ca.crt", authority.self_signed(&authority_key).expect("the parameters are valid").pem());
    let issuer = Issuer::new(authority, authority_key);

    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let mut server = CertificateParams::new(names).expect("two valid names");
    server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let mut admin = CertificateParams::default();
    admin.distinguished_name.push(DnType::OrganizationName, "system:masters");
    admin.distinguished_name.push(DnType::CommonName, "admin");
    admin.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    for (name, params) in [("server", server), ("admin", admin)] {
        let own = key();
        write(&format!("{name}.crt"), params.signed_by(&own, &issuer).expect("the parameters are valid").pem());
        write(&format!("{name}.key"), own.serialize_pem());
    }
    let tokens = key();
    write("service-account.key", tokens.serialize_pem());
    write("service-account.pub", tokens.public_key_pem());
}
