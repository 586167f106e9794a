//! Shared stores whose servers answer anything but what they should: every answer is an error that says
//! who it was, soon; none is taken for an empty store.

use bulla_coordinator::seal::InsecureFileKey;
use bulla_coordinator::store::{
    ClientTls, EtcdPlace, Kubernetes, KubernetesOptions, ObjectPlace, Objects, Opened, Place,
    StoreError,
};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

/// A server that gives every request the same answer.
struct Double {
    address: String,
}

/// What it does once it has read a request.
type Answer = Arc<dyn Fn(&mut TcpStream) -> std::io::Result<()> + Send + Sync>;

impl Double {
    fn start(answer: Answer) -> Double {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let answer = answer.clone();
                thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let mut buffer = [0; 1 << 16];
                    // Requests of these tests fit; what is left unread would reset the connection.
                    let _ = stream.read(&mut buffer);
                    let _ = answer(&mut stream);
                });
            }
        });
        Double { address }
    }
}

fn with(status: &'static str, body: &'static str) -> Answer {
    bytes(format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ))
}

fn bytes(answer: String) -> Answer {
    Arc::new(move |stream| stream.write_all(answer.as_bytes()))
}

/// As much as the client takes.
fn endless(head: &'static str, piece: &'static str) -> Answer {
    Arc::new(move |stream| {
        stream.write_all(head.as_bytes())?;
        let much = piece.repeat(1 << 16);
        loop {
            stream.write_all(much.as_bytes())?;
        }
    })
}

/// Answers, and a word of what is said of each by etcd's and the Kubernetes API's client.
fn answers() -> Vec<(&'static str, Answer)> {
    const OK: &str = "200 OK";
    vec![
        ("nothing at all", Arc::new(|_| Ok(()))),
        ("another protocol", bytes("SSH-2.0-OpenSSH_9.2\r\n".into())),
        ("an empty body", with(OK, "")),
        ("no JSON", with(OK, "<html>hello</html>")),
        ("null", with(OK, "null")),
        ("a list", with(OK, "[]")),
        ("an empty object", with(OK, "{}")),
        (
            "a header that is none",
            with(OK, r#"{"header": 7, "kvs": 7}"#),
        ),
        (
            "parts that are none",
            with(
                OK,
                r#"{"header": {}, "kvs": [7], "responses": [7], "metadata": 7}"#,
            ),
        ),
        (
            "values that are none",
            with(
                OK,
                r#"{"header": {}, "kvs": [{"key": "!", "value": "!", "mod_revision": "x"}],
                "responses": [{"response_range": {"kvs": [{"key": "!"}]}}, {"response_range": {}}],
                "metadata": {"resourceVersion": "1"}, "data": {"sealed": "!"}}"#,
            ),
        ),
        (
            "less than it announces",
            bytes("HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n{\"header\": {".into()),
        ),
        (
            "a chunk that is none",
            bytes("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n".into()),
        ),
        (
            "a length that is none",
            bytes("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n".into()),
        ),
        (
            "somebody else's 404",
            with("404 Not Found", "<html>nginx</html>"),
        ),
        ("a conflict without a reason", with("409 Conflict", "")),
        (
            "a redirection",
            bytes(
                "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
                    .into(),
            ),
        ),
        ("created, without an object", with("201 Created", "")),
        (
            "no content",
            bytes("HTTP/1.1 204 No Content\r\n\r\n".into()),
        ),
        (
            "an error",
            with(
                "500 Internal Server Error",
                r#"{"message": "a\nb\u001b[31mc"}"#,
            ),
        ),
        (
            "nesting",
            bytes(format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}",
                1 << 20,
                "[".repeat(1 << 20)
            )),
        ),
        (
            "an endless header",
            endless("HTTP/1.1 200 OK\r\nx: ", "xxxxxxxxxxxxxxxx"),
        ),
        (
            "an endless body",
            endless("HTTP/1.1 200 OK\r\n\r\n", "                "),
        ),
    ]
}

fn file_key(dir: &tempfile::TempDir) -> InsecureFileKey {
    InsecureFileKey::open(&dir.path().join("key")).unwrap()
}

