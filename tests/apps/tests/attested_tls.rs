//! `[attestation.tls]`: unmodified servers whose HTTPS uses what the agent left them.

use bulla_test_apps::{Server, Side, bulla, free_port, image, platform_options, sides};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const PYTHON: &str = r#"
import http.server, os, signal, ssl, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        self.wfile.write(b"pid %d of user %d\n" % (os.getpid(), os.getuid()))
    def log_message(self, *words): pass
where = "/dev/shm/bulla-tls/"
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
load = lambda *_: context.load_cert_chain(where + "tls.crt", where + "tls.key")
load()
assert os.stat(where + "tls.key").st_mode & 0o777 == 0o600
assert open("/dev/attestation/user_report_data", "rb").read() == bytes(64)
signal.signal(signal.SIGHUP, load)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
"#;

struct Place {
    dir: tempfile::TempDir,
    archive: PathBuf,
    layout: &'static str,
}

impl Place {
    fn new(name: &'static str, layout: &'static str, manifest: &str) -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("bulla.toml"), manifest).unwrap();
        Place {
            dir,
            archive: image(name).archive,
            layout,
        }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_string_lossy().into_owned()
    }

    fn bulla(&self, command: &str) -> Command {
        let mut bulla = Command::new(bulla());
        bulla
            .arg(command)
            .args(["--layout", self.layout, "--manifest"]);
        bulla.arg(self.path("bulla.toml"));
        bulla
    }

    fn serve(&self, port: u16) -> Server {
        let mut command = self.bulla("run");
        command.arg("--quiet").args(platform_options());
        command.arg(&self.archive);
        Server::start(command, Side::Enclave, port, Duration::from_secs(90))
    }

    /// A policy for what `bulla measure` says that will run.
    fn policy(&self) -> String {
        let output = self
            .bulla("measure")
            .arg("--json")
            .arg(&self.archive)
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", all(&output));
        let measured: Value = serde_json::from_slice(&output.stdout).unwrap();
        let mrenclave = measured["layouts"][0]["mrenclave"].as_str().unwrap();
        let text =
            format!("insecure_allow_emulated = true\n[[accept]]\nmrenclave = \"{mrenclave}\"\n");
        fs::write(self.path("policy.toml"), text).unwrap();
        self.path("policy.toml")
    }

    /// `bulla verify` of the server; the evidence goes to `bundle`.
    fn verify(&self, port: u16, policy: &str, bundle: &str) -> Output {
        let output = Command::new("timeout")
            .arg("60")
            .arg(bulla())
            .args(["verify", "--offline", "--policy", policy, "--bundle"])
            .arg(self.path(bundle))
            .arg(format!("https://127.0.0.1:{port}"))
            .output();
        output.unwrap()
    }
}

fn all(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!(
        "{}: {}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    )
}

fn curl(port: u16, trusted: &Path) -> Output {
    Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "30", "--cacert"])
        .arg(trusted)
        .arg(format!("https://localhost:{port}/"))
        .output()
        .unwrap()
}

/// Verifies, then asks as an ordinary client that trusts the verified certificate.
fn check(place: &Place, server: &Server) {
    let policy = place.policy();
    let verified = place.verify(server.port, &policy, "bundle");
    assert_eq!(
        verified.status.code(),
        Some(0),
        "{}{}",
        all(&verified),
        server.output()
    );
    let other = place.path("other.toml");
    let text = fs::read_to_string(&policy).unwrap();
    let start = text.find("mrenclave = \"").unwrap() + 13;
    let zeros = "00".repeat(32);
    fs::write(
        &other,
        [&text[..start], &zeros, &text[start + 64..]].concat(),
    )
    .unwrap();
    let refused = place.verify(server.port, &other, "refused");
    assert_eq!(refused.status.code(), Some(1), "{}", all(&refused));

    let certificate = place.dir.path().join("bundle/certificate.pem");
    let answer = curl(server.port, &certificate);
    assert!(answer.status.success(), "{}", all(&answer));
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(
        text.starts_with("pid 1 ") || text.starts_with("hello"),
        "{text}"
    );
    // It is no certificate that everybody trusts.
    let stranger = place.dir.path().join("stranger.pem");
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ])
        .args([
            "-nodes",
            "-subj",
            "/CN=localhost",
            "-keyout",
            "/dev/null",
            "-out",
        ])
        .arg(&stranger)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", all(&made));
    assert!(!curl(server.port, &stranger).status.success());
}

fn python(port: u16, more: &str) -> String {
    format!(
        "entrypoint = [\"python3\", \"-c\", '''{PYTHON}''', \"{port}\"]\nmemory = \"512M\"\n{more}\n"
    )
}

#[test]
fn python_serves_https_with_an_attested_key_in_each_layout() {
    if !sides().contains(&Side::Enclave) {
        return;
    }
    for (layout, user) in [("dynamic", ""), ("static", "user = \"www-data\"")] {
        let port = free_port();
        let manifest = python(
            port,
            &format!("{user}\n[attestation.tls]\nnames = [\"localhost\"]"),
        );
        let place = Place::new("python", layout, &manifest);
        let server = place.serve(port);
        check(&place, &server);
        let output = Command::new("openssl")
            .args(["s_client", "-verify_return_error", "-CAfile"])
            .arg(place.path("bundle/certificate.pem"))
            .args(["-connect", &format!("127.0.0.1:{port}")])
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let text = all(&output);
        assert!(text.contains("Verify return code: 0 (ok)"), "{text}");
        server.stop();
    }
}

