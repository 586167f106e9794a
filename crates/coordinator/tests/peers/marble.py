"""A marble by other means: grpcio, Python's TLS and openssl, none of our code.

usage: marble.py MESH CLIENT WORK CERT KEY   (HOST:PORT twice, a directory to work in, an admin)
"""
import base64, hashlib, http.client, json, os, pathlib, ssl, struct, subprocess, sys, uuid

import grpc
from grpc_tools import protoc

mesh, client, work = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
here = pathlib.Path(__file__).parent
assert protoc.main(["", f"-I{here}", f"--python_out={work}", f"--grpc_python_out={work}",
                    str(here / "marble.proto")]) == 0
sys.path.insert(0, str(work))
import marble_pb2, marble_pb2_grpc


def openssl(*args, data=None):
    done = subprocess.run(["openssl", *map(str, args)], input=data, capture_output=True)
    assert done.returncode == 0, (args, done.stderr.decode())
    return done.stdout


def file(name, content):
    (work / name).write_bytes(content)
    return work / name


host, port = mesh.rsplit(":", 1)
openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes", "-days", "1",
        "-subj", "/CN=marble", "-keyout", work / "own.key", "-out", work / "own.pem")
own = openssl("x509", "-in", work / "own.pem", "-outform", "DER")
# Python's own TLS cannot connect without looking at a client certificate request: show ours.
context = ssl._create_unverified_context()
context.load_cert_chain(work / "own.pem", work / "own.key")
context.set_alpn_protocols(["h2"])
import socket
with socket.create_connection((host, int(port))) as raw, context.wrap_socket(raw) as tls:
    assert tls.selected_alpn_protocol() == "h2"
    server = ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True))
file("server.pem", server.encode())

credentials = grpc.ssl_channel_credentials(server.encode(), (work / "own.key").read_bytes(),
                                           (work / "own.pem").read_bytes())
channel = grpc.secure_channel(mesh, credentials, [("grpc.ssl_target_name_override", "localhost")])
stub = marble_pb2_grpc.MarbleStub(channel)
csr = openssl("req", "-new", "-key", work / "own.key", "-subj", "/O=Shop/CN=ignored", "-addext",
              "subjectAltName=DNS:db.local,IP:10.0.0.7", "-outform", "DER")


def quote(report_data, **changes):
    inner = {"mr_enclave": "11" * 32, "mr_signer": "22" * 32, "product_id": 1, "security_version": 2,
             "debug": False, "tcb": "UpToDate", "emulated": False, "platform": "aa",
             "report_data": report_data.hex()} | changes
    inner = json.dumps(inner).encode()
    return struct.pack("<IIQ", 1, 2, len(inner)) + inner


def request(**changes):
    fields = {"Quote": quote(hashlib.sha256(own).digest()), "CSR": csr, "MarbleType": "backend",
              "UUID": str(uuid.uuid4())} | changes
    return marble_pb2.ActivationReq(**fields)


def refused(code, text, **changes):
    try:
        stub.Activate(request(**changes), timeout=30)
    except grpc.RpcError as error:
        assert error.code() == code, error
        assert text in error.details(), error
    else:
        raise AssertionError(f"not refused: {text}")


refused(grpc.StatusCode.PERMISSION_DENIED, "unknown marble type", MarbleType="nobody")
refused(grpc.StatusCode.PERMISSION_DENIED, "not made for the certificate", Quote=quote(bytes(32)))
refused(grpc.StatusCode.PERMISSION_DENIED, "invalid quote", Quote=b"short")
refused(grpc.StatusCode.INVALID_ARGUMENT, "UUID", UUID="x")
refused(grpc.StatusCode.INVALID_ARGUMENT, "CSR", CSR=csr[:-1])

own_id = str(uuid.uuid4())
parameters = stub.Activate(request(UUID=own_id), timeout=30).Parameters
assert list(parameters.Argv) == ["backend", "{{ not a template }}"], parameters.Argv
assert parameters.Files["/plain"] == b"Hello {{ x }}"
env = parameters.Env
root = file("root.pem", env["MARBLE_PREDEFINED_ROOT_CA"])
assert env["MARBLE_PREDEFINED_ROOT_CA"].decode().split() == server.split(), "marbles trust the server's root"
chain = file("chain.pem", env["MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"])
coordinator = file("coordinator.pem", env["MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"])
key = file("leaf.key", env["MARBLE_PREDEFINED_PRIVATE_KEY"])
# Either way up: to the marble root alone, and through the intermediate to the coordinator's root.
for purpose in ["sslserver", "sslclient"]:
    openssl("verify", "-purpose", purpose, "-CAfile", root, chain)
    openssl("verify", "-purpose", purpose, "-CAfile", coordinator, "-untrusted", chain, chain)
openssl("verify", "-CAfile", coordinator, coordinator)
assert openssl("pkey", "-in", key, "-pubout") == openssl("x509", "-in", chain, "-noout", "-pubkey")
text = openssl("x509", "-in", chain, "-noout", "-text").decode()
for part in [own_id, "O = Shop", "DNS:db.local", "IP Address:10.0.0.7", "1.3.9903.2.1", "Digital Signature"]:
    assert part in text, (part, text)
assert "CA:TRUE" not in text
tls = json.loads(env["MARBLE_TTLS_CONFIG"])["tls"]
assert tls["Incoming"]["*:443"]["clientAuth"] is True
assert tls["Outgoing"]["db:5432"]["cacrt"] == env["MARBLE_PREDEFINED_ROOT_CA"].decode()

# As a marble at the client API.
api = ssl._create_unverified_context()
api.load_cert_chain(chain, key)


def call(method, path, body=None, context=api):
    connection = http.client.HTTPSConnection(client, context=context)
    connection.request(method, "/api/v2" + path, json.dumps(body) if body is not None else None)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


counter = lambda value, context=api: call("POST", "/monotonic-counter", {"name": "n", "value": value}, context)
assert [counter(v)[1]["data"]["value"] for v in (5, 3, 2**64 - 1, 7)] == [0, 5, 5, 2**64 - 1]
assert counter(1, ssl._create_unverified_context())[0] == 401
asked = quote(bytes(32))
code, answer = call("POST", "/sign-quote", {"sgxQuote": base64.b64encode(asked).decode()})
assert code == 200, answer
message = base64.b64encode(asked) + answer["data"]["tcbStatus"].encode()
signature = file("signature", base64.b64decode(answer["data"]["verificationSignature"]))
public = file("coordinator.pub", openssl("x509", "-in", coordinator, "-noout", "-pubkey"))
openssl("dgst", "-sha256", "-verify", public, "-signature", signature, file("message", message))

# Peers that load the revocation list refuse it once it is on it.
def listed():
    crl = file("crl.pem", call("GET", "/crl")[1]["data"]["crl"].encode())
    openssl("crl", "-in", crl, "-noout", "-CAfile", root)
    done = subprocess.run(["openssl", "verify", "-crl_check", "-CRLfile", crl, "-CAfile", root, chain],
                          capture_output=True, text=True)
    return done.returncode == 0, done.stdout + done.stderr

assert listed()[0], listed()
admin = ssl._create_unverified_context()
admin.load_cert_chain(sys.argv[4], sys.argv[5])
assert call("POST", "/revoked", {"marbles": [own_id]}, admin)[0] == 200
is_good, said = listed()
assert not is_good and "certificate revoked" in said, said
assert counter(2**64 - 1)[0] == 401, "nor does the coordinator serve it"

# The budget of two activations.
stub.Activate(request(), timeout=30)
refused(grpc.StatusCode.PERMISSION_DENIED, "reached max activations count")
print("marble: all as expected")