fn what_is_said(result: Result<Opened, StoreError>, what: &str) -> String {
    match result {
        Err(error) => {
            let said = error.to_string();
            assert!(said.len() < 1000, "{what}: {} bytes", said.len());
            assert!(!said.contains(char::is_control), "{what}: {said:?}");
            said
        }
        Ok(Opened::Empty) => panic!("{what}: was taken for an empty store"),
        Ok(Opened::State { .. }) => panic!("{what}: was taken for a state"),
    }
}

fn kubernetes(address: &str) -> Kubernetes {
    Kubernetes::new(&KubernetesOptions {
        server: Some(format!("http://{address}")),
        namespace: Some("shop".to_owned()),
        ..KubernetesOptions::default()
    })
    .unwrap()
}

/// Each at the same time: failures that may pass are tried again for seconds.
fn each(test: fn(&'static str, Answer)) {
    let tests: Vec<_> = answers()
        .into_iter()
        .map(|(what, answer)| (what, thread::spawn(move || test(what, answer))))
        .collect();
    let failed = |(what, test): (_, thread::JoinHandle<()>)| test.join().err().map(|_| what);
    let failed: Vec<&str> = tests.into_iter().filter_map(failed).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn etcd_that_is_none_is_an_error() {
    each(|what, answer| {
        let double = Double::start(answer);
        let dir = tempfile::tempdir().unwrap();
        let endpoints = [double.address.clone()];
        let place = EtcdPlace::new(&endpoints, &ClientTls::default(), "/bulla", "a").unwrap();
        let mut store = place.open("root").unwrap();
        let said = what_is_said(store.load(&file_key(&dir)), what);
        assert!(
            said.contains("the store cannot be reached or refuses"),
            "{what}: {said}"
        );
    });
}

#[test]
fn an_api_that_is_none_is_an_error() {
    each(|what, answer| {
        let double = Double::start(answer);
        let dir = tempfile::tempdir().unwrap();
        let objects = Arc::new(kubernetes(&double.address));
        let place = ObjectPlace::new(objects, "bulla", "a");
        let mut store = place.open("root").unwrap();
        let said = what_is_said(store.load(&file_key(&dir)), what);
        assert!(said.contains(&double.address), "{what}: {said}");
    });
}

/// Whether something was written is not known after such an answer: it is looked at again, and neither
/// taken for done nor for refused.
#[test]
fn a_write_with_an_answer_that_is_none_is_not_taken_for_done() {
    each(|what, answer| {
        let double = Double::start(answer);
        let objects = kubernetes(&double.address);
        for version in [None, Some("7")] {
            match objects.put("bulla-root", b"value", version) {
                Err(StoreError::Conflict | StoreError::Remote(_)) => {}
                // The one answer that has a version: of a Secret that we did not write.
                Ok(Some(version)) => {
                    assert_eq!((what, &version[..]), ("values that are none", "1"))
                }
                other => panic!("{what}: {other:?}"),
            }
        }
    });
}

/// A byte now and then does not keep a request alive.
#[test]
#[ignore = "waits for a minute"]
fn slow_answers_end_in_time() {
    let drip: Answer = Arc::new(|stream| {
        for byte in b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n"
            .iter()
            .cycle()
        {
            stream.write_all(&[*byte])?;
            thread::sleep(std::time::Duration::from_millis(300));
        }
        Ok(())
    });
    let double = Double::start(drip);
    let address = double.address.clone();
    let etcd = thread::spawn(move || {
        let dir = tempfile::tempdir().unwrap();
        let place = EtcdPlace::new(&[address], &ClientTls::default(), "/bulla", "a").unwrap();
        let mut store = place.open("root").unwrap();
        what_is_said(store.load(&file_key(&dir)), "etcd")
    });
    let dir = tempfile::tempdir().unwrap();
    let objects = Arc::new(kubernetes(&double.address));
    let mut store = ObjectPlace::new(objects, "bulla", "a")
        .open("root")
        .unwrap();
    let said = what_is_said(store.load(&file_key(&dir)), "the API");
    assert!(said.contains("timeout"), "{said}");
    let said = etcd.join().unwrap();
    assert!(said.contains("timeout"), "{said}");
}