#[test]
fn nginx_serves_https_with_an_attested_key_in_each_layout() {
    if !sides().contains(&Side::Enclave) {
        return;
    }
    for layout in ["dynamic", "static"] {
        let port = free_port();
        let script = format!(
            "cat > /tmp/nginx.conf <<END
daemon off; error_log stderr; pid /tmp/nginx.pid; worker_processes 1;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path /tmp/1; proxy_temp_path /tmp/2; fastcgi_temp_path /tmp/3;
  uwsgi_temp_path /tmp/4; scgi_temp_path /tmp/5;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate /dev/shm/bulla-tls/tls.crt; ssl_certificate_key /dev/shm/bulla-tls/tls.key;
    return 200 hello;
  }}
}}
END
exec nginx -c /tmp/nginx.conf"
        );
        let manifest = format!(
            "entrypoint = [\"sh\", \"-c\", '''{script}''']\nmemory = \"512M\"\n\
             [attestation.tls]\nnames = [\"localhost\"]\ngramine = true\n"
        );
        let place = Place::new("servers", layout, &manifest);
        let server = place.serve(port);
        check(&place, &server);
        server.stop();
    }
}

#[test]
fn the_certificate_is_renewed_and_the_program_told() {
    if !sides().contains(&Side::Enclave) {
        return;
    }
    let port = free_port();
    let tls = "[attestation.tls]\nnames = [\"localhost\"]\nvalid_seconds = 12\nreload_signal = 1";
    let place = Place::new("python", "dynamic", &python(port, tls));
    let server = place.serve(port);
    let policy = place.policy();
    let mut seen = Vec::new();
    let end = Instant::now() + Duration::from_secs(90);
    // Each certificate dies after 12 seconds; the third is one that a renewed one gave way to.
    while seen.len() < 3 {
        assert!(Instant::now() < end, "never renewed\n{}", server.output());
        let output = place.verify(server.port, &policy, "bundle");
        // Between the files' renewal and the program's reading them an old one may be out of date.
        if output.status.code() == Some(0) {
            let certificate = fs::read(place.path("bundle/certificate.pem")).unwrap();
            if !seen.contains(&certificate) {
                seen.push(certificate);
            }
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    server.stop();
}

/// What renews the certificate is no child of the application, and gets none of the signals that the
/// application sends to its group.
const SHELL: &str = r#"
import os, signal, subprocess, time
crt = "/dev/shm/bulla-tls/tls.crt"
first = open(crt, "rb").read()
def nobody():
    try: return os.waitpid(-1, os.WNOHANG)
    except ChildProcessError: return "no children"
def parents():
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        words = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
        found[int(pid)] = int(words[1])
    return found
print("1:", os.getpid(), nobody())
child = subprocess.Popen(["sleep", "60"])
signal.signal(signal.SIGTERM, lambda *_: None)
os.kill(0, signal.SIGTERM)
print("2:", child.wait(), nobody(), sorted(parents().values()))
told = []
signal.signal(signal.SIGHUP, lambda *_: told.append(1))
end = time.monotonic() + 60
while (not told or open(crt, "rb").read() == first) and time.monotonic() < end: time.sleep(0.1)
print("3:", bool(told), open(crt, "rb").read() != first, nobody())
"#;

#[test]
fn the_application_has_no_child_that_it_never_made() {
    if !sides().contains(&Side::Enclave) {
        return;
    }
    let manifest = format!(
        "entrypoint = [\"python3\", \"-c\", '''{SHELL}''']\nmemory = \"512M\"\n\
         [attestation.tls]\nvalid_seconds = 9\nreload_signal = 1\n"
    );
    let place = Place::new("python", "dynamic", &manifest);
    let mut command = place.bulla("run");
    command.arg("--quiet").args(platform_options());
    let output = command.arg(&place.archive).output().unwrap();
    let text = all(&output);
    for line in [
        "1: 1 no children",
        "2: -15 no children [0, 0]",
        "3: True True no children",
    ] {
        assert!(text.lines().any(|found| found.ends_with(line)), "{text}");
    }
}

#[test]
fn without_the_table_nothing_of_the_agent_is_there() {
    if !sides().contains(&Side::Enclave) {
        return;
    }
    let place = Place::new(
        "busybox",
        "dynamic",
        "entrypoint = [\"ls\", \"/run/bulla\", \"/dev/shm\"]\n",
    );
    let mut command = place.bulla("run");
    command.arg("--quiet").args(platform_options());
    let output = command.arg(&place.archive).output().unwrap();
    let text = all(&output);
    assert!(text.contains("/run/bulla: No such file"), "{text}");
    let pages = |manifest: &str| {
        let place = Place::new("busybox", "dynamic", manifest);
        let output = place
            .bulla("measure")
            .arg("--json")
            .arg(&place.archive)
            .output()
            .unwrap();
        let measured: Value = serde_json::from_slice(&output.stdout).unwrap();
        measured["layouts"][0]["pages"].as_u64().unwrap()
    };
    let (without, with) = (pages(""), pages("[attestation.tls]\n"));
    assert!(without + 100 < with, "{without} and {with} pages");
}
